"""Llama, Mistral and Mixtral."""

from __future__ import annotations

import torch
import transformers
from reference_tokenizers import make_llama3_bpe, make_sentencepiece

from reference_families import COMMON, Family

LLAMA3_ROPE = {
    # Takes effect within the prompts' 24 tokens: of twelve frequencies one stays, two are blended,
    # and nine are divided by the factor.
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
    "rope_type": "llama3",
}

FAMILIES = {
    "llama-2": Family(
        transformers.LlamaConfig(
            **COMMON,
            vocab_size=512,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            intermediate_size=88,
            bos_token_id=1,
            eos_token_id=2,
        ),
        lambda folder: make_sentencepiece(folder, 512, []),
        dtype=torch.float16,
        published={
            "dtype": None,
            "rope_parameters": None,
            "rope_theta": 10000.0,
            "torch_dtype": "float16",
        },
    ),
    "llama-3.1": Family(
        transformers.LlamaConfig(
            **COMMON,
            vocab_size=448,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            intermediate_size=72,
            bos_token_id=442,
            eos_token_id=[443, 446, 447],
            rope_parameters={"rope_theta": 500000.0, **LLAMA3_ROPE},
        ),
        make_llama3_bpe,
        published={
            "dtype": None,
            "rope_parameters": None,
            "rope_scaling": LLAMA3_ROPE,
            "rope_theta": 500000.0,
            "torch_dtype": "bfloat16",
        },
    ),
    "internlm3": Family(
        transformers.LlamaConfig(
            **COMMON,
            vocab_size=400,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=24,
            intermediate_size=72,
            bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"rope_type": "dynamic", "factor": 6.0, "rope_theta": 50000.0},
        ),
        lambda folder: make_sentencepiece(folder, 400, ["<|im_start|>", "<|im_end|>"]),
        published={
            "architectures": ["InternLM3ForCausalLM"],
            "model_type": "internlm3",
            "bias": False,
            "qkv_bias": False,
        },
    ),
    "mistral": Family(
        transformers.MistralConfig(
            **COMMON,
            vocab_size=400,
            num_hidden_layers=2,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=40,
            intermediate_size=104,
            bos_token_id=1,
            eos_token_id=2,
            # Longer than the prompts: llama.cpp's Llama graph has no window.
            sliding_window=64,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        lambda folder: make_sentencepiece(folder, 400, ["[INST]", "[/INST]"]),
    ),
    "mixtral": Family(
        transformers.MixtralConfig(
            **COMMON,
            vocab_size=400,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            intermediate_size=40,
            num_local_experts=5,
            num_experts_per_tok=2,
            bos_token_id=1,
            eos_token_id=2,
            rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        ),
        lambda folder: make_sentencepiece(folder, 400, []),
    ),
}
