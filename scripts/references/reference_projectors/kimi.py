"""Kimi-VL and Kimi-K2.5 with a tiny MoonViT, computed by transformers' class for Kimi-K2.5.

Kimi-VL has no class in transformers. Its encoder is that of Kimi-K2.5 without time: for pictures,
both compute the same. The models differ in the names of tensors and settings. llama.cpp
interpolates a Kimi-VL's positions linearly; so does this model here, which the page warns of.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import transformers
from make_references import change_config
from PIL import Image
from reference_families.deepseek import ATTENTION
from reference_tokenizers import make_qwen_bpe
from safetensors.torch import load_file, save_file

from reference_projectors import (
    QWEN_TEXT,
    SIGLIP_COLOURS,
    SMALL_ENCODER,
    Case,
    Inputs,
    Media,
    OfTransformers,
    Tensors,
    new_name,
    picture,
    renamed,
)

_PATCH, _UNIT = 14, 28
_MARKS = ("<|media_start|>", "<|media_begin|>", "<|media_end|>", "<|media_pad|>")
_PLACEHOLDER = 406
_TEXT: dict[str, Any] = {
    **QWEN_TEXT,
    **ATTENTION,
    "num_hidden_layers": 2,
    "q_lora_rank": None,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "norm_topk_prob": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 50000.0},
    "tie_word_embeddings": False,
}
_VISION: dict[str, Any] = {
    **SMALL_ENCODER,
    "patch_size": _PATCH,
    "pos_emb_height": 5,
    "pos_emb_width": 5,
}
_LIMIT = 64
"""Patches of a picture of the tiny Kimi-K2.5."""

_NAMES = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.",
    "vision_tower.layers.": "vision_tower.encoder.blocks.",
    "vision_tower.final_layernorm.": "vision_tower.encoder.final_layernorm.",
    ".pos_emb.position_embeddings": ".pos_emb.weight",
    ".norm1.": ".norm0.",
    ".norm2.": ".norm1.",
    ".mlp.fc1.": ".mlp.fc0.",
    ".mlp.fc2.": ".mlp.fc1.",
    ".attn.proj.": ".wo.",
    "model.mm_projector.in_proj.": "mm_projector.proj.0.",
    "model.mm_projector.out_proj.": "mm_projector.proj.2.",
    "model.mm_projector.": "mm_projector.",
}
"""What parts of transformers' names become in the files of Kimi-K2.5."""


def _config() -> transformers.PretrainedConfig:
    return transformers.AutoConfig.for_model(
        "kimi_k25",
        text_config=transformers.DeepseekV3Config(**_TEXT),
        vision_config=dict(_VISION),
        projection_hidden_size=_VISION["hidden_size"],
        image_token_id=_PLACEHOLDER,
        video_token_id=415,
        tie_word_embeddings=False,
    )


def _by_turns(rows: torch.Tensor) -> torch.Tensor:
    """Return queries or keys with the two elements of a rotated pair beside each other."""
    halves = rows.unflatten(0, (_VISION["num_attention_heads"], 2, -1))
    return halves.transpose(1, 2).reshape(rows.shape).contiguous()


def _published(model: transformers.PreTrainedModel) -> Tensors:
    """Return the tensors as Kimi-K2.5's files have them.

    save_pretrained does not: it renames parts of the language model, too.
    """
    found = dict(model.state_dict())
    for name in [n for n in found if ".attn.q_proj." in n]:
        q, k, v = (found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv")
        found[name.replace("attn.q_proj", "wqkv")] = torch.cat([_by_turns(q), _by_turns(k), v])
    stored: Tensors = {}
    for name, tensor in found.items():
        published = new_name(name, _NAMES)
        if published.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            stored |= _each_expert(published, tensor)
        else:
            stored[published] = tensor.contiguous()
    return stored


def _each_expert(name: str, stack: torch.Tensor) -> Tensors:
    """Return the matrices of each expert, which transformers stacks."""
    before, _, last = name.rpartition(".")
    parts = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}[last]
    return {
        f"{before}.{number}.{part}.weight": rows.contiguous()
        for number, expert in enumerate(stack)
        for part, rows in zip(parts, expert.chunk(len(parts)), strict=True)
    }


@dataclass(frozen=True)
class _Kimi:
    """A model of transformers' class for Kimi-K2.5, and the published form of its checkpoint.

    published: what changes in the config.json that transformers writes, as in OfTransformers
    names:     what parts of Kimi-K2.5's names become in the published form
    is_linear: whether positions are interpolated as llama.cpp does; only to larger grids
    """

    published: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)
    is_linear: bool = False

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return OfTransformers(_config()).make()

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and model.safetensors in the published form."""
        model.config.architectures = [type(model).__name__]
        model.config.save_pretrained(folder)
        change_config(folder, self.published)
        stored = renamed(self.names)(_published(model))
        save_file(stored, folder / "model.safetensors", {"format": "pt"})

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        back = renamed({after: before for before, after in self.names.items()})
        with TemporaryDirectory() as made:
            _config().save_pretrained(made)
            stored = back(load_file(folder / "model.safetensors"))
            save_file(stored, Path(made) / "model.safetensors", {"format": "pt"})
            model = OfTransformers(_config()).load(Path(made))
        if self.is_linear:
            model.model.vision_tower.patch_embed.pos_emb.interpolation_mode = "bilinear"
        return model


def _resized(one: Media, side: int) -> Media:
    """Return a picture of at most side x side patches, as both programs resize it."""
    height, width, _ = one.shape
    factor = min(1.0, side * _PATCH / (height * width) ** 0.5)
    sides = [round(n * factor / _UNIT) * _UNIT for n in (width, height)]
    return np.asarray(Image.fromarray(one).resize(sides, Image.Resampling.BICUBIC))


def _inputs(folder: Path, one: Media) -> Inputs:
    own = json.loads((folder / "preprocessor_config.json").read_text("utf-8"))
    limit = own.get("media_proc_cfg", {}).get("in_patch_limit", 4096)
    pixels = torch.from_numpy(_resized(one, int(limit**0.5)).astype(np.float32))
    normal = (pixels / 255 - 0.5) / 0.5
    rows, columns = normal.shape[0] // _PATCH, normal.shape[1] // _PATCH
    patches = normal.reshape(rows, _PATCH, columns, _PATCH, 3).permute(0, 2, 4, 1, 3)
    return {
        "pixel_values": patches.reshape(-1, 3, _PATCH, _PATCH).contiguous(),
        "image_grid_thw": torch.tensor([[1, rows, columns]]),
    }


_PUBLISHED = {
    "dtype": None,
    "torch_dtype": "bfloat16",
    "projection_hidden_size": None,
    "projection_layer_norm_eps": None,
    "image_token_id": None,
    "video_token_id": None,
    "vision_start_token_id": None,
    "vision_end_token_id": None,
    "media_placeholder_token_id": _PLACEHOLDER,
}


def _text(name: str) -> dict[str, Any]:
    """Return the settings of the language model as published."""
    rope = {"rope_parameters": None, "rope_theta": 50000.0, "rope_scaling": None}
    found = transformers.DeepseekV3Config(**_TEXT).to_diff_dict() | rope
    found["model_type"] = name
    return {key: value for key, value in found.items() if value is not None}


def _case(model: _Kimi, mark: str, processor: dict[str, Any], media: tuple[Media, ...]) -> Case:
    """Return a case; mark: before a picture."""
    return Case(
        model=model,
        tokenizer=partial(make_qwen_bpe, plain=_MARKS),
        processor=processor,
        media=media,
        inputs=_inputs,
        in_prompt=f"{mark}<|media_pad|><|media_end|>",
        placeholders=(_PLACEHOLDER,),
        weights=0.15,
    )


CASES = {
    "kimivl": _case(
        _Kimi(
            {
                **_PUBLISHED,
                "architectures": ["KimiVLForConditionalGeneration"],
                "model_type": "kimi_vl",
                "text_config": _text("deepseek_v3"),
                "vision_config": {
                    **{k: v for k, v in _VISION.items() if "pos_emb" not in k},
                    "model_type": "moonvit",
                    "init_pos_emb_height": 5,
                    "init_pos_emb_width": 5,
                    "merge_kernel_size": [2, 2],
                    "torch_dtype": "bfloat16",
                },
            },
            {
                "mm_projector.proj.0": "multi_modal_projector.linear_1",
                "mm_projector.proj.2": "multi_modal_projector.linear_2",
                "mm_projector.pre_norm": "multi_modal_projector.pre_norm",
            },
            is_linear=True,
        ),
        "<|media_start|>",
        {
            **SIGLIP_COLOURS,
            "image_processor_type": "KimiVLImageProcessor",
            "in_token_limit": 4096,
            "merge_kernel_size": [2, 2],
            "num_pooled_tokens": 1024,
            "pad_input": True,
            "patch_size": _PATCH,
        },
        (picture(3 * _UNIT, 5 * _UNIT, 1), picture(3 * 26, 4 * 26, 2)),
    ),
    "kimik25": _case(
        _Kimi(
            {
                **_PUBLISHED,
                "architectures": ["KimiK25ForConditionalGeneration"],
                "text_config": _text("kimi_k2"),
                "vision_config": {
                    "init_pos_emb_height": 5,
                    "init_pos_emb_width": 5,
                    "init_pos_emb_time": 4,
                    "merge_kernel_size": [2, 2],
                    "merge_type": "sd2_tpool",
                    "mm_hidden_size": 24,
                    "mm_projector_type": "patchmerger",
                    "patch_size": _PATCH,
                    "pos_emb_type": "divided_fixed",
                    "projector_hidden_act": "gelu",
                    "projector_ln_eps": 1e-5,
                    "text_hidden_size": 32,
                    "video_attn_type": "spatial_temporal",
                    "vt_hidden_size": 24,
                    "vt_intermediate_size": 40,
                    "vt_num_attention_heads": 2,
                    "vt_num_hidden_layers": 3,
                },
            },
        ),
        "<|media_begin|>",
        {
            "media_proc_cfg": {
                **SIGLIP_COLOURS,
                "in_patch_limit": _LIMIT,
                "patch_size": _PATCH,
                "merge_kernel_size": 2,
                "fixed_output_tokens": None,
                "patch_limit_on_one_side": 512,
            },
        },
        (picture(3 * _UNIT, 5 * _UNIT, 1), picture(4 * _UNIT, 16 * _UNIT, 2)),
    ),
}
