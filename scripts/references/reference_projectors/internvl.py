"""InternVL, as transformers has it and as OpenGVLab publishes it: one tile, and several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import make_qwen_bpe, write_json
from safetensors.torch import load_file, save_file

from reference_projectors import (
    QWEN_TEXT,
    SMALL_ENCODER,
    Case,
    Inputs,
    Model,
    OfTransformers,
    new_name,
    picture,
    processed,
    with_marks,
)

_TILE, _PATCH, _PLACEHOLDER = 56, 14, 405


def _model() -> OfTransformers:
    return OfTransformers(
        transformers.InternVLConfig(
            text_config={**QWEN_TEXT, "model_type": "qwen2"},
            vision_config={
                **SMALL_ENCODER,
                "num_hidden_layers": 4,
                "image_size": [_TILE, _TILE],
                "patch_size": [_PATCH, _PATCH],
                "attention_bias": True,
                "norm_type": "layer_norm",
            },
            image_token_id=_PLACEHOLDER,
            tie_word_embeddings=False,
        )
    )


_NAMES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_model.",
    "embeddings.cls_token": "embeddings.class_embedding",
    "embeddings.position_embeddings": "embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "vision_model.encoder.layer.": "vision_model.encoder.layers.",
    ".attention.q_proj.": ".attn.qkv.",
    ".attention.k_proj.": ".attn.qkv.",
    ".attention.v_proj.": ".attn.qkv.",
    ".attention.projection_layer.": ".attn.proj.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".lambda_": ".ls",
    "model.multi_modal_projector.layer_norm": "mlp1.0",
    "model.multi_modal_projector.linear_1": "mlp1.1",
    "model.multi_modal_projector.linear_2": "mlp1.3",
}
"""What parts of transformers' names become in OpenGVLab's files: one matrix for q, k and v."""


def _parts(model: torch.nn.Module) -> dict[str, list[str]]:
    """Return OpenGVLab's names of tensors, each with transformers' names of its parts, in order."""
    found: dict[str, list[str]] = {}
    for name in model.state_dict():
        found.setdefault(new_name(name, _NAMES), []).append(name)
    return found


def _chat_config(text: dict[str, Any]) -> dict[str, Any]:
    """Return OpenGVLab's config.json; text: the settings of the language model."""
    return {
        "architectures": ["InternVLChatModel"],
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": _TILE,
        "llm_config": {**text, "architectures": ["Qwen2ForCausalLM"]},
        "max_dynamic_patch": 4,
        "min_dynamic_patch": 1,
        "model_type": "internvl_chat",
        "pad2square": False,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_backbone_lora": 0,
        "use_llm_lora": 0,
        "use_thumbnail": True,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "attention_dropout": 0.0,
            "drop_path_rate": 0.0,
            "dropout": 0.0,
            "hidden_act": "gelu",
            "hidden_size": 24,
            "image_size": _TILE,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "intermediate_size": 40,
            "layer_norm_eps": 1e-06,
            "model_type": "intern_vit_6b",
            "norm_type": "layer_norm",
            "num_attention_heads": 2,
            "num_channels": 3,
            "num_hidden_layers": 4,
            "patch_size": _PATCH,
            "qk_normalization": False,
            "qkv_bias": True,
            "torch_dtype": "bfloat16",
            "use_bfloat16": True,
            "use_flash_attn": True,
        },
    }


class _Chat:
    """An InternVL in OpenGVLab's form, which transformers does not read."""

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return _model().make()

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and model.safetensors in the published form."""
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text("utf-8"))
        write_json(folder / "config.json", _chat_config(config["text_config"]))
        own = model.state_dict()
        stored = {
            name: torch.cat([own[part] for part in parts]) for name, parts in _parts(model).items()
        }
        save_file(stored, folder / "model.safetensors", {"format": "pt"})

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        model = self.make().float()
        model.set_attn_implementation("eager")
        stored = load_file(folder / "model.safetensors")
        model.load_state_dict(
            {
                part: rows
                for name, parts in _parts(model).items()
                for part, rows in zip(parts, stored[name].chunk(len(parts)), strict=True)
            }
        )
        return model


def _in_prompt(inputs: Inputs) -> str:
    return f"<img>{'<IMG_CONTEXT>' * len(inputs['pixel_values'])}</img>"


def _case(model: Model) -> Case:
    return Case(
        model=model,
        tokenizer=with_marks(make_qwen_bpe, "<img>", "</img>", "<IMG_CONTEXT>"),
        processor={
            "crop_to_patches": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_processor_type": "GotOcr2ImageProcessor",
            "image_std": [0.229, 0.224, 0.225],
            "max_patches": 4,
            "min_patches": 1,
            "size": {"height": _TILE, "width": _TILE},
        },
        # Shapes that llama.cpp and the model's own code divide alike.
        media=(picture(50, 50, 1), picture(56, 112, 2), picture(255, 85, 3)),
        inputs=processed("pixel_values", crop_to_patches=True),
        in_prompt=_in_prompt,
        placeholders=(_PLACEHOLDER,),
    )


CASES = {"internvl": _case(_model()), "internvl-chat": _case(_Chat())}
