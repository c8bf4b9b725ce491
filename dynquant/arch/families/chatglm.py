"""ChatGLM3 and GLM-4-9B with their own code: other names of settings and tensors than GLM-4's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.attention.fused import n_fused, separate_rows
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config
from dynquant.arch.decoder import Config, decoder_keys, decoder_sizes
from dynquant.arch.graph_limits import fixed, heads_fill_hidden
from dynquant.arch.positions.rope import Rope
from dynquant.arch.settings import NO_WINDOW, Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import u32

_NAME = "chatglm"
_LAYER, _OUT = "transformer.encoder.layers.{}.", "blk.{}."
_EMBEDDING, _OUTPUT = "transformer.embedding.word_embeddings.weight", "transformer.output_layer"
_ROWS = (
    Row(_EMBEDDING, "token_embd.weight", "vocab hidden"),
    Row(_LAYER + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_LAYER + "self_attention.dense.weight", _OUT + "attn_output.weight", "hidden q"),
    Row(_LAYER + "post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
    # Gate rows before up rows; llama.cpp's graph splits the product.
    Row(_LAYER + "mlp.dense_h_to_4h.weight", _OUT + "ffn_up.weight", "gate_up hidden"),
    Row(_LAYER + "mlp.dense_4h_to_h.weight", _OUT + "ffn_down.weight", "hidden ffn"),
    Row("transformer.encoder.final_layernorm.weight", "output_norm.weight", "hidden"),
    Row(_OUTPUT + ".weight", "output.weight", "vocab hidden"),
)
_QKV = _LAYER + "self_attention.query_key_value."


@dataclass(frozen=True)
class _Own:
    """config.json, with the defaults of the class that models bring along."""

    num_layers: LayersCount = 28
    padded_vocab_size: Count = 65024
    hidden_size: Count = 4096
    ffn_hidden_size: Count = 13696
    kv_channels: Count = 128
    num_attention_heads: Count = 32
    seq_length: Count = 2048
    layernorm_epsilon: Positive = 1e-5
    rope_ratio: Positive = 1.0
    multi_query_attention: Truth = False
    multi_query_group_num: Count = 1
    rmsnorm: Truth = True
    post_layer_norm: Truth = True
    apply_residual_connection_post_layernorm: Truth = False
    add_bias_linear: Truth = False
    add_qkv_bias: Truth = False
    tie_word_embeddings: Truth = False


def chatglm(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a ChatGLM3 or GLM-4-9B: half of each head is rotated, in adjacent pairs."""
    own = read_config(_Own, config, where)
    c = Config(
        vocab_size=own.padded_vocab_size,
        hidden_size=own.hidden_size,
        intermediate_size=own.ffn_hidden_size,
        num_hidden_layers=own.num_layers,
        num_attention_heads=own.num_attention_heads,
        max_position_embeddings=own.seq_length,
        rms_norm_eps=own.layernorm_epsilon,
        num_key_value_heads=own.multi_query_group_num,
        head_dim=own.kv_channels,
        tie_word_embeddings=own.tie_word_embeddings,
    )
    ArchitectureError.raise_any(_problems(c, own, where))
    rope = Rope(
        rope_theta=10000.0 * own.rope_ratio,
        rope_type="default",
        original_max_position_embeddings=max(own.seq_length, 2),
    )
    return Architecture(
        name=_NAME,
        keys=decoder_keys(_NAME, c, rope, own.kv_channels)
        | {f"{_NAME}.rope.dimension_count": u32(own.kv_channels // 2)},
        # llama.cpp's converter keeps Q, K and V in one matrix, attn_qkv.
        rows=(*_ROWS, *separate_rows(_QKV, c, interleaved=False, has_bias=own.add_qkv_bias)),
        sizes={
            **decoder_sizes(c),
            "qkv": n_fused(c),
            "gate_up": 2 * own.ffn_hidden_size,
        },
        n_layers=own.num_layers,
        tied=(_OUTPUT + ".weight", _EMBEDDING) if own.tie_word_embeddings else None,
        ignored={
            r".*\brotary_pos_emb\.inv_freq": "llama.cpp computes the rotary frequencies itself"
        },
        deviations=_ratio_of_positions(own, where),
    )


def _problems(c: Config, own: _Own, where: str) -> Iterator[str]:
    yield from heads_fill_hidden(c, where)
    yield from fixed(
        own,
        {
            "multi_query_attention": True,
            "rmsnorm": True,
            "post_layer_norm": True,
            "apply_residual_connection_post_layernorm": False,
            "add_bias_linear": False,
        },
        where,
    )
    if own.num_attention_heads % own.multi_query_group_num:
        yield (
            f"{where}: num_attention_heads {own.num_attention_heads} is not a multiple of"
            f" multi_query_group_num {own.multi_query_group_num}"
        )
    if own.kv_channels % 4:
        yield (
            f"{where}: kv_channels is {own.kv_channels}; half of a head is rotated in pairs, so it"
            " must be a multiple of 4"
        )


def _ratio_of_positions(own: _Own, where: str) -> tuple[str, ...]:
    """Return a warning if the ratio might be ChatGLM2's, which has the same class and tokens."""
    if own.rope_ratio == 1 or own.padded_vocab_size != _Own.padded_vocab_size:
        return ()
    return (
        f"{where}: rope_ratio is {own.rope_ratio:g} and multiplies the rotary base, as in ChatGLM3;"
        " a ChatGLM2-6B-32K divides positions by it, and llama.cpp does not compute that",
    )


_CHATGLM = Declared(
    chatglm,
    Settings(
        read=reads(_Own),
        harmless=NO_WINDOW
        | harmless("how scores are computed, with the same result", "apply_query_key_layer_scaling")
        | harmless("computed in F32 in any case", "attention_softmax_in_fp32 bias_dropout_fusion")
        | harmless("the type of stored numbers", "fp32_residual_connection")
        | harmless("their own code reads padded_vocab_size and num_layers", "vocab_size")
        | harmless("repeats num_layers", "num_hidden_layers"),
        only=constant(True, "original_rope")
        | constant(0, "quantization_bit pre_seq_len")
        | constant(False, "prefix_projection"),
    ),
)
FAMILIES = {
    "ChatGLMModel": _CHATGLM,
    "ChatGLMForConditionalGeneration": _CHATGLM,
}
