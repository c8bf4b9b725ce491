"""Gemma 3n, small as the constants of llama.cpp's graph allow: all its layers are sparse."""

from __future__ import annotations

import torch
import transformers
from reference_vocabularies import make_gemma_bpe
from transformers.models.gemma3n.modeling_gemma3n import Gemma3nTextMLP

from reference_families import COMMON, Family, with_gelu_table


def _sparse(module: Gemma3nTextMLP, inputs: torch.Tensor) -> torch.Tensor:
    """Cut activations as llama.cpp does: the variance is divided by one less than their number."""
    normal = torch.distributions.normal.Normal(0, 1)
    factor = normal.icdf(torch.tensor(module.activation_sparsity, dtype=torch.float32))
    cut = inputs.mean(-1, keepdim=True) + factor * inputs.std(-1, keepdim=True, unbiased=True)
    return torch.nn.functional.relu(inputs - cut)


def _as_llama_cpp(model: transformers.PreTrainedModel) -> None:
    with_gelu_table(model)
    Gemma3nTextMLP._gaussian_topk = _sparse


FAMILIES = {
    "gemma3n": Family(
        transformers.Gemma3nTextConfig(
            **{**COMMON, "hidden_size": 16},
            bos_token_id=2,
            eos_token_id=1,
            pad_token_id=0,
            vocab_size=452,
            vocab_size_per_layer_input=44,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=12,
            intermediate_size=72,
            sliding_window=7,
            num_kv_shared_layers=0,
            activation_sparsity_pattern=[0.95] * 4,
            layer_types=["sliding_attention", "full_attention"] * 2,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
            },
        ),
        make_gemma_bpe,
        draw=3,
        weights=0.2,
        embedding=0.07,
        spread=0.6,
        adapt=_as_llama_cpp,
    ),
}
