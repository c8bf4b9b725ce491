"""dots.llm1."""

from __future__ import annotations

import transformers
from reference_tokenizers import make_qwen_bpe

from reference_families import COMMON, Family

FAMILIES = {
    "dots1": Family(
        transformers.Dots1Config(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            intermediate_size=72,
            moe_intermediate_size=20,
            n_routed_experts=8,
            num_experts_per_tok=3,
            n_shared_experts=2,
            n_group=2,
            topk_group=1,
            first_k_dense_replace=1,
            norm_topk_prob=True,
            routed_scaling_factor=2.5,
            max_window_layers=62,
            sliding_window=None,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        make_qwen_bpe,
        published={
            "dtype": None,
            "layer_types": None,
            "moe_layer_freq": 1,
            "rope_parameters": None,
            "rope_scaling": None,
            "rope_theta": 1000000.0,
            "scoring_func": "noaux_tc",
            "torch_dtype": "bfloat16",
            "use_sliding_window": False,
        },
    ),
}
