"""MiniMax M2."""

from __future__ import annotations

from pathlib import Path

import transformers
from reference_tokenizers import Encode, make_qwen_bpe

from reference_families import COMMON, Family


def _tokenizer(folder: Path) -> Encode:
    return make_qwen_bpe(folder, ("<think>", "</think>"))


FAMILIES = {
    "minimax-m2": Family(
        transformers.MiniMaxM2Config(
            **COMMON,
            vocab_size=416,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=20,
            intermediate_size=24,
            num_local_experts=7,
            num_experts_per_tok=3,
            bos_token_id=400,
            eos_token_id=402,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "partial_rotary_factor": 0.6,
            },
        ),
        _tokenizer,
        published={
            "attn_type_list": [1, 1, 1],
            "dtype": None,
            "layernorm_full_attention_beta": 1.0,
            "layernorm_linear_attention_beta": 1.0,
            "layernorm_mlp_beta": 1.0,
            "max_model_len": 512,
            "mlp_intermediate_size": 88,
            "mtp_transformer_layers": 1,
            "num_mtp_modules": 3,
            "qk_norm_type": "per_layer",
            "rope_parameters": None,
            "rope_theta": 5000000.0,
            "rotary_dim": 12,
            "scoring_func": "sigmoid",
            "shared_intermediate_size": 0,
            "shared_moe_mode": "sigmoid",
            "torch_dtype": "bfloat16",
            "use_mtp": True,
            "use_qk_norm": True,
            "use_routing_bias": True,
        },
    ),
}
