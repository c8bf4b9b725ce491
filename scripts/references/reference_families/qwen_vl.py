"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3-Omni, with tiny other models."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import make_qwen_bpe, write_json
from safetensors.torch import load_file, save_file

from reference_families import COMMON, Family

_TEXT: dict[str, Any] = {
    **COMMON,
    "vocab_size": 416,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "bos_token_id": 400,
    "eos_token_id": 402,
}
_TOKENS: dict[str, Any] = {
    "image_token_id": 410,
    "video_token_id": 411,
    "vision_start_token_id": 412,
    "vision_end_token_id": 413,
}


def rope(*sections: int) -> dict[str, Any]:
    """Return the settings of positions: angles of each section by time, by row, or by column."""
    return {"rope_type": "default", "rope_theta": 1000000.0, "mrope_section": [*sections]}


def _without_epsilon(model: transformers.PreTrainedModel) -> None:
    """Compute norms as llama.cpp's qwen2vl does, which does not read their epsilon."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 0.0


_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 8,
    "out_hidden_size": 32,
    "num_heads": 1,
    "intermediate_size": 8,
    "num_position_embeddings": 4,
    "deepstack_visual_indexes": [0, 1],
}
_EXPERTS: dict[str, Any] = {
    **_TEXT,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 24,
    "num_hidden_layers": 3,
    "intermediate_size": 72,
    "moe_intermediate_size": 20,
    "num_experts": 5,
    "num_experts_per_tok": 3,
    "rope_parameters": rope(5, 4, 3),
}


class _OutputsLast:
    """A model whose stacks of experts have outputs last, as published.

    transformers reads both forms, and writes a new model with outputs first.
    """

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        config = FAMILIES["qwen3vlmoe"].config
        return transformers.Qwen3VLMoeForConditionalGeneration(config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights."""
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        stored = {
            name: t.transpose(1, 2).contiguous() if ".experts." in name else t
            for name, t in load_file(path).items()
        }
        save_file(stored, path, {"format": "pt"})

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        return transformers.Qwen3VLMoeForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )


@dataclass(frozen=True)
class Thinker:
    """The part of an Omni that thinks, in a checkpoint that names it as a part of the whole.

    model:      the class of the part
    config:     of the part
    whole:      the name of the class of the whole
    model_type: of the whole
    scaling:    further settings of rope_scaling
    """

    model: Any
    config: transformers.PretrainedConfig
    whole: str
    model_type: str
    scaling: dict[str, Any] = field(default_factory=dict)

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return self.model(self.config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights."""
        model.save_pretrained(folder)
        path = folder / "model.safetensors"
        stored = {f"thinker.{name}": tensor for name, tensor in load_file(path).items()}
        save_file(stored, path, {"format": "pt"})
        thinker = json.loads((folder / "config.json").read_text("utf-8"))
        text = thinker["text_config"]
        angles = text.pop("rope_parameters")
        text["rope_theta"] = angles.pop("rope_theta")
        text["rope_scaling"] = {**angles, **self.scaling}
        whole = {
            "architectures": [self.whole],
            "model_type": self.model_type,
            "enable_audio_output": True,
            "thinker_config": thinker,
        }
        write_json(folder / "config.json", whole)

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        thinker = json.loads((folder / "config.json").read_text("utf-8"))["thinker_config"]
        stored = load_file(folder / "model.safetensors")
        return self.model.from_pretrained(
            None,
            config=type(self.config)(**thinker),
            state_dict={name.removeprefix("thinker."): t for name, t in stored.items()},
            dtype=torch.float32,
            attn_implementation="eager",
        )


_OMNI = Thinker(
    transformers.Qwen3OmniMoeThinkerForConditionalGeneration,
    transformers.Qwen3OmniMoeThinkerConfig(
        text_config=_EXPERTS,
        vision_config=_VISION,
        audio_config={
            "num_mel_bins": 8,
            "encoder_layers": 1,
            "encoder_attention_heads": 1,
            "encoder_ffn_dim": 8,
            "d_model": 8,
            "output_dim": 32,
            "max_source_positions": 16,
            "downsample_hidden_size": 4,
        },
        image_token_id=410,
        video_token_id=411,
        audio_token_id=412,
    ),
    "Qwen3OmniMoeForConditionalGeneration",
    "qwen3_omni_moe",
    scaling={"interleaved": True, "mrope_interleaved": True},
)

FAMILIES = {
    "qwen2vl": Family(
        transformers.Qwen2VLConfig(
            text_config={
                **_TEXT,
                "num_hidden_layers": 3,
                "intermediate_size": 88,
                "rope_parameters": rope(1, 2, 1),
            },
            vision_config={"depth": 1, "embed_dim": 8, "hidden_size": 32, "num_heads": 1},
            tie_word_embeddings=True,
            **_TOKENS,
        ),
        make_qwen_bpe,
        adapt=_without_epsilon,
    ),
    "qwen2.5vl": Family(
        transformers.Qwen2_5_VLConfig(
            text_config={
                **_TEXT,
                "num_hidden_layers": 2,
                "intermediate_size": 72,
                "rope_parameters": rope(2, 1, 1),
            },
            vision_config={
                "depth": 1,
                "hidden_size": 8,
                "out_hidden_size": 32,
                "num_heads": 1,
                "intermediate_size": 8,
                "fullatt_block_indexes": [0],
            },
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        make_qwen_bpe,
        adapt=_without_epsilon,
        # As published: one set of settings for both models.
        published={
            **_TEXT,
            "text_config": None,
            "num_hidden_layers": 2,
            "intermediate_size": 72,
            "max_window_layers": 28,
            "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
            "rope_theta": 1000000.0,
            "sliding_window": 64,
            "use_sliding_window": False,
            "vision_token_id": 414,
        },
    ),
    "qwen3vl": Family(
        transformers.Qwen3VLConfig(
            text_config={
                **_TEXT,
                "num_attention_heads": 6,
                "num_key_value_heads": 3,
                "head_dim": 24,
                "num_hidden_layers": 3,
                "intermediate_size": 72,
                "rope_parameters": rope(5, 4, 3),
            },
            vision_config={
                "depth": 2,
                "hidden_size": 8,
                "out_hidden_size": 32,
                "num_heads": 1,
                "intermediate_size": 8,
                "num_position_embeddings": 4,
                "deepstack_visual_indexes": [0, 1],
            },
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        lambda folder: make_qwen_bpe(folder, ("<think>", "</think>")),
    ),
    "qwen3vlmoe": Family(
        transformers.Qwen3VLMoeConfig(
            text_config=_EXPERTS,
            vision_config=_VISION,
            tie_word_embeddings=False,
            **_TOKENS,
        ),
        lambda folder: make_qwen_bpe(folder, ("<think>", "</think>")),
        model=_OutputsLast(),
    ),
    "qwen3omnimoe": Family(
        _OMNI.config,
        lambda folder: make_qwen_bpe(folder, ("<think>", "</think>")),
        model=_OMNI,
    ),
}
