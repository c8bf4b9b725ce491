"""Rotary position embeddings: their settings in config.json, and their keys for llama.cpp."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, cast

import numpy as np
from pydantic import Field

from dynquant.arch.config import Count, Positive, Truth, read_config, without_nulls
from dynquant.arrays import F32
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, f32, string, u32


@dataclass(frozen=True)
class Rope:
    """`rope_parameters` of transformers 5, `rope_scaling` of older versions, with their names.

    rope_type: "default" (no scaling), "linear", "dynamic", "yarn", "llama3", "longrope",
               "proportional"
    """

    rope_theta: Positive
    rope_type: str
    original_max_position_embeddings: Annotated[Count, Field(gt=1)]  # its logarithm divides
    partial_rotary_factor: Annotated[Positive, Field(le=1)] = 1.0
    factor: Positive | None = None
    low_freq_factor: Positive | None = None
    high_freq_factor: Positive | None = None
    beta_fast: Positive = 32.0
    beta_slow: Positive = 1.0
    truncate: Truth = True
    attention_factor: Positive | None = None
    mscale: Positive | None = None
    mscale_all_dim: Positive | None = None
    long_factor: tuple[Positive, ...] | None = None
    short_factor: tuple[Positive, ...] | None = None


# The settings that each scaling requires. "dynamic" has no effect within max_position_embeddings,
# which is the GGUF's context_length; llama.cpp has no key for it.
_NEEDS = {
    "default": (),
    "linear": ("factor",),
    "dynamic": (),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("long_factor", "short_factor"),
    "proportional": (),
}


# Constants of llama.cpp's graphs of these families. They read neither yarn_beta_fast and
# yarn_beta_slow nor yarn_attn_factor and yarn_ext_factor, though the gguf package can write these.
_WHOLE: dict[str, object] = {"partial_rotary_factor": 1.0}
_FIXED: dict[str, dict[str, object]] = {
    **dict.fromkeys(_NEEDS, _WHOLE),
    "yarn": {**_WHOLE, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": True},
}
_TOP_LEVEL = ("rope_theta", "partial_rotary_factor")
_ORIGINAL = "original_max_position_embeddings"


def ropes_by_kind(
    config: Mapping[str, Any], where: str, kinds: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, Any], ...]:
    """Return config.json once for each kind of layers, with the rope of that kind.

    kinds: the kinds in `rope_parameters`, with the family's defaults

    Raises ArchitectureError if rope_parameters does not state all of them.
    """
    found = config.get("rope_parameters") or kinds
    both = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    ArchitectureError.raise_any(
        f"{where}: rope_parameters has no settings for {kind} (an object)"
        for kind in kinds
        if not isinstance(both.get(kind), dict)
    )
    shared = {"max_position_embeddings": config.get("max_position_embeddings")}
    return tuple({**shared, "rope_parameters": both[kind]} for kind in kinds)


def read_rope(
    config: Mapping[str, Any],
    where: str,
    known: tuple[str, ...],
    approximated: Collection[str] = (),
    *,
    partial: float | None = None,
) -> Rope:
    """Return the rope settings of a config.json; raise ArchitectureError for unknown scaling.

    known:        scalings that llama.cpp's graph of the family computes, besides "default"
    approximated: settings that may differ from the graph's constants, as they do in all published
                  files of a family; see `deviations`
    partial:      the family's default of partial_rotary_factor; None if whole heads are rotated
    """
    name = _name(config)
    stated, found = config.get(name), rope_settings(config)
    if stated is not None and (stated != found or any(isinstance(v, dict) for v in found.values())):
        raise ArchitectureError(
            f"{where}: {name} must be one set of settings, the same for all layers"
        )
    # As in transformers (`standardize_rope_params`): the set has precedence over config.json's top
    # level; for the original context length it is the reverse.
    settings: dict[str, Any] = {
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0 if partial is None else partial,
        "rope_type": found.get("type", "default"),
        **{k: config[k] for k in _TOP_LEVEL if config.get(k) is not None},
        _ORIGINAL: config.get("max_position_embeddings"),
        **without_nulls(found),
    }
    if config.get(_ORIGINAL) is not None:
        settings[_ORIGINAL] = config[_ORIGINAL]
    rope = read_config(Rope, settings, f"{where}: {name}")
    types = ("default", *known)
    if rope.rope_type not in types:
        raise ArchitectureError(
            f"{where}: {name}: llama.cpp does not compute rope_type {rope.rope_type!r} for this"
            f" architecture; it supports {', '.join(types)}"
        )
    ArchitectureError.raise_any(
        f"{where}: {name}: {key} is missing; rope_type {rope.rope_type!r} needs it"
        for key in _NEEDS[rope.rope_type]
        if getattr(rope, key) is None
    )
    ArchitectureError.raise_any(
        f"{where}: {key} is {getattr(rope, key)}; llama.cpp computes this architecture with {fixed}"
        for key, fixed in _FIXED[rope.rope_type].items()
        if getattr(rope, key) != fixed
        and key not in approximated
        and not (partial and key in _WHOLE)
    )
    return rope


def _name(config: Mapping[str, Any]) -> str:
    return "rope_scaling" if config.get("rope_scaling") else "rope_parameters"


def rope_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the rope settings of a config.json as they are stated; {} if there are none."""
    found = config.get(_name(config))
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def deviations(rope: Rope, where: str) -> tuple[str, ...]:
    """Return a warning for each setting in place of which llama.cpp uses a constant."""
    return tuple(
        f"{where}: {key} is {getattr(rope, key)}, but llama.cpp uses {fixed} for this architecture;"
        " rotary angles differ slightly"
        for key, fixed in _FIXED[rope.rope_type].items()
        if getattr(rope, key) != fixed
    )


def scaling_keys(arch: str, rope: Rope) -> Keys:
    """Return `<arch>.rope.scaling.*`; llama3's scaling is a tensor instead (`llama3_factors`)."""
    if rope.rope_type not in ("linear", "yarn") or rope.factor is None:
        return {}
    keys = {"type": string(rope.rope_type), "factor": f32(rope.factor)}
    if rope.rope_type == "yarn":
        keys["original_context_length"] = u32(rope.original_max_position_embeddings)
        # In llama.cpp this multiplies YaRN's usual factor, in transformers it replaces it.
        attention = _attention_factor(rope, rope.factor) / _magnitude(rope.factor, 1.0)
        if attention != 1:
            keys["attn_factor"] = f32(attention)
    return {f"{arch}.rope.scaling.{name}": value for name, value in keys.items()}


def mscale_keys(arch: str, rope: Rope) -> Keys:
    """Return `<arch>.rope.scaling.*` for graphs that read YaRN's betas and mscale_all_dim.

    llama.cpp then scales sines and cosines by magnitude(1) / magnitude(mscale_all_dim), times
    attn_factor.
    """
    keys = scaling_keys(arch, rope)
    if rope.rope_type != "yarn" or rope.factor is None:
        return keys
    more: Keys = {}
    if rope.beta_fast != _FIXED["yarn"]["beta_fast"]:
        more["yarn_beta_fast"] = f32(rope.beta_fast)
    if rope.beta_slow != _FIXED["yarn"]["beta_slow"]:
        more["yarn_beta_slow"] = f32(rope.beta_slow)
    if rope.mscale_all_dim:
        more["yarn_log_multiplier"] = f32(rope.mscale_all_dim)
        theirs = _magnitude(rope.factor, 1.0) / _magnitude(rope.factor, rope.mscale_all_dim)
        keys.pop(f"{arch}.rope.scaling.attn_factor", None)
        attention = _attention_factor(rope, rope.factor) / theirs
        if attention != 1:
            more["attn_factor"] = f32(attention)
    return keys | {f"{arch}.rope.scaling.{name}": value for name, value in more.items()}


def latent_scaling_keys(arch: str, rope: Rope, where: str) -> Keys:
    """Return `<arch>.rope.scaling.*` of YaRN in latent attention, which also scales the scores.

    transformers multiplies all scores by magnitude(mscale_all_dim)², and sines and cosines by the
    attention factor. llama.cpp does the former by `yarn_log_multiplier`, a tenth of mscale_all_dim
    for deepseek2, but applies the latter to the weights that are not rotated as well. So both agree
    only if the attention factor is one, as it is in all of DeepSeek's files.

    Raises ArchitectureError for any other attention factor.
    """
    if rope.rope_type != "yarn" or rope.factor is None:
        return {}
    if (attention := _attention_factor(rope, rope.factor)) != 1:
        raise ArchitectureError(
            f"{where}: YaRN multiplies sines and cosines by {attention:.4g}, from mscale"
            f" {rope.mscale} and mscale_all_dim {rope.mscale_all_dim}; llama.cpp's latent attention"
            " supports only 1"
        )
    keys = {
        "type": string("yarn"),
        "factor": f32(rope.factor),
        "original_context_length": u32(rope.original_max_position_embeddings),
    }
    if rope.beta_fast != _FIXED["yarn"]["beta_fast"]:
        keys["yarn_beta_fast"] = f32(rope.beta_fast)
    if rope.beta_slow != _FIXED["yarn"]["beta_slow"]:
        keys["yarn_beta_slow"] = f32(rope.beta_slow)
    if rope.mscale_all_dim:
        keys["yarn_log_multiplier"] = f32(0.1 * rope.mscale_all_dim)
    else:
        # Without a multiplier llama.cpp applies YaRN's usual factor; this cancels it.
        keys["attn_factor"] = f32(1 / _magnitude(rope.factor, 1.0))
    return {f"{arch}.rope.scaling.{name}": value for name, value in keys.items()}


def _attention_factor(rope: Rope, factor: float) -> float:
    """Return YaRN's factor of sines and cosines (`_compute_yarn_parameters`)."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _magnitude(factor, rope.mscale) / _magnitude(factor, rope.mscale_all_dim)
    return _magnitude(factor, 1.0)


def _magnitude(factor: float, mscale: float) -> float:
    """Return YaRN's growth of attention with the context (arXiv:2309.00071, section 3.4)."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1


def llama3_factors(rope: Rope, head_dim: int) -> F32:
    """Return Llama 3.1's rope scaling as a divisor for the frequency of each rotary pair.

    Wavelengths below original/high_freq_factor stay, those above original/low_freq_factor grow by
    `factor`, and in between the frequency is interpolated linearly in original/wavelength.

    returns: float32 [head_dim / 2], the tensor rope_freqs.weight
    Source: `_compute_llama3_parameters` in transformers.
    """
    factor, low, high = rope.factor, rope.low_freq_factor, rope.high_freq_factor
    if factor is None or low is None or high is None:
        raise ValueError(f"rope_type {rope.rope_type!r} has no factors")
    divisors: list[float] = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * rope.rope_theta ** (2 * pair / head_dim)
        turns = rope.original_max_position_embeddings / wavelength
        # Two clips, equal to the formula's three cases, also if low equals high.
        kept = 1.0 if turns >= high else 0.0 if turns < low else (turns - low) / (high - low)
        divisors.append(1 / ((1 - kept) / factor + kept))
    return np.array(divisors, np.float32)


_UNROTATED = 1e30
"""The divisor in llama.cpp's converter: an angle of zero, up to 1e20 tokens."""


def proportional_factors(rope: Rope, head_dim: int) -> F32:
    """Return divisors for a rope in which only the first pairs of a head are rotated.

    The frequencies are those of the whole head. llama.cpp rotates all pairs, and the divisor of the
    others is so large that they stay.

    returns: float32 [head_dim / 2], the tensor rope_freqs.weight; ones for rope_type "default"
    Source: `_compute_proportional_rope_parameters` in transformers.
    """
    n_pairs = head_dim // 2
    if rope.rope_type == "default":
        return np.ones(n_pairs, np.float32)
    n_rotated = int(rope.partial_rotary_factor * head_dim // 2)
    divisors = np.full(n_pairs, _UNROTATED, np.float32)
    divisors[:n_rotated] = rope.factor or 1.0
    return divisors
