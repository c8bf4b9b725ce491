"""Kimi-Linear, and Kimi-K3, for which transformers has no class (see reference_kimi_k3.py)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from gguf import GGMLQuantizationType, quants
from reference_kimi_k3 import KimiK3
from reference_tokenizers import make_qwen_bpe, write_json
from safetensors.torch import load_file, save_file

from reference_families import COMMON, Family
from reference_families.gpt_oss import mxfp4

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


_K3: dict[str, Any] = {
    **COMMON,
    "activation_situ_beta": 0.7,
    "activation_situ_linear_beta": 0.9,
    "architectures": ["KimiLinearForCausalLM"],
    "attn_res_block_size": 2,
    "first_k_dense_replace": 1,
    "hidden_act": "situ",
    "intermediate_size": 44,
    "kv_lora_rank": 28,
    "latent_moe_use_norm": True,
    "linear_attn_config": {
        "full_attn_layers": [2, 4],
        "gate_lower_bound": -2.3,
        "head_dim": 17,
        "kda_layers": [1, 3],
        "num_heads": 3,
        "short_conv_kernel_size": 4,
        "use_full_rank_gate": True,
    },
    "mla_use_nope": True,
    "mla_use_output_gate": True,
    "model_type": "kimi_linear",
    # Whole blocks of MXFP4.
    "moe_intermediate_size": 32,
    "routed_expert_hidden_size": 64,
    "moe_layer_freq": 1,
    "moe_renormalize": True,
    "moe_router_activation_func": "sigmoid",
    "num_attention_heads": 3,
    "num_expert_group": 1,
    "num_experts": 5,
    "num_experts_per_token": 2,
    "num_hidden_layers": 4,
    "num_key_value_heads": 3,
    "num_nextn_predict_layers": 0,
    "num_shared_experts": 2,
    "q_lora_rank": 20,
    "qk_nope_head_dim": 22,
    "qk_rope_head_dim": 6,
    "quantization_config": {
        "config_groups": {
            "group_0": {
                "format": "mxfp4-pack-quantized",
                "input_activations": None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": {
                    "actorder": None,
                    "block_structure": None,
                    "dynamic": False,
                    "group_size": 32,
                    "num_bits": 4,
                    "observer": "minmax",
                    "observer_kwargs": {},
                    "scale_dtype": "torch.uint8",
                    "strategy": "group",
                    "symmetric": True,
                    "type": "float",
                    "zp_dtype": None,
                },
            }
        },
        "format": "mxfp4-pack-quantized",
        "global_compression_ratio": None,
        "ignore": [
            "re:.*self_attn.*",
            "re:.*shared_experts.*",
            "re:.*mlp\\.(gate|up|gate_up|down)_proj.*",
            "re:.*lm_head.*",
            "re:.*vision_tower.*",
            "re:.*mm_projector.*",
        ],
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
    },
    "routed_scaling_factor": 1.7,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "use_grouped_topk": True,
    "v_head_dim": 14,
    "vocab_size": 416,
}


@dataclass(frozen=True)
class _K3InMxfp4:
    """A Kimi-K3 as published: experts in MXFP4, inside a model that sees."""

    config: dict[str, Any]

    def make(self) -> KimiK3:
        """Return the model with arbitrary weights."""
        return KimiK3(self.config)

    def save(self, model: KimiK3, folder: Path) -> None:
        """Write config.json and the weights."""
        stored: dict[str, torch.Tensor] = {}
        for name, x in model.state_dict().items():
            stored_name = f"language_model.{name}"
            if re.search(r"\.experts\.\d+\.", name):
                codes, scales = mxfp4(x.float().numpy()[None])
                stored[f"{stored_name}_packed"] = codes[0].flatten(1)
                stored[f"{stored_name}_scale"] = scales[0]
            elif name.endswith("A_log"):
                heads = self.config["num_attention_heads"]
                stored[stored_name] = torch.where(torch.arange(len(x)) < heads, x.float(), 0.0)
            else:
                stored[stored_name] = x
        stored["vision_tower.patch_embed.proj.weight"] = torch.ones(8, 3, 2, 2)
        stored["mm_projector.linear_1.weight"] = torch.ones(32, 8)
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        config = {
            "architectures": ["KimiK3ForConditionalGeneration"],
            "bos_token_id": 400,
            "dtype": "bfloat16",
            "eos_token_id": 402,
            "ignore_index": -100,
            "image_placeholder": "<|kimi_image_placeholder|>",
            "media_placeholder_token_id": 408,
            "model_type": "kimi_k3",
            "text_config": {**self.config, "bos_token_id": 400, "eos_token_id": 402},
            "tie_word_embeddings": False,
            "vision_config": {"patch_size": 2, "vt_hidden_size": 8},
        }
        write_json(folder / "config.json", config)

    def load(self, folder: Path) -> KimiK3:
        """Return the model with the weights of a folder in float32; gguf decodes the experts."""
        model, weights = KimiK3(self.config), {}
        stored = load_file(folder / "model.safetensors")
        for name, x in stored.items():
            short = name.removeprefix("language_model.")
            if short == name or name.endswith("_scale"):
                continue
            if not name.endswith("_packed"):
                weights[short] = x.float()
                continue
            scales = stored[name.replace("_packed", "_scale")]
            codes = torch.stack([x & 15, x >> 4], -1).view(*scales.shape, 32)
            halves = codes[..., :16] | codes[..., 16:] << 4
            blocks = torch.cat([scales[..., None], halves], -1).flatten(1).numpy()
            rows = quants.dequantize(blocks, GGMLQuantizationType.MXFP4)
            weights[short.removesuffix("_packed")] = torch.from_numpy(rows)
        model.load_state_dict(weights)
        return model


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
    "kimi-k3": Family(
        transformers.PretrainedConfig(),
        make_qwen_bpe,
        model=_K3InMxfp4(_K3),
        weights=0.2,
        by="scripts/references/reference_kimi_k3.py, written from a description of the"
        " published modelling code; transformers 5.24 has no class",
    ),
}
