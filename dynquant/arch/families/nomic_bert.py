"""Nomic-BERT: an embedding model with rotary positions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row, with_bias
from dynquant.arch.config import Count, read_config
from dynquant.arch.encoder import EMBEDDINGS, EncoderConfig, describe_encoder, read_encoder
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, u32

_LAYER = "model.encoder.layers.{}."
_ROWS = (
    *EMBEDDINGS,
    *with_bias("model.emb_ln", "token_embd_norm", "hidden"),
    Row(_LAYER + "attn.Wqkv.weight", "blk.{}.attn_qkv.weight", "qkv hidden"),
    Row(_LAYER + "attn.out_proj.weight", "blk.{}.attn_output.weight", "hidden hidden"),
    *with_bias(_LAYER + "norm1", "blk.{}.attn_output_norm", "hidden"),
    Row(_LAYER + "mlp.fc11.weight", "blk.{}.ffn_up.weight", "ffn hidden"),
    Row(_LAYER + "mlp.fc12.weight", "blk.{}.ffn_gate.weight", "ffn hidden"),
    Row(_LAYER + "mlp.fc2.weight", "blk.{}.ffn_down.weight", "hidden ffn"),
    *with_bias(_LAYER + "norm2", "blk.{}.layer_output_norm", "hidden"),
)
# Names in Nomic's config.json, and in transformers.
_NAMES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "activation_function": "hidden_act",
}
# Constants of llama.cpp's graph.
_FIXED: dict[str, object] = {
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "moe_every_n_layers": 0,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}


@dataclass(frozen=True)
class _Nomic:
    max_trained_positions: Count | None = None
    head_dim: Count | None = None


def nomic(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Nomic-BERT (v1, v1.5): rotary positions, fused Q, K and V, a gated MLP."""
    ArchitectureError.raise_any(
        f"{where}: {key} is {config[key]!r}; llama.cpp computes nomic-bert with {fixed!r}"
        for key, fixed in _FIXED.items()
        if config.get(key, fixed) not in (fixed, None)
    )
    renamed = {**config, **{n: config[o] for o, n in _NAMES.items() if o in config}}
    own = read_config(_Nomic, config, where)
    c = read_encoder(renamed, where, ("swiglu", "silu"))
    theta = config.get("rotary_emb_base", config.get("rope_theta"))
    based = {**renamed, "rope_theta": 1000.0 if theta is None else theta}  # transformers' default
    rope = read_rope(based, where, known=("dynamic",))
    if own.head_dim not in (None, c.hidden_size // c.num_attention_heads):
        raise ArchitectureError(
            f"{where}: head_dim is {own.head_dim}; llama.cpp computes nomic-bert with"
            f" {c.hidden_size // c.num_attention_heads}, hidden_size divided by the heads"
        )
    # Longer contexts need a rope scaling that users set in the runtime.
    trained = min(c.max_position_embeddings, own.max_trained_positions or 2**31)
    more = {"rope.freq_base": f32(rope.rope_theta), "context_length": u32(trained)}
    return describe_encoder("nomic-bert", c, _ROWS, more)


_SETTINGS = Settings(
    read=reads(EncoderConfig, _Nomic) | {*_NAMES, *_FIXED, "rotary_emb_base", "rope_theta"},
    harmless=harmless("an embedding model has no output matrix", "tie_word_embeddings")
    | harmless(
        "how the model's own code computes the same results",
        "use_xentropy fused_bias_fc fused_dropout_add_ln use_flash_attn pad_vocab_size_multiple"
        " dense_seq_output reorder_and_upcast_attn mlp_checkpoint_lvl residual_in_fp32 n_ctx",
    )
    | harmless("has no effect within max_trained_positions", "rotary_scaling_factor")
    | harmless(
        "of summaries, which the file leaves out",
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type"
        " summary_use_proj",
    )
    | harmless(
        "of experts, which no layer has",
        "num_experts num_shared_experts moe_impl moe_top_k moe_normalize_expert_weights"
        " moe_resid_pdrop expert_choice_router ffn_div",
    ),
    only=constant(
        False,
        "scale_attn_by_inverse_layer_idx use_rms_norm parallel_block parallel_block_tied_norm"
        " last_layer_subset",
    )
    | constant(True, "scale_attn_weights"),
)
FAMILIES = {"NomicBertModel": Declared(nomic, _SETTINGS)}
GRAPHS = {
    "nomic-bert": GGUFGraph(
        "NomicBertModel",
        settings={"hidden_act": "swiglu"},
        optional=frozenset({"token_types.weight"}),
    ),
}
