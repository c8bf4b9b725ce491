"""SmolLM3, AFM, Apertus, Seed-OSS, Exaone 4 and MoE, Nemotron-4, Hunyuan: relatives of Llama."""

from __future__ import annotations

from typing import Any

import transformers
from reference_tokenizers import make_llama3_bpe, make_qwen_bpe

from reference_families import COMMON, Family

_SHAPE: dict[str, Any] = {
    **COMMON,
    "vocab_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 88,
    "bos_token_id": 442,
    "eos_token_id": 443,
    "pad_token_id": 0,
}
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 77000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_KINDS = ["sliding_attention"] * 3 + ["full_attention"]

FAMILIES = {
    # The fourth of five layers has no rotary embeddings.
    "smollm3": Family(
        transformers.SmolLM3Config(
            **{**_SHAPE, "num_hidden_layers": 5, "intermediate_size": 40},
            rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        ),
        make_llama3_bpe,
        published={"dtype": None, "torch_dtype": "bfloat16"},
    ),
    "arcee": Family(
        transformers.ArceeConfig(**_SHAPE, head_dim=12, rope_parameters=_LLAMA3),
        make_llama3_bpe,
    ),
    # The activation squares, so that larger weights would make attention small beside the MLP.
    "apertus": Family(
        transformers.ApertusConfig(**_SHAPE, attention_bias=True, rope_parameters=_LLAMA3),
        make_llama3_bpe,
        weights=0.16,
        norms=1.8,
    ),
    "seed-oss": Family(
        transformers.SeedOssConfig(
            **_SHAPE,
            head_dim=12,
            rope_parameters={"rope_type": "default", "rope_theta": 1e7},
        ),
        make_llama3_bpe,
        published={"dtype": None, "rope_parameters": None, "rope_theta": 1e7},
    ),
    # As the 1.2B, without windows, and as the 32B, which llama.cpp recognises by its 64 layers.
    "exaone4": Family(
        transformers.Exaone4Config(
            **{**_SHAPE, "tie_word_embeddings": True},
            sliding_window=None,
            layer_types=["full_attention"] * 2,
            rope_parameters=_LLAMA3,
        ),
        make_llama3_bpe,
        published={"sliding_window_pattern": None},
    ),
    "exaone4-64": Family(
        transformers.Exaone4Config(
            **{
                **_SHAPE,
                "hidden_size": 16,
                "intermediate_size": 8,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "num_hidden_layers": 64,
            },
            sliding_window=7,
            layer_types=(_KINDS * 16)[1:] + _KINDS[:1],
            rope_parameters=_LLAMA3,
        ),
        make_llama3_bpe,
        published={"sliding_window_pattern": "LLLG"},
        weights=0.2,
    ),
    "exaone-moe": Family(
        transformers.ExaoneMoeConfig(
            **{**_SHAPE, "num_hidden_layers": 4},
            head_dim=12,
            sliding_window=7,
            layer_types=["full_attention", "sliding_attention"] * 2,
            moe_intermediate_size=24,
            num_experts=6,
            num_experts_per_tok=2,
            num_shared_experts=2,
            n_group=3,
            topk_group=2,
            rope_parameters=_LLAMA3,
        ),
        make_llama3_bpe,
    ),
    "nemotron": Family(
        transformers.NemotronConfig(
            **{k: v for k, v in _SHAPE.items() if k != "rms_norm_eps"},
            norm_eps=1e-5,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 50000.0,
                "partial_rotary_factor": 0.75,
            },
        ),
        make_llama3_bpe,
        weights=0.16,
    ),
    "hunyuan": Family(
        transformers.HunYuanDenseV1Config(
            **{**_SHAPE, "max_position_embeddings": 32768},
            head_dim=12,
            tie_word_embeddings=True,
            rope_parameters={
                "rope_type": "dynamic",
                "rope_theta": 10000.0,
                "alpha": 50.0,
                "factor": 1.0,
            },
        ),
        make_qwen_bpe,
        published={
            "dtype": None,
            "eod_token_id": 402,
            "rope_parameters": None,
            "rope_scaling": {
                "alpha": 50.0,
                "beta_fast": 32,
                "beta_slow": 1,
                "factor": 1.0,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "type": "dynamic",
            },
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            "use_cla": False,
            "use_qk_norm": True,
        },
    ),
}
