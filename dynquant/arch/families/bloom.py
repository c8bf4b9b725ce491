"""Bloom: positions by ALiBi, a norm after the embedding, biases everywhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.base import Architecture, Row, with_bias
from dynquant.arch.decoder import OUTPUT, decoder_keys
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.older_decoders import fused_sizes, heads_apart, read_early
from dynquant.arch.settings import Declared, Settings, constant, harmless

_IN, _OUT = "transformer.h.{}.", "blk.{}."
_EMBEDDING = Row("transformer.word_embeddings.weight", "token_embd.weight", "vocab hidden")
_ROWS = (
    _EMBEDDING,
    *with_bias("transformer.word_embeddings_layernorm", "token_embd_norm", "hidden"),
    *with_bias(_IN + "input_layernorm", _OUT + "attn_norm", "hidden"),
    *with_bias(_IN + "self_attention.query_key_value", _OUT + "attn_qkv", "qkv", "hidden"),
    *with_bias(_IN + "self_attention.dense", _OUT + "attn_output", "hidden", "hidden"),
    *with_bias(_IN + "post_attention_layernorm", _OUT + "ffn_norm", "hidden"),
    *with_bias(_IN + "mlp.dense_h_to_4h", _OUT + "ffn_up", "ffn", "hidden"),
    *with_bias(_IN + "mlp.dense_4h_to_h", _OUT + "ffn_down", "hidden", "ffn"),
    *with_bias("transformer.ln_f", "output_norm", "hidden"),
    *OUTPUT,
)
_NAMES = {
    "n_embed": "hidden_size",
    "n_head": "num_attention_heads",
    "n_layer": "num_hidden_layers",
    "seq_length": "max_position_embeddings",
    "layer_norm_epsilon": "rms_norm_eps",
}
# transformers' defaults; 2048 tokens are the length of all published models.
_DEFAULTS = {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
# What the class always has.
_OWN = {"hidden_act": "gelu_new", "intermediate_size": None, "num_key_value_heads": None}


def bloom(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Bloom: ALiBi in place of positions, Q, K and V of each head together."""
    c = read_early({**config, **_OWN}, where, _NAMES, _DEFAULTS)
    return Architecture(
        name="bloom",
        keys=decoder_keys("bloom", c, None, None, layer_norm=True),
        rows=_ROWS,
        sizes=fused_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=(OUTPUT[0].stored, _EMBEDDING.stored) if c.tie_word_embeddings else None,
        via=heads_apart(c),
    )


_SETTINGS = Settings(
    read=frozenset({*_NAMES, *_NAMES.values(), "vocab_size", "tie_word_embeddings"}),
    harmless=harmless(
        "rounding only", "slow_but_exact attention_softmax_in_fp32 masked_softmax_fusion"
    )
    | harmless(
        "how the model was trained",
        "bias_dropout_fusion offset_alibi skip_bias_add skip_bias_add_qkv",
    )
    | harmless("the MLP is always four times as wide as the model", "n_inner"),
    only=constant(False, "apply_residual_connection_post_layernorm"),
)
FAMILIES = {"BloomForCausalLM": Declared(bloom, _SETTINGS)}
GRAPHS = {
    "bloom": GGUFGraph("BloomForCausalLM", qkv_bias=True, fused=()),
}
