"""InternVL, as transformers has it and as OpenGVLab publishes it: one tile, and several."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from reference_tokenizers import Encode, make_qwen_bpe, write_json
from safetensors.torch import load_file, save_file

from reference_projectors import Case, Inputs, Media, picture, with_marks

_TILE, _PATCH = 56, 14
_TEXT: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "vocab_size": 416,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 72,
    "bos_token_id": 400,
    "eos_token_id": 402,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "image_size": [_TILE, _TILE],
    "patch_size": [_PATCH, _PATCH],
    "attention_bias": True,
    "norm_type": "layer_norm",
}
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_PLACEHOLDER = 405


def _tokenizer(folder: Path) -> Encode:
    return with_marks(make_qwen_bpe, "<img>", "</img>", "<IMG_CONTEXT>")(folder)


def _inputs(folder: Path, one: Media) -> Inputs:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor(images=[Image.fromarray(one)], return_tensors="pt", crop_to_patches=True)
    return {"pixel_values": found["pixel_values"]}


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    found = model.get_image_features(**inputs).pooler_output
    return found.reshape(-1, found.shape[-1])


_NAMES = {
    "vision_tower.embeddings.cls_token": "vision_model.embeddings.class_embedding",
    "vision_tower.embeddings.position_embeddings": "vision_model.embeddings.position_embedding",
    "embeddings.patch_embeddings.projection": "embeddings.patch_embedding",
    "vision_tower.encoder.layer.": "vision_model.encoder.layers.",
    "vision_tower.": "vision_model.",
    ".attention.projection_layer.": ".attn.proj.",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    ".lambda_": ".ls",
    "multi_modal_projector.layer_norm": "mlp1.0",
    "multi_modal_projector.linear_1": "mlp1.1",
    "multi_modal_projector.linear_2": "mlp1.3",
}


def _chat_model(folder: Path) -> None:
    """Rewrite a checkpoint in OpenGVLab's form."""
    stored = load_file(folder / "model.safetensors")
    found: dict[str, torch.Tensor] = {}
    for name, tensor in stored.items():
        if ".k_proj." in name or ".v_proj." in name:
            if "vision_tower" in name:
                continue
        elif ".q_proj." in name and "vision_tower" in name:
            parts = [stored[name.replace(".q_proj.", f".{x}_proj.")] for x in "qkv"]
            name, tensor = name.replace(".attention.q_proj.", ".attn.qkv."), torch.cat(parts)
        for before, after in _NAMES.items():
            name = name.replace(before, after)
        found[name.removeprefix("model.") if "language" not in name else name] = tensor
    save_file(found, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text("utf-8"))
    write_json(
        folder / "config.json",
        {
            "architectures": ["InternVLChatModel"],
            "downsample_ratio": 0.5,
            "dynamic_image_size": True,
            "force_image_size": _TILE,
            "llm_config": {**config["text_config"], "architectures": ["Qwen2ForCausalLM"]},
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
        },
    )


def _case(**changes: Any) -> Case:
    return Case(
        transformers.InternVLConfig(
            text_config=_TEXT,
            vision_config=_VISION,
            image_token_id=_PLACEHOLDER,
            tie_word_embeddings=False,
        ),
        _tokenizer,
        {
            "crop_to_patches": True,
            "image_mean": _MEAN,
            "image_processor_type": "GotOcr2ImageProcessor",
            "image_std": _STD,
            "max_patches": 4,
            "min_patches": 1,
            "size": {"height": _TILE, "width": _TILE},
        },
        # Shapes that llama.cpp and the model's own code divide alike.
        (picture(50, 50, 1), picture(56, 112, 2), picture(255, 85, 3)),
        _inputs,
        _features,
        "The whale<img>",
        "</img> was white",
        "The whale<__media__> was white",
        _PLACEHOLDER,
        **changes,
    )


CASES = {"internvl": _case(), "internvl-chat": _case(rewrite=_chat_model)}
