"""adapter_config.json of PEFT: rank, scale, and the kinds of adapters that are not supported.

Names, defaults and the rule for patterns are those of PEFT's LoraConfig and get_pattern_key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dynquant.checkpoint.safetensors import read_object
from dynquant.errors import AdapterError
from dynquant.untrusted import shown

CONFIG = "adapter_config.json"

_MERGE = "merge it with PEFT's `merge_and_unload()` and convert the saved model"

_ANY = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "ephemeral_gpu_offload", "exclude_modules"),
        *("inference_mode", "layers_pattern", "layers_to_transform", "loftq_config"),
        *("lora_dropout", "peft_version", "revision", "runtime_config", "target_modules"),
        *("task_type", "eva_config", "corda_config", "megatron_core", "qalora_group_size"),
    }
)
"""Settings of training and of programs, which do not change what the stored numbers mean."""

_READ = frozenset(
    {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "fan_in_fan_out"}
)

_REFUSED = {
    "use_dora": "DoRA also scales whole columns of the base",
    "lora_bias": "LoRA with biases adds a bias to each module",
    "modules_to_save": "whole modules were trained beside the adapter",
    "trainable_token_indices": "rows of the embedding were trained beside the adapter",
    "layer_replication": "layers of the base are repeated",
    "target_parameters": "parameters that are no modules were trained (`target_parameters`)",
    "alora_invocation_tokens": "an activated LoRA applies only after its invocation tokens",
    "invocation_string": "an activated LoRA applies only after its invocation tokens",
    "ensure_weight_tying": "one adapter is shared by the embedding and the output matrix",
    "use_qalora": "QALoRA pools the inputs of each module",
    "megatron_config": "the modules are those of Megatron",
    "arrow_config": "an Arrow router mixes several adapters",
}
"""Settings that change what an adapter does, with the reason; off unless they are set."""

_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights with which training leaves the base as it is."""

_PATTERN = re.compile(r"[\w^$.\\-]+", re.ASCII)
"""Patterns of modules that are read: names, without repetition, so that none takes long."""


@dataclass(frozen=True)
class AdapterSettings:
    """What adapter_config.json says about the numbers of an adapter.

    base:           the name of the model that it was trained on, as recorded; may be empty
    ranks, alphas:  exceptions from `r` and `lora_alpha`, by patterns of module names
    fan_in_fan_out: whether modules store their weights as [inputs, outputs], as GPT-2 does
    """

    base: str
    r: int
    alpha: float
    is_rank_stabilized: bool
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    fan_in_fan_out: bool

    def rank_of(self, module: str) -> int:
        """Return the rank that a module must have."""
        key = _matching(self.ranks, module)
        return self.r if key is None else self.ranks[key]

    def alpha_of(self, module: str) -> float:
        """Return the factor of a module's product, times its rank."""
        key = _matching(self.alphas, module)
        alpha = self.alpha if key is None else self.alphas[key]
        return alpha * math.sqrt(self.rank_of(module)) if self.is_rank_stabilized else alpha


def _matching(patterns: Mapping[str, object], module: str) -> str | None:
    return next((p for p in patterns if re.match(rf"(.*\.)?({p})$", module)), None)


def read_settings(folder: Path) -> AdapterSettings:
    """Read adapter_config.json.

    Raises AdapterError with every setting that is not valid or not supported, CheckpointError if
    the file is missing or is not a JSON object.
    """
    path = folder / CONFIG
    found = read_object(path)
    AdapterError.raise_any(f"{path}: {p}" for p in _problems(found))
    ranks = cast("dict[str, int]", found.get("rank_pattern") or {})
    alphas = cast("dict[str, float]", found.get("alpha_pattern") or {})
    base = found.get("base_model_name_or_path")
    return AdapterSettings(
        base if isinstance(base, str) else "",
        int(found["r"]),
        float(found["lora_alpha"]),
        found.get("use_rslora") is True,
        ranks,
        {pattern: float(alpha) for pattern, alpha in alphas.items()},
        found.get("fan_in_fan_out") is True,
    )


def _problems(found: Mapping[str, Any]) -> Iterator[str]:
    kind = found.get("peft_type")
    if kind is None:
        yield "has no peft_type; give the folder that PEFT's `save_pretrained` wrote"
        return
    if kind != "LORA":
        yield f"peft_type is {shown(kind)}; only LORA is supported: {_MERGE}"
        return  # the settings of other kinds have other names
    for name, why in _REFUSED.items():
        if found.get(name):
            yield f"{name} is set: {why}, which is not supported; {_MERGE}"
    if (bias := found.get("bias", "none")) != "none":
        yield f"bias is {shown(bias)}: trained biases are not supported; {_MERGE}"
    init = found.get("init_lora_weights", True)
    if init not in _INITS:
        yield (
            f"init_lora_weights is {shown(init)}, which changes the base; save the adapter again"
            f" with PEFT's `path_initial_model_for_weight_conversion`, or {_MERGE}"
        )
    known = _ANY | _READ | _REFUSED.keys() | {"peft_type", "bias", "init_lora_weights"}
    for name in sorted(found.keys() - known):
        if found[name]:
            yield f"{shown(name)} is {shown(found[name])}, a setting that is not known; {_MERGE}"
    yield from _number_problems(found)


def _number_problems(found: Mapping[str, Any]) -> Iterator[str]:
    if not _is_rank(rank := found.get("r")):
        yield f"r is {shown(rank)}, not a rank; take the file that belongs to the adapter"
    if not _is_alpha(alpha := found.get("lora_alpha")):
        yield f"lora_alpha is {shown(alpha)}; it must be a number, and not 0"
    for name, is_valid in (("rank_pattern", _is_rank), ("alpha_pattern", _is_alpha)):
        patterns: Any = found.get(name) or {}
        if not isinstance(patterns, dict):
            yield f"{name} is {shown(patterns)}, not an object of patterns"
            continue
        for pattern, value in cast("dict[str, Any]", patterns).items():
            if not _is_pattern(pattern):
                yield f"{name}: {shown(pattern)} is not a name of modules; {_MERGE}"
            if not is_valid(value):
                yield f"{name}: {shown(pattern)} has {shown(value)}, which is not valid"
    for name in ("use_rslora", "fan_in_fan_out"):
        if not isinstance(found.get(name, False), bool):
            yield f"{name} is {shown(found[name])}, not true or false"


def _is_rank(value: object) -> bool:
    return type(value) is int and 0 < value < 1 << 20


def _is_alpha(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < abs(value) < 1e30


def _is_pattern(pattern: str) -> bool:
    if not _PATTERN.fullmatch(pattern):
        return False
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
