"""Seed-OSS: a Qwen2 with other names of norms, and heads that need not fill the hidden size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.decoder import (
    IGNORED,
    QKV_BIASES,
    TIED,
    WEIGHTS,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.qwen import SCALINGS
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, constant
from dynquant.errors import ArchitectureError

_NAME = "seed_oss"
_RENAMED = {"blk.{}.ffn_norm.weight": "blk.{}.post_attention_norm.weight"}
_WEIGHTS = tuple(replace(row, name=_RENAMED.get(row.name, row.name)) for row in WEIGHTS)


def seed_oss(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Seed-OSS, usually with biases on Q, K and V."""
    # transformers' default, unless null is stated.
    head_dim = None if "head_dim" in config else 128
    c = read_decoder({"attention_bias": True, **config}, where, head_dim=head_dim)
    rope = read_rope(config, where, SCALINGS)
    ArchitectureError.raise_any(fixed(c, {"mlp_bias": False}, where))
    return Architecture(
        name=_NAME,
        keys=decoder_keys(_NAME, c, rope, c.n_per_head),
        rows=_WEIGHTS + (QKV_BIASES if c.attention_bias else ()),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
    )


FAMILIES = {
    "SeedOssForCausalLM": Declared(
        seed_oss,
        Settings(read=DECODER, harmless=NO_WINDOW, only=constant(False, "attention_out_bias")),
    )
}
GRAPHS = {
    "seed_oss": GGUFGraph("SeedOssForCausalLM"),
}
