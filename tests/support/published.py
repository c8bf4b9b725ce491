"""Published models: their config.json and their number of weights.

The configurations contain only keys that determine shapes and routing. The counts are those on the
model pages of Hugging Face (for safetensors), without prediction layers and scales of weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from unread import Unread

from dynquant.arch.base import Architecture, Model, ModelTensor
from dynquant.arch.load import describe

Config = dict[str, Any]

_YARN = {
    "beta_fast": 32,
    "beta_slow": 1,
    "factor": 40,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "original_max_position_embeddings": 4096,
    "type": "yarn",
}
_FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
_USUAL: Config = {
    "hidden_act": "silu",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

DEEPSEEK_R1: Config = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 3,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "model_type": "deepseek_v3",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 8,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 128,
    "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": _FP8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": _YARN,
    "rope_theta": 10000,
    "routed_scaling_factor": 2.5,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_group": 4,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "v_head_dim": 128,
    "vocab_size": 129280,
}

KIMI_K2: Config = {
    **DEEPSEEK_R1,
    "first_k_dense_replace": 1,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "n_group": 1,
    "n_routed_experts": 384,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "rope_scaling": {**_YARN, "beta_fast": 1.0, "factor": 32.0},
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "topk_group": 1,
    "vocab_size": 163840,
}

DEEPSEEK_V2_LITE: Config = {
    **_USUAL,
    "architectures": ["DeepseekV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "kv_lora_rank": 512,
    "max_position_embeddings": 163840,
    "moe_intermediate_size": 1408,
    "n_group": 1,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rope_scaling": {**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.0,
    "scoring_func": "softmax",
    "topk_group": 1,
    "topk_method": "greedy",
    "v_head_dim": 128,
    "vocab_size": 102400,
}

_QWEN3_MOE: Config = {
    **_USUAL,
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
}
QWEN3_235B: Config = {
    **_QWEN3_MOE,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_hidden_layers": 94,
}
QWEN3_30B: Config = {
    **_QWEN3_MOE,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_hidden_layers": 48,
}

GLM_4_5: Config = {
    **_USUAL,
    "architectures": ["Glm4MoeForCausalLM"],
    "attention_bias": True,
    "first_k_dense_replace": 3,
    "head_dim": 128,
    "hidden_size": 5120,
    "intermediate_size": 12288,
    "moe_intermediate_size": 1536,
    "n_group": 1,
    "n_routed_experts": 160,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 96,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 92,
    "num_key_value_heads": 8,
    "num_nextn_predict_layers": 1,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
    "use_qk_norm": True,
    "vocab_size": 151552,
}

MIXTRAL_8X7B: Config = {
    **_USUAL,
    "architectures": ["MixtralForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_experts_per_tok": 2,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 32000,
}

GPT_OSS_120B: Config = {
    **_USUAL,
    "architectures": ["GptOssForCausalLM"],
    "attention_bias": True,
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "layer_types": ["sliding_attention", "full_attention"] * 18,
    "num_attention_heads": 64,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "num_local_experts": 128,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "original_max_position_embeddings": 4096,
        "rope_type": "yarn",
        "truncate": False,
    },
    "rope_theta": 150000,
    "sliding_window": 128,
    "swiglu_limit": 7.0,
    "vocab_size": 201088,
}

OLMOE_7B: Config = {
    **_USUAL,
    "architectures": ["OlmoeForCausalLM"],
    "attention_bias": False,
    "hidden_size": 2048,
    "intermediate_size": 1024,
    "max_position_embeddings": 4096,
    "norm_topk_prob": False,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "num_key_value_heads": 16,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "vocab_size": 50304,
}

LLAMA_3_1_8B: Config = {
    **_USUAL,
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "vocab_size": 128256,
}
LLAMA_3_1_70B: Config = {
    **LLAMA_3_1_8B,
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
}
MISTRAL_7B: Config = {
    **LLAMA_3_1_8B,
    "architectures": ["MistralForCausalLM"],
    "max_position_embeddings": 32768,
    "rope_theta": 10000.0,
    "vocab_size": 32000,
}
QWEN3_4B: Config = {
    **_USUAL,
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
QWEN2_5_0_5B: Config = {
    **_USUAL,
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}

MIXTURES: dict[str, Config] = {
    "DeepSeek-R1": DEEPSEEK_R1,
    "Kimi-K2": KIMI_K2,
    "DeepSeek-V2-Lite": DEEPSEEK_V2_LITE,
    "Qwen3-235B-A22B": QWEN3_235B,
    "Qwen3-30B-A3B": QWEN3_30B,
    "GLM-4.5": GLM_4_5,
    "Mixtral-8x7B": MIXTRAL_8X7B,
    "gpt-oss-120b": GPT_OSS_120B,
    "OLMoE-7B": OLMOE_7B,
}
DENSE: dict[str, Config] = {
    "Llama-3.1-8B": LLAMA_3_1_8B,
    "Llama-3.1-70B": LLAMA_3_1_70B,
    "Mistral-7B": MISTRAL_7B,
    "Qwen3-4B": QWEN3_4B,
    "Qwen2.5-0.5B": QWEN2_5_0_5B,
}
MODELS = MIXTURES | DENSE

WEIGHTS = {
    "DeepSeek-R1": 671_026_419_200,
    "Kimi-K2": 1_026_408_232_448,
    "DeepSeek-V2-Lite": 15_706_484_224,
    "Qwen3-235B-A22B": 235_093_634_560,
    "Qwen3-30B-A3B": 30_532_122_624,
    "GLM-4.5": 352_797_829_024,
    "Mixtral-8x7B": 46_702_792_704,
    "gpt-oss-120b": 116_829_156_672,
    "OLMoE-7B": 6_919_161_856,
    "Llama-3.1-8B": 8_030_261_248,
    "Llama-3.1-70B": 70_553_706_496,
    "Mistral-7B": 7_241_732_096,
    "Qwen3-4B": 4_022_468_096,
    "Qwen2.5-0.5B": 494_032_768,
}

SHARDS = {"DeepSeek-R1": 163, "Kimi-K2": 61}
"""Number of files of each published checkpoint that scripts make in full."""


def model_of(config: Config) -> Model:
    """Return names and shapes of the model of a configuration, without prediction layers."""
    architecture = describe(config, "config.json")
    tensors = tuple(_tensors(architecture))
    return Model(architecture.name, architecture.keys, tensors, {})


def _tensors(architecture: Architecture) -> Iterator[ModelTensor]:
    tied = architecture.tied[:1] if architecture.tied else ()
    for row in architecture.rows:
        if row.stored in tied:
            continue
        shape = tuple(architecture.sizes[size] for size in row.shape.split())
        if found := re.search(r"\{(\w+)\}", row.stored):
            shape = (architecture.n_parts(found[1]), *shape)
        layers = range(architecture.n_layers) if row.layers is None else row.layers
        for layer in layers if "{}" in row.name else (0,):
            if layer < architecture.n_layers:
                name = row.name.replace("{}", str(layer))
                via = architecture.via_of(row)
                yield ModelTensor(name, via(Unread(shape)) if via else Unread(shape))
