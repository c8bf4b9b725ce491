"""Nemotron-4 and Minitron: norms that subtract the mean, an MLP without a gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Positive, read_config, without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    MLP_BIASES,
    O_BIAS,
    OUTPUT,
    OUTPUT_NORM,
    QKV_BIASES,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import heads_fill_hidden, output_apart
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, u32
from dynquant.transforms import plus_one

NAME = "nemotron"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_NORM_BIASES = (
    Row(_IN + "input_layernorm.bias", _OUT + "attn_norm.bias", "hidden"),
    Row(_IN + "post_attention_layernorm.bias", _OUT + "ffn_norm.bias", "hidden"),
)
_LAST_BIAS = (Row("model.norm.bias", "output_norm.bias", "hidden"),)
_FROM_ONE = ("input_layernorm.weight", "post_attention_layernorm.weight", "model.norm.weight")
"""Factors of norms are stored minus one; their biases are not."""

_ACTIVATION = "relu2"


@dataclass(frozen=True)
class _Nemotron:
    norm_eps: Positive = 1e-5


def nemotron(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Nemotron-4 or Minitron: half of each head is rotated."""
    own = read_config(_Nemotron, config, where)
    present = without_nulls(config)
    stated = {"hidden_act": _ACTIVATION, **present, "rms_norm_eps": own.norm_eps}
    c = read_decoder(stated, where, activation=(_ACTIVATION,))
    _, rope = read_partial({**stated, "hidden_act": None}, where, None, 0.5)
    ArchitectureError.raise_any(chain(heads_fill_hidden(c, where), output_apart(c, where)))
    keys = partial_keys(NAME, c, rope)
    del keys[f"{NAME}.attention.layer_norm_rms_epsilon"]
    rows = (
        *EMBEDDING,
        *(*ATTENTION, *_NORM_BIASES),
        *((*QKV_BIASES, *O_BIAS) if c.attention_bias else ()),
        *_without_gate(MLP),
        *(_without_gate(MLP_BIASES) if c.mlp_bias else ()),
        *(*OUTPUT_NORM, *_LAST_BIAS, *OUTPUT),
    )
    return Architecture(
        name=NAME,
        keys=keys
        | {
            f"{NAME}.attention.layer_norm_epsilon": f32(own.norm_eps),
            f"{NAME}.vocab_size": u32(c.vocab_size),
        },
        rows=tuple(
            Row(r.stored, r.name, r.shape, via=plus_one) if r.stored.endswith(_FROM_ONE) else r
            for r in rows
        ),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=None,
        ignored=IGNORED,
    )


def _without_gate(rows: tuple[Row, ...]) -> tuple[Row, ...]:
    return tuple(row for row in rows if ".gate_proj." not in row.stored)


FAMILIES = {
    "NemotronForCausalLM": Declared(
        nemotron,
        Settings(read=(DECODER | reads(_Nemotron)) - {"rms_norm_eps"}, harmless=NO_WINDOW),
    )
}
GRAPHS = {
    "nemotron": GGUFGraph("NemotronForCausalLM"),
}
