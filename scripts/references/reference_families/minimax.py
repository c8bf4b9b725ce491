"""MiniMax M2 and M3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import Encode, make_qwen_bpe
from transformers.models.minimax_m3_vl import modeling_minimax_m3_vl

from reference_families import COMMON, Family

# The indexer chooses two blocks of four tokens, one of which is the last.
_M3_SPARSE = [0, 1, 1]
_M3_TEXT: dict[str, Any] = {
    **COMMON,
    "vocab_size": 416,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "rotary_dim": 12,
    "dense_intermediate_size": 56,
    "intermediate_size": 24,
    "shared_intermediate_size": 24,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "index_n_heads": 2,
    "index_head_dim": 18,
    "index_block_size": 4,
    "index_topk_blocks": 2,
    "index_local_blocks": 1,
    "layer_types": [("full_attention", "minimax_m3_sparse")[s] for s in _M3_SPARSE],
    "mlp_layer_types": [("dense", "sparse")[s] for s in _M3_SPARSE],
    "bos_token_id": 400,
    "eos_token_id": 402,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 5000000.0,
        "partial_rotary_factor": 0.6,
    },
}
_M3_VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}


def _half(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def _in_halves(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float
) -> torch.Tensor:
    """Return causal attention of one head, with queries, keys, values and sums of half-floats.

    query, key, value: float32 [n_tokens, n_per_head]
    """
    query, key, value = _half(query), _half(key), _half(value)
    rows: list[torch.Tensor] = []
    for i, q in enumerate(query):
        scores = (key[: i + 1] @ q) * scale
        best, total, found = torch.tensor(-torch.inf), torch.tensor(0.0), torch.zeros(len(q))
        for score, v in zip(scores, value, strict=False):
            weight = torch.tensor(1.0)
            if score > best:
                shrink = torch.exp(best - score)
                best, total, found = score, total * shrink, _half(found * shrink)
            else:
                weight = torch.exp(score - best)
            total = total + weight
            # In one step, as a processor multiplies and adds.
            found = _half((found.double() + v.double() * weight.double()).float())
        rows.append(found / total)
    return torch.stack(rows)


def _as_llama_cpp(_: transformers.PreTrainedModel) -> None:
    """Compute layers without an indexer as llama.cpp's fused attention does on CPU, in halves.

    It has sparse attention only where attention is fused, and that is a setting of all layers.
    """
    exact = modeling_minimax_m3_vl.eager_attention_forward

    def attention(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *more: Any,
        **named: Any,
    ) -> tuple[torch.Tensor, Any]:
        if module.indexer is not None:
            return exact(module, query, key, value, *more, **named)
        n = module.num_key_value_groups
        heads = [
            _in_halves(q, key[0, head // n], value[0, head // n], module.scaling)
            for head, q in enumerate(query[0])
        ]
        return torch.stack(heads, dim=1)[None], None

    modeling_minimax_m3_vl.eager_attention_forward = attention


def _published_m3() -> dict[str, Any]:
    """Return the settings of the language model as published models have them."""
    names = {"rope_parameters", "layer_types", "mlp_layer_types"}
    kept = {k: v for k, v in _M3_TEXT.items() if k not in names and not k.startswith("index_")}
    return {
        **kept,
        "attention_output_gate": False,
        "hidden_act": "swigluoai",
        "model_type": "minimax_m3_vl_text",
        "moe_layer_freq": _M3_SPARSE,
        "n_shared_experts": 1,
        "num_mtp_modules": 7,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.6,
        "qk_norm_type": "per_head",
        "rope_theta": 5000000.0,
        "routed_scaling_factor": 2.0,
        "scoring_func": "sigmoid",
        "sparse_attention_config": {
            "sparse_attention_freq": _M3_SPARSE,
            "sparse_block_size": 4,
            "sparse_disable_index_value": _M3_SPARSE,
            "sparse_index_dim": 18,
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_num_index_heads": 2,
            "sparse_score_type": "max",
            "sparse_topk_blocks": 2,
            "use_sparse_attention": True,
        },
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_gemma_norm": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
    }


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
    "minimax-m3": Family(
        transformers.MiniMaxM3VLConfig(
            text_config=_M3_TEXT,
            vision_config=_M3_VISION,
            projector_hidden_size=16,
        ),
        _tokenizer,
        norms=0.0,
        published={"text_config": _published_m3()},
        spread=0.6,
        adapt=_as_llama_cpp,
        draw=3,
    ),
}
