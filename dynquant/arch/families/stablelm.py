"""StableLM: a Llama with norms that subtract the mean, and in the 12B attention beside the MLP."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row, with_bias
from dynquant.arch.config import Positive, Truth, read_config, usual_names
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    QKV_BIASES,
    decoder_sizes,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import heads_fill_hidden, output_apart
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import boolean

_IN, _OUT = "model.layers.{}.", "blk.{}."
_PROJECTIONS = tuple(row for row in ATTENTION if "layernorm" not in row.stored)
_NORM = with_bias(_IN + "input_layernorm", _OUT + "attn_norm", "hidden")
_MLP_NORM = with_bias(_IN + "post_attention_layernorm", _OUT + "ffn_norm", "hidden")
# A norm for each head, which llama.cpp has as the rows of one tensor.
_QK_NORMS = (
    Row(_IN + "self_attn.q_layernorm.norms.{head}.weight", _OUT + "attn_q_norm.weight", "head"),
    Row(_IN + "self_attn.k_layernorm.norms.{kv_head}.weight", _OUT + "attn_k_norm.weight", "head"),
)
_OUTPUT_NORM = with_bias("model.norm", "output_norm", "hidden")


# Names in files of StableLMEpochForCausalLM, before transformers had the class.
_EPOCH = {"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"}


@dataclass(frozen=True)
class _StableLm:
    layer_norm_eps: Positive = 1e-5
    use_qkv_bias: Truth = False
    qk_layernorm: Truth = False
    use_parallel_residual: Truth = False


def stablelm(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a StableLM: layer norms, part of a head rotated, in the 12B a norm for each head."""
    config = usual_names(config, where, _EPOCH)
    own = read_config(_StableLm, config, where)
    # transformers' default.
    stated = {"num_key_value_heads": 32, **config, "rms_norm_eps": own.layer_norm_eps}
    c, rope = read_partial(stated, where, None, partial=0.25)
    ArchitectureError.raise_any([*heads_fill_hidden(c, where), *output_apart(c, where)])
    return Architecture(
        name="stablelm",
        keys=partial_keys("stablelm", c, rope, layer_norm=True)
        | {"stablelm.use_parallel_residual": boolean(own.use_parallel_residual)},
        rows=(
            *EMBEDDING,
            *_NORM,
            *_PROJECTIONS,
            *(QKV_BIASES if own.use_qkv_bias else ()),
            *(_QK_NORMS if own.qk_layernorm else ()),
            # llama.cpp computes both in parallel if a layer has no second norm.
            *(() if own.use_parallel_residual else _MLP_NORM),
            *MLP,
            *_OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={**decoder_sizes(c), "heads": c.num_attention_heads, "kv_heads": c.n_head_kv},
        n_layers=c.num_hidden_layers,
        tied=None,
        ignored=IGNORED,
    )


_SETTINGS = Settings(read=DECODER | reads(_StableLm) | {*_EPOCH}, harmless=NO_WINDOW)
_STABLELM = Declared(stablelm, _SETTINGS)
FAMILIES = dict.fromkeys(("StableLmForCausalLM", "StableLMEpochForCausalLM"), _STABLELM)


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return whether a GGUF's layers have one norm or two."""
    return {"use_parallel_residual": bool(keys.value("use_parallel_residual"))}


GRAPHS = {
    "stablelm": GGUFGraph("StableLmForCausalLM", layers=_layers_of),
}
