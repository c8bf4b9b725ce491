"""Ling and Ring: the first generation (BailingMoe) and 2.0 (BailingMoeV2), in plain torch.

Sources: configuration_bailing_moe.py and modeling_bailing_moe.py in github.com/inclusionAI/Ling,
configuration_bailing_moe_v2.py and modeling_bailing_moe_v2.py in github.com/inclusionAI/Ling-V2.
"""

from __future__ import annotations

from typing import Any

import torch
import transformers
from plain_models import (
    Config,
    Plain,
    Shapes,
    Weights,
    attend,
    chosen,
    gated_block,
    gated_shapes,
    heads,
    rms_norm,
    rotate_halves,
    routed,
)
from reference_tokenizers import make_qwen_bpe
from torch import Tensor
from torch.nn.functional import linear

from reference_families import Family


def _attention(w: Weights, c: Config, at: str, x: Tensor) -> Tensor:
    """One matrix holds the rows of all heads of Q, then of K, then of V."""
    n, n_kv, d = c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"]
    bias = w.get(f"{at}query_key_value.bias")
    qkv = linear(x, w[f"{at}query_key_value.weight"], bias)
    q, k, v = (
        heads(part, part.shape[1] // d) for part in qkv.split([n * d, n_kv * d, n_kv * d], 1)
    )
    if c.get("use_qk_norm"):
        q = rms_norm(q, w[f"{at}query_layernorm.weight"], c["rms_norm_eps"])
        k = rms_norm(k, w[f"{at}key_layernorm.weight"], c["rms_norm_eps"])
    n_rotated = int(d * c.get("partial_rotary_factor", 1.0))
    q, k = (rotate_halves(part, c["rope_theta"], n_rotated) for part in (q, k))
    return linear(attend(q, k, v), w[f"{at}dense.weight"])


def _weights(w: Weights, c: Config, at: str, x: Tensor) -> Tensor:
    """Return each token's weight of each expert; zero for experts that are not used."""
    scores, n = linear(x, w[f"{at}gate.weight"]), c["num_experts_per_tok"]
    if "routed_scaling_factor" not in c:
        scores = scores.softmax(-1)
        used = chosen(scores, scores, n)
        return used / used.sum(-1, keepdim=True) if n > 1 and c["norm_topk_prob"] else used
    scores = scores.sigmoid()
    by = scores + w[f"{at}gate.expert_bias"]
    groups = by.reshape(len(x), c["n_group"], -1)
    best = groups.topk(2, -1).values.sum(-1).topk(c["topk_group"], -1).indices
    kept = torch.zeros(groups.shape[:2], dtype=torch.bool).scatter(1, best, value=True)
    used = chosen(scores, groups.masked_fill(~kept[..., None], float("-inf")).flatten(1), n)
    total = used.sum(-1, keepdim=True) + 1e-20 if n > 1 else 1.0
    return used / total * c["routed_scaling_factor"]


def logits(w: Weights, c: Config, ids: Tensor) -> Tensor:
    """Return the scores of all tokens; `norm_head` divides the output matrix by column norms."""
    epsilon = c["rms_norm_eps"]
    x = w["model.word_embeddings.weight"][ids]
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        normed = rms_norm(x, w[f"{at}input_layernorm.weight"], epsilon)
        x = x + _attention(w, c, f"{at}attention.", normed)
        normed = rms_norm(x, w[f"{at}post_attention_layernorm.weight"], epsilon)
        if layer < c["first_k_dense_replace"]:
            x = x + gated_block(w, f"{at}mlp.", normed)
            continue
        x = x + routed(w, f"{at}mlp.", normed, _weights(w, c, f"{at}mlp.", normed))
        x = x + gated_block(w, f"{at}mlp.shared_experts.", normed)
    head = w["lm_head.weight"]
    if c.get("norm_head"):
        head = head / (head.norm(dim=0, keepdim=True) + 1e-7)
    return linear(rms_norm(x, w["model.norm.weight"], epsilon), head)


def shapes(c: Config) -> Shapes:
    """Return the stored tensors, without layers for multi-token prediction."""
    hidden, d, n = c["hidden_size"], c["head_dim"], c["num_attention_heads"]
    qkv = (n + 2 * c["num_key_value_heads"]) * d
    found: Shapes = {
        "model.word_embeddings.weight": (c["vocab_size"], hidden),
        "model.norm.weight": (hidden,),
        "lm_head.weight": (c["vocab_size"], hidden),
    }
    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        found |= {
            f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
            f"{at}attention.query_key_value.weight": (qkv, hidden),
            f"{at}attention.dense.weight": (hidden, n * d),
        }
        if c.get("use_qkv_bias"):
            found[f"{at}attention.query_key_value.bias"] = (qkv,)
        if c.get("use_qk_norm"):
            found[f"{at}attention.query_layernorm.weight"] = (d,)
            found[f"{at}attention.key_layernorm.weight"] = (d,)
        if layer < c["first_k_dense_replace"]:
            found |= gated_shapes(f"{at}mlp.", hidden, c["intermediate_size"])
            continue
        ffn, experts = c["moe_intermediate_size"], c["num_experts"]
        found[f"{at}mlp.gate.weight"] = (experts, hidden)
        if "routed_scaling_factor" in c:
            found[f"{at}mlp.gate.expert_bias"] = (experts,)
        for expert in range(experts):
            found |= gated_shapes(f"{at}mlp.experts.{expert}.", hidden, ffn)
        shared = ffn * c["num_shared_experts"]
        found |= gated_shapes(f"{at}mlp.shared_experts.", hidden, shared)
    return found


_COMMON: dict[str, Any] = {
    "attention_dropout": 0.0,
    "embedding_dropout": 0.0,
    "eos_token_id": 402,
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.006,
    "max_position_embeddings": 512,
    "model_type": "bailing_moe",
    "norm_topk_prob": True,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "output_dropout": 0.0,
    "output_router_logits": False,
    "pad_token_id": 400,
    "rope_scaling": None,
    "rope_theta": 600000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_bias": False,
    "vocab_size": 416,
}
_FIRST: dict[str, Any] = {
    **_COMMON,
    "architectures": ["BailingMoeForCausalLM"],
    "first_k_dense_replace": 0,
    "head_dim": 10,
    "intermediate_size": 40,
    "moe_intermediate_size": 20,
    "norm_head": True,
    "norm_softmax": False,
    "num_attention_heads": 6,
    "num_experts": 5,
    "num_experts_per_tok": 2,
    "num_shared_experts": 2,
    "rms_norm_eps": 1e-5,
    "use_qkv_bias": True,
}
_SECOND: dict[str, Any] = {
    **_COMMON,
    "architectures": ["BailingMoeV2ForCausalLM"],
    "first_k_dense_replace": 1,
    "head_dim": 8,
    "intermediate_size": 72,
    "max_window_layers": 20,
    "moe_intermediate_size": 20,
    "moe_router_enable_expert_bias": True,
    "mtp_loss_scaling_factor": 0,
    "n_group": 3,
    "num_attention_heads": 4,
    "num_experts": 6,
    "num_experts_per_tok": 3,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 1,
    "num_shared_experts": 2,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6,
    "routed_scaling_factor": 2.5,
    "router_dtype": "fp32",
    "score_function": "sigmoid",
    "topk_group": 2,
    "use_qk_norm": True,
    "use_qkv_bias": False,
    "use_rmsnorm": True,
}
_NONE = transformers.PretrainedConfig()
FAMILIES = {
    "bailingmoe": Family(
        _NONE, make_qwen_bpe, norms=2.0, spread=0.6, model=Plain(_FIRST, shapes, logits)
    ),
    "bailingmoe2": Family(
        _NONE,
        make_qwen_bpe,
        model=Plain(_SECOND, shapes, logits, f32=("expert_bias",)),
    ),
}
