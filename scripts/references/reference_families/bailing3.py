"""Ling 3: delta attention in most layers, latent attention with gates in the others, experts."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import Family

FAMILIES = {
    "bailingmoe3": Family(
        transformers.BailingHybridConfig(
            hidden_size=32,
            vocab_size=416,
            max_position_embeddings=512,
            rms_norm_eps=1e-6,  # that of the norms of Q and K in transformers
            num_hidden_layers=4,
            layer_group_size=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            head_dim=16,
            short_conv_kernel_size=4,
            kda_lower_bound=-3.0,
            kv_lora_rank=28,
            q_lora_rank=20,
            qk_nope_head_dim=14,
            qk_rope_head_dim=6,
            v_head_dim=10,
            intermediate_size=72,
            first_k_dense_replace=1,
            moe_intermediate_size=16,
            num_local_experts=6,
            num_experts_per_tok=3,
            n_shared_experts=1,
            n_group=3,
            topk_group=2,
            routed_scaling_factor=2.5,
            rope_theta=10000.0,
            num_mtp_layers=0,
            eos_token_id=402,
            pad_token_id=400,
        ),
        make_qwen_bpe,
        published={
            "architectures": ["BailingMoeV3ForCausalLM"],
            "dtype": None,
            "gated_attention_proj_granularity_type": "head_wise",
            "head_dim": 16,
            "layer_types": None,
            "linear_conv_kernel_dim": None,
            "linear_head_dim": None,
            "linear_num_heads": None,
            "max_position_embeddings": 512,
            "mlp_layer_types": None,
            "model_max_length": None,
            "moe_renormalize": None,
            "moe_router_enable_expert_bias": True,
            "moe_shared_expert_intermediate_size": 16,
            "n_group": 3,
            "no_kda_lora": True,
            "norm_topk_prob": True,
            "num_expert_group": None,
            "num_experts_per_tok": 3,
            "num_experts_per_token": None,
            "rope_interleave": True,
            "rope_parameters": None,
            "rope_scaling": None,
            "score_function": "sigmoid",
            "torch_dtype": "bfloat16",
            "use_qk_norm": True,
        },
    ),
}
