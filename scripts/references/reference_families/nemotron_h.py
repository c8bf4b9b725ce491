"""Nemotron-H: dense with biases, and with experts of two matrices in a smaller space."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import make_llama3_bpe, write_json
from safetensors.torch import load_file, save_file
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHMoE

from reference_families import Family

_SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "vocab_size": 448,
    "max_position_embeddings": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "ssm_state_size": 7,
    "mamba_num_heads": 12,
    "mamba_head_dim": 16,
    "n_groups": 3,
    "conv_kernel": 3,
    "bos_token_id": 442,
    "eos_token_id": 443,
    "pad_token_id": 0,
}
_PUBLISHED: dict[str, Any] = {
    "dtype": None,
    "layers_block_type": None,
    "torch_dtype": "bfloat16",
    "time_step_limit": [0.0, float("inf")],
}
_OF_EXPERTS = (
    "moe_intermediate_size moe_latent_size moe_shared_expert_intermediate_size"
    " moe_shared_expert_overlap mtp_layers_block_type n_group n_routed_experts n_shared_experts"
    " norm_topk_prob num_experts_per_tok num_nextn_predict_layers output_router_logits"
    " routed_scaling_factor topk_group"
)

_BLOCKS: list[dict[str, Any]] = [
    {"block_type": "mamba"},
    {"block_type": "moe", "moe_intermediate_size": 20, "num_experts_per_tok": 3},
    {"block_type": "attention"},
    {"block_type": "moe", "moe_intermediate_size": 36, "num_experts_per_tok": 2},
]
"""As in NVIDIA's configuration_nemotron_h_puzzle.py: settings of single layers."""


class _Puzzle:
    """A Nemotron-H whose layers have experts of different widths; transformers has no such class.

    NVIDIA's modelling code builds each layer with the settings of its block in place of the
    model's. So does this, with the layers of transformers' Nemotron-H.
    """

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        config = FAMILIES["nemotron-h-puzzle"].config
        model = transformers.AutoModelForCausalLM.from_config(config)
        for layer, block in zip(model.model.layers, _BLOCKS, strict=True):
            if block["block_type"] == "moe":
                own = copy.deepcopy(config)
                own.moe_intermediate_size = block["moe_intermediate_size"]
                own.num_experts_per_tok = block["num_experts_per_tok"]
                layer.mixer = NemotronHMoE(own)
        return model

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights, an expert's matrices one by one."""
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in model.state_dict().items():
            stack = re.fullmatch(r"(.*\.experts)\.(\w+_proj)", name)
            if not stack:
                tensors[name] = tensor.contiguous()
                continue
            for i, one in enumerate(tensor):
                tensors[f"{stack[1]}.{i}.{stack[2]}.weight"] = one.contiguous()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads(model.config.to_json_string())
        config |= {
            "architectures": ["NemotronHPuzzleForCausalLM"],
            "model_type": "nemotron_h_puzzle",
        }
        write_json(folder / "config.json", config)

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        stored = load_file(folder / "model.safetensors")
        model = self.make().to(torch.float32)
        tensors: dict[str, torch.Tensor] = {}
        for name, tensor in model.state_dict().items():
            stack = re.fullmatch(r"(.*\.experts)\.(\w+_proj)", name)
            if stack:
                parts = [stored[f"{stack[1]}.{i}.{stack[2]}.weight"] for i in range(len(tensor))]
                tensors[name] = torch.stack(parts).float()
            else:
                tensors[name] = stored[name].float()
        model.load_state_dict(tensors)
        model.set_attn_implementation("eager")
        return model


_EXPERTS: dict[str, Any] = {
    "layers_block_type": ["linear_attention", "moe", "full_attention", "moe"],
    "n_routed_experts": 6,
    "n_shared_experts": 1,
    "num_experts_per_tok": 3,
    "n_group": 2,
    "topk_group": 1,
    "routed_scaling_factor": 2.5,
    "moe_intermediate_size": 20,
    "moe_latent_size": 28,
    "moe_shared_expert_intermediate_size": 24,
}

FAMILIES = {
    # As Nemotron-H-8B and Nemotron Nano 2: no setting of experts.
    "nemotron-h": Family(
        transformers.NemotronHConfig(
            **_SHAPE,
            layers_block_type=["linear_attention", "mlp", "full_attention", "mlp"],
            intermediate_size=72,
            mlp_bias=True,
        ),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            **dict.fromkeys(_OF_EXPERTS.split()),
            "hybrid_override_pattern": "M-*-",
            "num_hidden_layers": 4,
        },
    ),
    # As Nemotron 3: experts in a smaller space, chosen from groups.
    "nemotron-h-moe": Family(
        transformers.NemotronHConfig(
            **_SHAPE,
            **_EXPERTS,
        ),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            "hybrid_override_pattern": "ME*E",
            "num_hidden_layers": 4,
            "num_nextn_predict_layers": 1,
        },
    ),
    "nemotron-h-puzzle": Family(
        transformers.NemotronHConfig(**_SHAPE, **_EXPERTS | {"n_group": 1}),
        make_llama3_bpe,
        published={
            **_PUBLISHED,
            "block_configs": _BLOCKS,
            "moe_intermediate_size": None,
            "num_experts_per_tok": None,
            "num_nextn_predict_layers": 1,
        },
        model=_Puzzle(),
    ),
}
