"""gpt-oss: sinks, biases, windows in every other layer, alternating gate and up rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from reference_tokenizers import make_qwen_bpe, write_json
from safetensors.torch import load_file, save_file

from reference_families import COMMON, Family

YARN = {
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "factor": 32.0,
    # Of eight frequencies four are blended and four divided. With this base, (201 / 2 pi)^2,
    # blending ranges from 0 to 4 whether or not its ends are rounded: llama.cpp always rounds them,
    # gpt-oss never.
    "original_max_position_embeddings": 201,
    "rope_type": "yarn",
    "truncate": False,
}

CONFIG: dict[str, Any] = {
    **COMMON,
    "vocab_size": 416,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 20,
    "num_local_experts": 5,
    "num_experts_per_tok": 3,
    "sliding_window": 6,
    "bos_token_id": 400,
    "eos_token_id": 402,
    "rope_parameters": {"rope_theta": 1023.37, **YARN},
}
# Blocks of 32 weights: two in each row of one matrix, three in each row of the other.
MXFP4_CONFIG = CONFIG | {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
MXFP4_CONFIG |= {"num_attention_heads": 3, "num_key_value_heads": 1, "num_local_experts": 4}
QUANTIZATION = {
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
    "quant_method": "mxfp4",
}


@dataclass(frozen=True)
class InMxfp4:
    """A gpt-oss with experts as published: rows of blocks of 4-bit floats, and their scales."""

    config: transformers.GptOssConfig

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return transformers.AutoModelForCausalLM.from_config(self.config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json with the published form of rope settings, and the weights."""
        model.save_pretrained(folder)
        stored = load_file(folder / "model.safetensors")
        for name in [n for n in stored if n.endswith(("gate_up_proj", "down_proj"))]:
            columns = stored.pop(name).float().numpy()
            blocks, scales = mxfp4(np.ascontiguousarray(columns.transpose(0, 2, 1)))
            stored[f"{name}_blocks"], stored[f"{name}_scales"] = blocks, scales
        save_file(stored, folder / "model.safetensors", {"format": "pt"})
        config = json.loads((folder / "config.json").read_text("utf-8"))
        rope = config.pop("rope_parameters")
        config |= {"rope_theta": rope.pop("rope_theta"), "rope_scaling": rope}
        write_json(folder / "config.json", config | {"quantization_config": QUANTIZATION})

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model as dequantized by transformers, exactly in bfloat16, then in float32."""
        return transformers.AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16,
            attn_implementation="eager",
            quantization_config=transformers.Mxfp4Config(dequantize=True),
        ).float()


def mxfp4(rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rows in the stored form of gpt-oss, quantized by the gguf package.

    rows:    float32 [experts, rows, columns]
    returns: uint8 [experts, rows, columns / 32, 16], pairs of neighbours with the first in the low
             half, and uint8 [experts, rows, columns / 32], exponents
    """
    found = gguf.quants.quantize(rows, gguf.GGMLQuantizationType.MXFP4)
    found = found.reshape(*rows.shape[:2], -1, 17)
    # In GGUF, byte i of a block has weight i in the low half and weight i + 16 in the high half.
    halves = found[..., 1:]
    codes = np.concatenate([halves & 15, halves >> 4], axis=-1)
    pairs = codes[..., ::2] | codes[..., 1::2] << 4
    scales = np.ascontiguousarray(found[..., 0])
    return torch.from_numpy(np.ascontiguousarray(pairs)), torch.from_numpy(scales)


FAMILIES = {
    "gpt-oss": Family(transformers.GptOssConfig(**CONFIG), make_qwen_bpe, draw=1),
    "gpt-oss-mxfp4": Family(
        transformers.GptOssConfig(**MXFP4_CONFIG),
        make_qwen_bpe,
        model=InMxfp4(transformers.GptOssConfig(**MXFP4_CONFIG)),
    ),
}
