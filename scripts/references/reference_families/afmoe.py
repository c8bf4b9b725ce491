"""Trinity: windows with rope, full attention without, gates, experts chosen by sigmoids."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_llama3_bpe

from reference_families import COMMON, Family

FAMILIES = {
    "afmoe": Family(
        transformers.AfmoeConfig(
            **COMMON,
            vocab_size=448,
            num_hidden_layers=5,
            num_dense_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=12,
            intermediate_size=72,
            moe_intermediate_size=20,
            num_experts=5,
            num_experts_per_tok=3,
            num_shared_experts=2,
            route_scale=1.7,
            sliding_window=7,
            mup_enabled=True,
            bos_token_id=442,
            eos_token_id=443,
            rope_parameters={
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 2.0,
                "original_max_position_embeddings": 256,
            },
        ),
        make_llama3_bpe,
        published={
            "load_balance_coeff": 5e-05,
            "n_group": 1,
            "num_expert_groups": 1,
            "num_limited_groups": 1,
            "route_norm": True,
            "score_func": "sigmoid",
            "topk_group": 1,
        },
    ),
}
