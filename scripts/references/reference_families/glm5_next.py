"""GLM-5.3-Flash: delta attention, sparse latent attention, and several residual streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from reference_tokenizers import Encode, make_qwen_bpe

from reference_families import COMMON, Family


def _tokenizer(folder: Path) -> Encode:
    return make_qwen_bpe(folder, ("[gMASK]", "<sop>", "<|user|>", "<|observation|>"))


TEXT: dict[str, Any] = {
    **COMMON,
    "vocab_size": 416,
    "eos_token_id": [400, 402],
    "pad_token_id": 400,
    "num_hidden_layers": 4,
    "layer_types": [
        "linear_attention",
        "deepseek_sparse_attention",
        "deepseek_sparse_attention",
        "linear_attention",
    ],
    "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
    # The third layer takes its positions from the second.
    "indexer_types": ["full", "full", "shared", "full"],
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "q_lora_rank": 20,
    "kv_lora_rank": 28,
    "qk_nope_head_dim": 22,
    "qk_rope_head_dim": 0,
    "v_head_dim": 14,
    # Of the prompts' 24 tokens, two pools of three and the last tokens are seen.
    "index_topk": 6,
    "index_kpool": 3,
    "index_kpool_always_select_tail": True,
    "index_head_dim": 18,
    "index_n_heads": 5,
    "linear_attn_config": {
        "full_attn_layers": [1, 2],
        "gate_lower_bound": -2.3,
        "head_dim": 12,
        "kda_layers": [0, 3],
        "num_heads": 3,
        "short_conv_kernel_size": 4,
    },
    "intermediate_size": 40,
    "moe_intermediate_size": 12,
    "n_routed_experts": 5,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.7,
    "swiglu_limit": 0.5,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 6,
    "hc_eps": 1e-3,
}
_PUBLISHED: dict[str, Any] = {
    **TEXT,
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "head_dim": 0,
    "hidden_act": "silu",
    "index_kpool_compress": True,
    "index_share_for_mtp_iteration": True,
    "indexer_rope_interleave": True,
    "mhc": True,
    "mla_use_nope": True,
    "model_type": "glm5_next_text",
    "moe_router_dtype": "float32",
    "num_nextn_predict_layers": 0,
    "qk_head_dim": 22,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}

FAMILIES = {
    "glm5-next": Family(
        transformers.Glm5NextConfig(
            text_config=TEXT,
            vision_config={
                "depth": 1,
                "hidden_size": 8,
                "num_heads": 1,
                "image_size": 28,
                "intermediate_size": 8,
                "out_hidden_size": 32,
                "projection_intermediate_size": 8,
            },
            image_token_id=408,
            video_token_id=409,
            image_start_token_id=410,
            image_end_token_id=411,
            video_start_token_id=412,
            video_end_token_id=413,
        ),
        _tokenizer,
        published={"text_config": _PUBLISHED},
        weights=0.3,
        draw=1,
    ),
}
