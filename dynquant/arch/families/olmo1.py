"""OLMo 1: a Llama whose norms have no weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import Positive, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    TIED,
    decoder_keys,
    decoder_sizes,
    interleaved_pairs,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, heads_fill_hidden
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import f32

_PROJECTIONS = tuple(row for row in ATTENTION if "layernorm" not in row.stored)

EPSILON = 1e-5
"""The epsilon of all norms, which is a constant in the model's own code."""


@dataclass(frozen=True)
class _Olmo:
    clip_qkv: Positive | None = None


def olmo(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an OLMo 1: norms without weights, queries, keys and values clipped in some."""
    own = read_config(_Olmo, config, where)
    c = read_decoder({**config, "rms_norm_eps": EPSILON}, where)
    rope = read_rope(config, where, ("linear", "dynamic", "yarn"))
    ArchitectureError.raise_any(
        chain(fixed(c, {"attention_bias": False}, where), heads_fill_hidden(c, where))
    )
    clip = {} if own.clip_qkv is None else {"olmo.attention.clamp_kqv": f32(own.clip_qkv)}
    return Architecture(
        name="olmo",
        keys=decoder_keys("olmo", c, rope, c.head_dim, layer_norm=True) | clip,
        rows=(*EMBEDDING, *_PROJECTIONS, *MLP, *OUTPUT),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        via=interleaved_pairs(c),
        ignored=IGNORED,
    )


_READ = (DECODER | reads(_Olmo)) - {"rms_norm_eps"}
FAMILIES = {"OlmoForCausalLM": Declared(olmo, Settings(read=_READ, harmless=NO_WINDOW))}
GRAPHS = {
    "olmo": GGUFGraph("OlmoForCausalLM"),
}
