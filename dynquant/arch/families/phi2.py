"""Phi-1, Phi-1.5 and Phi-2: attention and MLP in parallel after one norm, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row, with_bias
from dynquant.arch.config import Positive, read_config
from dynquant.arch.decoder import (
    EMBEDDING,
    GELU,
    IGNORED,
    OUTPUT,
    decoder_sizes,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import heads_fill_hidden, output_apart
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, constant, reads
from dynquant.errors import ArchitectureError

_IN, _OUT = "model.layers.{}.", "blk.{}."
_ROWS = (
    *EMBEDDING,
    *with_bias(_IN + "input_layernorm", _OUT + "attn_norm", "hidden"),
    *with_bias(_IN + "self_attn.q_proj", _OUT + "attn_q", "q", "hidden"),
    *with_bias(_IN + "self_attn.k_proj", _OUT + "attn_k", "kv", "hidden"),
    *with_bias(_IN + "self_attn.v_proj", _OUT + "attn_v", "kv", "hidden"),
    *with_bias(_IN + "self_attn.dense", _OUT + "attn_output", "hidden", "q"),
    *with_bias(_IN + "mlp.fc1", _OUT + "ffn_up", "ffn", "hidden"),
    *with_bias(_IN + "mlp.fc2", _OUT + "ffn_down", "hidden", "ffn"),
    *with_bias("model.final_layernorm", "output_norm", "hidden"),
    *OUTPUT,
    Row("lm_head.bias", "output.bias", "vocab"),
)


@dataclass(frozen=True)
class _Phi:
    layer_norm_eps: Positive = 1e-5


def phi2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Phi-2: part of a head rotated, a bias of the output matrix too."""
    own = read_config(_Phi, config, where)
    # transformers' default.
    stated = {"hidden_act": GELU[1], **config, "rms_norm_eps": own.layer_norm_eps}
    c, rope = read_partial(stated, where, None, partial=0.5, activation=GELU)
    ArchitectureError.raise_any([*heads_fill_hidden(c, where), *output_apart(c, where)])
    return Architecture(
        name="phi2",
        keys=partial_keys("phi2", c, rope, layer_norm=True),
        rows=_ROWS,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=None,
        ignored=IGNORED,
    )


_SETTINGS = Settings(
    read=DECODER | reads(_Phi), harmless=NO_WINDOW, only=constant(False, "qk_layernorm")
)
FAMILIES = {"PhiForCausalLM": Declared(phi2, _SETTINGS)}
GRAPHS = {
    "phi2": GGUFGraph("PhiForCausalLM"),
}
