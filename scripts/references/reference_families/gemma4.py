"""Gemma 4: small with shared keys and values, with experts, and the one without encoders.

Windows are shorter than the prompts, and soft caps low enough to affect the results. The last layer
that has keys and values is a full one, as in published models.
"""

from __future__ import annotations

from typing import Any

import transformers
from reference_vocabularies import make_gemma4_bpe

from reference_families import COMMON, GELU, Family, with_gelu_table

_WINDOW, _FULL = "sliding_attention", "full_attention"
_TEXT: dict[str, Any] = {
    **COMMON,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "global_head_dim": 20,
    "sliding_window": 7,
    "final_logit_softcapping": 0.7,
    "rope_parameters": {
        _FULL: {
            "rope_type": "proportional",
            "partial_rotary_factor": 0.35,  # 3 of 10 pairs
            "rope_theta": 1000000.0,
        },
        _WINDOW: {"rope_type": "default", "rope_theta": 100.0},
    },
}
# The table is looked up twice or more in each layer: with transformers' own GELU the differences
# are 4e-3 and 3e-3. Weights so small that these are 1e-3 would hide the effect of some norms.
_WEIGHTS: dict[str, Any] = {**GELU, "spread": 0.6, "adapt": with_gelu_table}
_VISION: dict[str, Any] = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "patch_size": 2,
    "position_embedding_size": 4,
}
_AUDIO: dict[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "subsampling_conv_channels": [4, 4],
    "output_proj_dims": 8,
    "use_clipped_linears": False,
}

FAMILIES = {
    "gemma4": Family(
        transformers.Gemma4Config(
            text_config={
                **_TEXT,
                # More than the tokenizer has.
                "vocab_size": 484,
                "vocab_size_per_layer_input": 484,
                "hidden_size_per_layer_input": 8,
                "intermediate_size": 40,
                "num_hidden_layers": 5,
                "num_kv_shared_layers": 2,
                "use_double_wide_mlp": True,
                "layer_types": [_WINDOW, _WINDOW, _FULL, _WINDOW, _FULL],
            },
            vision_config=_VISION,
            audio_config=_AUDIO,
        ),
        make_gemma4_bpe,
        **_WEIGHTS,
    ),
    "gemma4moe": Family(
        transformers.Gemma4TextConfig(
            **_TEXT,
            vocab_size=480,
            vocab_size_per_layer_input=480,
            hidden_size_per_layer_input=4,
            intermediate_size=40,
            num_hidden_layers=3,
            attention_k_eq_v=True,
            num_global_key_value_heads=1,
            enable_moe_block=True,
            num_experts=5,
            top_k_experts=3,
            moe_intermediate_size=24,
            layer_types=[_WINDOW, _WINDOW, _FULL],
        ),
        make_gemma4_bpe,
        **_WEIGHTS,
        draw=5,
        # As published; transformers now writes both for each layer.
        published={
            "per_layer_config": None,
            "global_head_dim": 20,
            "num_global_key_value_heads": 1,
        },
    ),
    "gemma4unified": Family(
        transformers.Gemma4UnifiedConfig(
            text_config={
                **_TEXT,
                "vocab_size": 480,
                "intermediate_size": 72,
                "num_hidden_layers": 3,
                "final_logit_softcapping": None,
                "layer_types": [_WINDOW, _WINDOW, _FULL],
            },
            vision_config={
                "mm_embed_dim": 8,
                "output_proj_dims": 8,
                "mm_posemb_size": 4,
                "patch_size": 1,
            },
            audio_config={"audio_embed_dim": 8},
        ),
        make_gemma4_bpe,
        **GELU,
        spread=0.6,
    ),
}
