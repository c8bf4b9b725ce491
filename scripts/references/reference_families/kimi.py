"""Kimi-Linear: delta attention with a decay per channel, latent attention without positions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from reference_tokenizers import make_qwen_bpe
from safetensors.torch import load_file, save_file

from reference_families import COMMON, Family

_LINEAR = transformers.KimiLinearConfig(
    **COMMON,
    intermediate_size=100,
    moe_intermediate_size=28,
    vocab_size=416,
    num_hidden_layers=3,
    # As published, the heads of both kinds of attention are equally many.
    num_attention_heads=3,
    num_key_value_heads=3,
    kv_lora_rank=28,
    qk_nope_head_dim=22,
    qk_rope_head_dim=6,
    v_head_dim=14,
    layer_types=["linear_attention", "full_attention", "linear_attention"],
    mlp_layer_types=["dense", "sparse", "sparse"],
    n_shared_experts=2,
    num_local_experts=6,
    num_experts_per_tok=3,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=2.446,
    norm_topk_prob=True,
    linear_head_dim=20,
    linear_num_heads=3,
    linear_conv_kernel_dim=4,
    bos_token_id=400,
    eos_token_id=402,
    pad_token_id=0,
)


@dataclass(frozen=True)
class _AsPublished:
    """A Kimi-Linear saved with the published names of dense layers, which transformers renames."""

    config: transformers.KimiLinearConfig

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return transformers.KimiLinearForCausalLM(self.config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights."""
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        dense = "block_sparse_moe.gate_proj", "block_sparse_moe.up_proj"
        stored = {
            name.replace("block_sparse_moe", "mlp")
            if any(part in name for part in (*dense, "block_sparse_moe.down_proj"))
            else name: x
            for name, x in load_file(path).items()
        }
        save_file(stored, path, {"format": "pt"})

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        return transformers.KimiLinearForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )


FAMILIES = {
    "kimi-linear": Family(
        _LINEAR,
        make_qwen_bpe,
        published={
            "attention_bias": None,
            "first_k_dense_replace": 1,
            "head_dim": 11,
            "layer_types": None,
            "linear_attn_config": {
                "full_attn_layers": [2],
                "head_dim": 20,
                "kda_layers": [1, 3],
                "num_heads": 3,
                "short_conv_kernel_size": 4,
            },
            "linear_conv_kernel_dim": None,
            "linear_head_dim": None,
            "linear_num_heads": None,
            "mla_use_nope": True,
            "mlp_layer_types": None,
            "moe_layer_freq": 1,
            "moe_router_activation_func": "sigmoid",
            "num_nextn_predict_layers": 0,
            "qk_head_dim": None,
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "use_grouped_topk": True,
        },
        model=_AsPublished(_LINEAR),
    ),
}
