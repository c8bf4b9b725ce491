"""Nemotron-H: dense with biases, and with experts of two matrices in a smaller space."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import Family

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "vocab_size": 448,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "ssm_state_size": 7,
    "mamba_num_heads": 12,
    "mamba_head_dim": 16,
    "n_groups": 3,
    "conv_kernel": 3,
    "bos_token_id": 442,
    "eos_token_id": 443,
    "pad_token_id": 0,
}
_PUBLISHED: dict[str, Any] = {
    "dtype": None,
    "layers_block_type": None,
    "torch_dtype": "bfloat16",
    "time_step_limit": [0.0, float("inf")],
}
_OF_EXPERTS = (
    "moe_intermediate_size moe_latent_size moe_shared_expert_intermediate_size"
    " moe_shared_expert_overlap mtp_layers_block_type n_group n_routed_experts n_shared_experts"
    " norm_topk_prob num_experts_per_tok num_nextn_predict_layers output_router_logits"
    " routed_scaling_factor topk_group"
)

FAMILIES = {
    # As Nemotron-H-8B and Nemotron Nano 2: no setting of experts.
    "nemotron-h": Family(
        transformers.NemotronHConfig(
            **_SHAPE,
            layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
            intermediate_size=72,
            mlp_bias=True,
        ),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            **dict.fromkeys(_OF_EXPERTS.split()),
            "hybrid_override_pattern": "M-*-",
            "num_hidden_layers": 4,
        },
    ),
    # As Nemotron 3: experts in a smaller space, chosen from groups.
    "nemotron-h-moe": Family(
        transformers.NemotronHConfig(
            **_SHAPE,
            layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
            n_routed_experts=6,
            n_shared_experts=1,
            num_experts_per_tok=3,
            n_group=2,
            topk_group=1,
            routed_scaling_factor=2.5,
            moe_intermediate_size=20,
            moe_latent_size=28,
            moe_shared_expert_intermediate_size=24,
        ),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            "hybrid_override_pattern": "ME*E",
            "num_hidden_layers": 4,
            "num_nextn_predict_layers": 1,
        },
    ),
}
