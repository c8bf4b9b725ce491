"""MiniCPM-V 4.6: a square picture, and one that is cut into two slices beside the whole.

llama.cpp pads pictures with black before it cuts them, unless they have the slices' shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from reference_tokenizers import Encode, make_qwen_bpe

from reference_projectors import Case, Inputs, Media, picture

_MARKS = ("<image>", "</image>", "<slice>", "</slice>", "<|image_pad|>")
_TOKEN = 403 + len(_MARKS) - 1
_SIZE, _PATCH = 64, 4


def _tokenizer(folder: Path) -> Encode:
    return make_qwen_bpe(folder, _MARKS)


def _inputs(folder: Path, one: Media) -> Inputs:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor(images=[Image.fromarray(one)], return_tensors="pt")
    return {name: found[name] for name in ("pixel_values", "target_sizes")}


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    return model.model.get_image_features(**inputs).pooler_output


def _around(n_pieces: int) -> list[str]:
    """Return the texts around the whole picture and the slices below it."""
    if n_pieces == 1:
        return ["The whale<image>", "</image> was white"]
    between = ["</slice>\n<slice>"] * (n_pieces - 2)
    return ["The whale<image>", "</image><slice>", *between, "</slice> was white"]


def _case(**changes: Any) -> Case:
    mode = {"downsample_mode": changes["downsample_mode"]} if changes else {}
    return Case(
        transformers.MiniCPMV4_6Config(
            text_config={
                "model_type": "qwen3_5_text",
                "hidden_size": 32,
                "rms_norm_eps": 1e-6,
                "max_position_embeddings": 512,
                "vocab_size": 416,
                "num_hidden_layers": 3,
                "num_attention_heads": 3,
                "num_key_value_heads": 1,
                "head_dim": 24,
                "intermediate_size": 72,
                "linear_conv_kernel_dim": 3,
                "linear_key_head_dim": 12,
                "linear_value_head_dim": 12,
                "linear_num_key_heads": 2,
                "linear_num_value_heads": 6,
                "layer_types": ["linear_attention", "full_attention", "linear_attention"],
                "bos_token_id": 400,
                "eos_token_id": 402,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 10000000.0,
                    "partial_rotary_factor": 0.5,
                    "mrope_section": [2, 2, 2],
                    "mrope_interleaved": True,
                },
            },
            vision_config={
                "hidden_size": 8,
                "intermediate_size": 12,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": 70 * _PATCH,
                "patch_size": _PATCH,
            },
            insert_layer_id=1,
            image_token_id=_TOKEN,
            **changes,
        ),
        _tokenizer,
        {
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "patch_size": _PATCH,
            "scale_resolution": _SIZE,
            "max_slice_nums": 9,
            **mode,
        },
        (picture(_SIZE, _SIZE, 1), picture(96, 48, 2)),
        _inputs,
        _features,
        "",
        "",
        "The whale<__media__> was white",
        _TOKEN,
        weights=0.2,
        around=_around,
    )


CASES = {"minicpmv4.6": _case(), "minicpmv4.6-4x": _case(downsample_mode="4x")}
