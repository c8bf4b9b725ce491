"""BitNet b1.58: a Llama with norms before its output and down projections, and ternary weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.decoder import (
    IGNORED,
    SILU,
    TIED,
    WEIGHTS,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.qwen import SCALINGS
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, heads_fill_hidden
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless
from dynquant.errors import ArchitectureError
from dynquant.keys import u32

_NAME = "bitnet"
_DEFAULT_ACT = "relu2"
_DEFAULT_THETA = 500000.0
"""transformers' defaults of the class."""

SUB_NORMS = (
    Row("model.layers.{}.self_attn.attn_sub_norm.weight", "blk.{}.attn_sub_norm.weight", "hidden"),
    Row("model.layers.{}.mlp.ffn_sub_norm.weight", "blk.{}.ffn_sub_norm.weight", "ffn"),
)


def bitnet(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a BitNet; llama.cpp's graph has the embedding as the output matrix."""
    config = {"rope_theta": _DEFAULT_THETA, **config}
    problems = list(_activation(config, where))
    # The activation is reported with its consequence, so that it is not compared again.
    c = read_decoder({**config, "hidden_act": None}, where)
    rope = read_rope(config, where, SCALINGS)
    problems += [
        *fixed(c, {"attention_bias": False, "tie_word_embeddings": True}, where),
        *heads_fill_hidden(c, where),
    ]
    ArchitectureError.raise_any(problems)
    return Architecture(
        name=_NAME,
        keys=_keys(c, decoder_keys(_NAME, c, rope, None)),
        rows=(*WEIGHTS, *SUB_NORMS),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED,
        ignored=IGNORED,
    )


def _keys(c: Config, keys: dict[str, Any]) -> dict[str, Any]:
    return keys | {
        f"{_NAME}.vocab_size": u32(c.vocab_size),
        f"{_NAME}.rope.dimension_count": u32(c.n_per_head),
    }


def _activation(config: Mapping[str, Any], where: str) -> Iterator[str]:
    if (found := config.get("hidden_act") or _DEFAULT_ACT) not in SILU:
        yield (
            f"{where}: hidden_act is {found!r}; llama.cpp's graph of BitNet computes 'silu', so"
            " that a file would answer nonsense; run this model with bitnet.cpp, whose GGUF has the"
            " architecture bitnet-b1.58"
        )


def first_bitnet(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe one of the first BitNets (1bitLLM's b1.58): other names of norms, and SiLU.

    Its own code rounds the weights while it runs; packed/settings.py reads them so.
    """
    found = bitnet({"hidden_act": "silu", "rope_theta": 10000.0, **config}, where)
    rows = (
        replace(row, stored=row.stored.replace(*names))
        for names, row in zip(_FIRST_NAMES, SUB_NORMS, strict=True)
    )
    return replace(found, rows=(*WEIGHTS, *rows))


_FIRST_NAMES = (("attn_sub_norm", "inner_attn_ln"), ("ffn_sub_norm", "ffn_layernorm"))

FAMILIES = {
    "BitNetForCausalLM": Declared(bitnet, Settings(read=DECODER)),
    "BitnetForCausalLM": Declared(
        first_bitnet,
        Settings(
            read=DECODER,
            harmless=harmless("llama.cpp rounds activations to 8 bits, too", "input_bits"),
            only=constant(1, "weight_bits"),
        ),
    ),
}
GRAPHS = {
    "bitnet": GGUFGraph(
        "BitNetForCausalLM", settings={"hidden_act": "silu", "tie_word_embeddings": True}
    ),
}
