"""MiniCPM (1, 2, 4) in plain torch, and MiniCPM3.

Source of the former: configuration_minicpm.py and modeling_minicpm.py of openbmb/MiniCPM-2B and
MiniCPM4, which also have LongRoPE.
"""

from __future__ import annotations

import math
from typing import Any

import transformers
from plain_models import (
    Config,
    Plain,
    Shapes,
    Weights,
    attend,
    gated_block,
    gated_shapes,
    heads,
    rms_norm,
    rotate_halves,
)
from reference_tokenizers import make_sentencepiece
from torch import Tensor, tensor
from torch.nn.functional import linear

from reference_families import COMMON, Family


def _magnitude(c: Config) -> float:
    original = c["rope_scaling"]["original_max_position_embeddings"]
    return math.sqrt(1 + math.log(c["max_position_embeddings"] / original) / math.log(original))


def logits(w: Weights, c: Config, ids: Tensor) -> Tensor:
    """Return the scores of all tokens: a Llama with scales at three places."""
    epsilon, n = c["rms_norm_eps"], c["num_attention_heads"]
    factors = tensor(c["rope_scaling"]["short_factor"])  # of the prompts' length
    x = w["model.embed_tokens.weight"][ids] * c["scale_emb"]
    scale = c["scale_depth"] / math.sqrt(c["num_hidden_layers"])
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        normed = rms_norm(x, w[f"{at}input_layernorm.weight"], epsilon)

        def of(name: str, y: Tensor, at: str = at) -> Tensor:
            return linear(y, w[f"{at}self_attn.{name}_proj.weight"])

        q, k, v = (heads(of(p, normed), n if p == "q" else c["num_key_value_heads"]) for p in "qkv")
        theta = c["rope_theta"]
        q, k = (rotate_halves(p, theta, factors=factors) * _magnitude(c) for p in (q, k))
        x = x + of("o", attend(q, k, v)) * scale
        normed = rms_norm(x, w[f"{at}post_attention_layernorm.weight"], epsilon)
        x = x + gated_block(w, f"{at}mlp.", normed) * scale
    x = rms_norm(x, w["model.norm.weight"], epsilon)
    return linear(x * c["dim_model_base"] / c["hidden_size"], w["model.embed_tokens.weight"])


def shapes(c: Config) -> Shapes:
    """Return the stored tensors; the embedding is the output matrix."""
    hidden = c["hidden_size"]
    kv = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    found: Shapes = {
        "model.embed_tokens.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
    }
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= gated_shapes(f"{at}mlp.", hidden, c["intermediate_size"])
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{at}{norm}.weight"] = (hidden,)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            found[f"{at}self_attn.{name}_proj.weight"] = (rows, hidden)
    return found


_CONFIG: dict[str, Any] = {
    "architectures": ["MiniCPMForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "dim_model_base": 20,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.1,
    "intermediate_size": 72,
    "max_position_embeddings": 512,
    "model_type": "minicpm",
    "mup_denominator": 32,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {
        "rope_type": "longrope",
        "long_factor": [1.1, 2.3, 5.9, 17.0],
        "short_factor": [1.0, 1.2, 1.7, 2.9],
        "original_max_position_embeddings": 512,
    },
    "rope_theta": 10000.0,
    "scale_depth": 1.4,
    "scale_emb": 12,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 480,
}


def _tokenizer(folder: Any) -> Any:
    return make_sentencepiece(folder, 480, [])


FAMILIES = {
    "minicpm": Family(
        transformers.PretrainedConfig(), _tokenizer, model=Plain(_CONFIG, shapes, logits)
    ),
    "minicpm3": Family(
        transformers.MiniCPM3Config(
            **COMMON | {"rms_norm_eps": 1e-6},
            vocab_size=480,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=72,
            kv_lora_rank=28,
            q_lora_rank=20,
            qk_nope_head_dim=14,
            qk_rope_head_dim=8,
            v_head_dim=10,
            bos_token_id=1,
            eos_token_id=2,
            rope_parameters={
                "rope_type": "longrope",
                "rope_theta": 10000.0,
                "long_factor": [1.1, 2.3, 5.9, 17.0],
                "short_factor": [1.0, 1.2, 1.7, 2.9],
                "original_max_position_embeddings": 512,
                "attention_factor": 1.1,
            },
        ),
        _tokenizer,
        # The logits are eight times as large as those of other families.
        embedding=0.04,
        published={"num_key_value_heads": 4},
    ),
}
