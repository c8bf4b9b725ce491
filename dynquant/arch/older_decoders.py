"""Decoders of 2019 to 2023: other names of settings, norms with biases, fused Q, K and V.

GPT-2, GPT-NeoX, Falcon, MPT, Bloom and their relatives. Most of their layers have biases. Q, K
and V are one matrix in the checkpoint and in llama.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

from dynquant.arch.attention.fused import n_fused
from dynquant.arch.base import Row, Via
from dynquant.arch.config import usual_names
from dynquant.arch.decoder import GELU, Config, decoder_sizes, read_decoder
from dynquant.errors import ArchitectureError
from dynquant.transforms import parts_of_groups

ANY_GELU = (*GELU, "gelu", "gelu_python", "gelu_accurate")
"""Names of GELU, exact or approximated; llama.cpp computes its tanh form in all of these families,
whose values differ from those of the exact one by 5e-4 at most."""


def without_bias(rows: Collection[Row]) -> tuple[Row, ...]:
    """Return the rows of matrices and norms."""
    return tuple(row for row in rows if not row.stored.endswith(".bias"))


def read_early(
    config: Mapping[str, Any],
    where: str,
    names: Mapping[str, str],
    defaults: Mapping[str, Any],
    ratio: int = 4,
) -> Config:
    """Return the config of a decoder in which settings have other names.

    names:      the usual name of each of these settings
    defaults:   the defaults of the family's class, by the usual names
    ratio:      the width of the MLP by that of the model, if config.json does not state the former

    Both names of a setting are read, as in transformers. Raises ArchitectureError with the names
    that config.json has.
    """
    found = {**defaults, **usual_names(config, where, names)}
    hidden = found.get("hidden_size")
    if found.get("intermediate_size") is None and isinstance(hidden, int):
        found["intermediate_size"] = ratio * hidden
    try:
        c = read_decoder({**found, "head_dim": None}, where, activation=ANY_GELU)
        if not c.is_causal:
            raise ArchitectureError(
                f"{where}: is_causal is false; llama.cpp computes this family with true"
            )
    except ArchitectureError as e:
        raise ArchitectureError(*(_own_names(m, config, names) for m in e.messages)) from e
    return c


def _own_names(message: str, config: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return a message with the names that a config.json has, or would have."""
    message = message.removesuffix(", and head_dim is missing")  # no class has this setting
    for own, usual in names.items():
        if own in config or usual not in config:
            message = re.sub(rf"\b{usual}\b", own, message)
    return message


def fused_sizes(c: Config) -> dict[str, int]:
    """Return the dimensions of a decoder with Q, K and V in one matrix."""
    return {**decoder_sizes(c), "qkv": n_fused(c), "positions": c.max_position_embeddings}


def heads_apart(c: Config) -> dict[str, Via]:
    """Return the transform of a fused Q, K and V that has the heads of a group together.

    The checkpoint has the queries of a group, its keys and its values, then the next group.
    llama.cpp needs all queries before all keys before all values.
    """
    n, each = c.num_attention_heads // c.n_head_kv, c.n_per_head
    parts = ((0, n * each), (n * each, (n + 1) * each), ((n + 1) * each, (n + 2) * each))
    return {"attn_qkv": partial(parts_of_groups, n_groups=c.n_head_kv, parts=parts)}
