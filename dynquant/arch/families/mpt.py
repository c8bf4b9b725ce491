"""MPT: positions by ALiBi, no biases, Q, K and V clipped in some models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Positive, read_config
from dynquant.arch.decoder import OUTPUT, decoder_keys
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.older_decoders import fused_sizes, read_early
from dynquant.arch.settings import Declared, Only, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import f32

_IN, _OUT = "transformer.blocks.{}.", "blk.{}."
_EMBEDDING = Row("transformer.wte.weight", "token_embd.weight", "vocab hidden")
_ROWS = (
    _EMBEDDING,
    Row(_IN + "norm_1.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_IN + "attn.Wqkv.weight", _OUT + "attn_qkv.weight", "qkv hidden"),
    Row(_IN + "attn.out_proj.weight", _OUT + "attn_output.weight", "hidden hidden"),
    Row(_IN + "norm_2.weight", _OUT + "ffn_norm.weight", "hidden"),
    Row(_IN + "ffn.up_proj.weight", _OUT + "ffn_up.weight", "ffn hidden"),
    Row(_IN + "ffn.down_proj.weight", _OUT + "ffn_down.weight", "hidden ffn"),
    Row("transformer.norm_f.weight", "output_norm.weight", "hidden"),
    *OUTPUT,
)
_NAMES = {
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_layers": "num_hidden_layers",
    "max_seq_len": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
}
# What the class always has.
_OWN = {"hidden_act": "gelu", "intermediate_size": None, "num_key_value_heads": None}
# transformers' defaults.
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


@dataclass(frozen=True)
class _Mpt:
    attn_config: dict[str, Any] | None = None
    expansion_ratio: Count = 4


@dataclass(frozen=True)
class _Attention:
    """`attn_config`, with the defaults of transformers."""

    clip_qkv: Positive | None = None
    alibi_bias_max: Positive = 8


_INSIDE = Settings(
    read=reads(_Attention),
    harmless=harmless("how the model's own code computes the same results", "attn_impl")
    | harmless("has no effect without rope", "rope_impl rope_theta rope_dail_config rope_hf_config")
    | harmless("the attention is that of a decoder", "is_encoder_decoder"),
    only=constant(True, "alibi")
    | constant("multihead_attention", "attn_type")
    | constant(True, "fused_qkv")
    | constant(-1, "sliding_window_size")
    | constant(False, "prefix_lm qk_ln qk_gn attn_uses_sequence_id rope")
    | dict.fromkeys(
        ("softmax_scale", "kv_n_heads"),
        Only((), "llama.cpp computes this family without this setting"),
    ),
)
"""The settings in `attn_config`."""


def mpt(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an MPT: ALiBi in place of positions, norms and matrices without biases."""
    own = read_config(_Mpt, config, where)
    inside = own.attn_config or {}
    place = f"{where}: attn_config"
    attention = read_config(_Attention, inside, place)
    c = read_early({**config, **_OWN}, where, _NAMES, _DEFAULTS, ratio=own.expansion_ratio)
    ArchitectureError.raise_any(_INSIDE.problems(inside, place))
    keys = {"mpt.attention.max_alibi_bias": f32(attention.alibi_bias_max)}
    if attention.clip_qkv is not None:
        keys["mpt.attention.clamp_kqv"] = f32(attention.clip_qkv)
    return Architecture(
        name="mpt",
        keys=decoder_keys("mpt", c, None, None, layer_norm=True) | keys,
        rows=_ROWS,
        sizes=fused_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=(OUTPUT[0].stored, _EMBEDDING.stored) if c.tie_word_embeddings else None,
        deviations=tuple(_INSIDE.warnings(inside, place)),
    )


_SETTINGS = Settings(
    read=frozenset({*_NAMES, *_NAMES.values(), "vocab_size", "tie_word_embeddings"}) | reads(_Mpt),
    harmless=harmless("has no effect with ALiBi", "learned_pos_emb")
    | harmless("used while training only", "embedding_fraction emb_pdrop")
    | harmless("the initial weights, and the device for them", "init_config init_device verbose")
    | harmless("how the model was made", "tokenizer_name fc_type use_pad_tok_in_ffn"),
    only=constant(True, "no_bias")
    | {
        "norm_type": Only(
            ("low_precision_layernorm", "layernorm"),
            "llama.cpp computes this family with 'low_precision_layernorm'",
        ),
        "logit_scale": Only((), "llama.cpp computes this family without this setting"),
    },
)
FAMILIES = dict.fromkeys(("MPTForCausalLM", "MptForCausalLM"), Declared(mpt, _SETTINGS))
GRAPHS = {
    "mpt": GGUFGraph("MptForCausalLM", fused=()),
}
