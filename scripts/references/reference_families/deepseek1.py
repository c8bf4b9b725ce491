"""DeepSeek-MoE and DeepSeek-OCR's text model: a Llama with DeepSeek-V2's experts.

transformers has no class for the former, and none with an output matrix for the latter.

In the published modelling code, attention, norms and dense layers are Llama's. Its experts are
DeepSeek-V2's with `topk_method` greedy: a softmax over all experts, of which the best are used with
unchanged weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import make_llama3_bpe, write_json
from safetensors.torch import load_file, save_file
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

from reference_families import COMMON, Family

CONFIG: dict[str, Any] = {
    **COMMON,
    "bos_token_id": 442,
    "eos_token_id": 443,
    "hidden_act": "silu",
    "intermediate_size": 72,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "vocab_size": 448,
}
EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 20,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "norm_topk_prob": False,
    "num_experts_per_tok": 3,
}
PUBLISHED: dict[str, Any] = {
    "architectures": ["DeepseekForCausalLM"],
    "attention_bias": False,
    "first_k_dense_replace": 1,
    "model_type": "deepseek",
    "moe_layer_freq": 1,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "scoring_func": "softmax",
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


@dataclass(frozen=True)
class LlamaWithExperts:
    """A Llama with experts in all layers but the first; published: further config.json entries."""

    published: dict[str, Any]
    config: dict[str, Any] = field(default_factory=lambda: CONFIG)

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        llama = transformers.LlamaConfig(**self.config, attn_implementation="eager")
        experts = transformers.DeepseekV2Config(**COMMON, **EXPERTS, topk_method="greedy")
        model = transformers.LlamaForCausalLM(llama)
        for layer in model.model.layers[self.published["first_k_dense_replace"] :]:
            layer.mlp = DeepseekV2Moe(experts)
        return model

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights, each expert separately."""
        stored: dict[str, torch.Tensor] = {}
        for name, x in model.state_dict().items():
            block, found, matrix = name.partition("experts.")
            if not found or "shared" in block:
                stored[name] = x.contiguous()
                continue
            for expert, weights in enumerate(x):
                parts = (
                    {
                        "gate_proj": weights[: len(weights) // 2],
                        "up_proj": weights[len(weights) // 2 :],
                    }
                    if matrix == "gate_up_proj"
                    else {matrix: weights}
                )
                for part, rows in parts.items():
                    stored[f"{block}experts.{expert}.{part}.weight"] = rows.clone()
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        write_json(folder / "config.json", self.written())

    def written(self) -> dict[str, Any]:
        """Return config.json."""
        return dict(sorted((self.config | EXPERTS | self.published).items()))

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32."""
        stored = load_file(folder / "model.safetensors")
        model = self.make()
        found: dict[str, torch.Tensor] = {}
        for name in model.state_dict():
            block, is_stack, matrix = name.partition("experts.")
            if not is_stack or "shared" in block:
                found[name] = stored[name]
                continue
            parts = ("gate_proj", "up_proj") if matrix == "gate_up_proj" else (matrix,)
            found[name] = torch.stack(
                [
                    torch.cat([stored[f"{block}experts.{n}.{part}.weight"] for part in parts])
                    for n in range(EXPERTS["n_routed_experts"])
                ]
            )
        model.load_state_dict(found)
        return model.float()


@dataclass(frozen=True)
class InOcr(LlamaWithExperts):
    """The text model of a DeepSeek-OCR."""

    def written(self) -> dict[str, Any]:
        """Return config.json, with the text model's settings in a separate object."""
        text = super().written()
        text["architectures"] = ["DeepseekV2ForCausalLM"]
        return {
            "architectures": ["DeepseekOCR2ForCausalLM"],
            "language_config": text,
            "model_type": "deepseek_vl_v2",
            "torch_dtype": "bfloat16",
        }


OCR_CONFIG = CONFIG | {"num_key_value_heads": 4, "rms_norm_eps": 1e-6, "num_hidden_layers": 2}
OCR_PUBLISHED = PUBLISHED | {
    "kv_lora_rank": None,
    "n_group": 1,
    "q_lora_rank": None,
    "qk_nope_head_dim": 0,
    "qk_rope_head_dim": 0,
    "topk_group": 1,
    "topk_method": "greedy",
    "use_mla": False,
    "v_head_dim": 0,
}

FAMILIES = {
    "deepseek": Family(
        transformers.LlamaConfig(**CONFIG),
        make_llama3_bpe,
        model=LlamaWithExperts(PUBLISHED),
        draw=1,
    ),
    "deepseek-ocr": Family(
        transformers.LlamaConfig(**OCR_CONFIG),
        make_llama3_bpe,
        model=InOcr(OCR_PUBLISHED, OCR_CONFIG),
    ),
}
