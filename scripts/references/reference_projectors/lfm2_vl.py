"""LFM2-VL: pictures of one tile, and one that is so large that it is divided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from reference_tokenizers import make_llama3_bpe

from reference_projectors import (
    SIGLIP_COLOURS,
    SMALL_ENCODER,
    Case,
    Inputs,
    Media,
    OfTransformers,
    in_vision_model,
    picture,
    with_marks,
)

_PATCH, _MERGED = 16, 2
_TILE = 512
_MARKS = (
    "<|image_start|>",
    "<|image_end|>",
    "<|img_thumbnail|>",
    "<image>",
    "<|img_row_1_col_1|>",
    "<|img_row_1_col_2|>",
)
_PLACEHOLDER = 451
_TEXT: dict[str, Any] = {
    "model_type": "lfm2",
    "hidden_size": 32,
    "intermediate_size": 100,
    "block_multiple_of": 7,
    "block_ffn_dim_multiplier": 1.1,
    "conv_L_cache": 3,
    "norm_eps": 1e-5,
    "max_position_embeddings": 2048,
    "vocab_size": 456,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "bos_token_id": 442,
    "eos_token_id": 447,
    "pad_token_id": 0,
    "rope_parameters": {"rope_type": "default", "rope_theta": 777000.0},
}


def _large(seed: int) -> NDArray[np.uint8]:
    """Return a picture with more than twice the pixels of a tile's largest size, in squares."""
    return picture(33, 66, seed).repeat(16, axis=0).repeat(16, axis=1)


def _pieces(one: Media) -> list[NDArray[np.uint8]]:
    """Return a picture's tiles and the whole, resized as the model's own code does.

    That code needs torchvision. Sides of the whole are multiples of a merged patch, of which a
    picture has 64 to 256. The large picture becomes two tiles beside each other.
    """
    height, width, _ = one.shape
    unit = _PATCH * _MERGED
    lowest, highest = 64 * unit**2, 256 * unit**2
    sides = [round(n / unit) * unit for n in (height, width)]
    is_large = sides[0] * sides[1] > 2 * highest
    if sides[0] * sides[1] > highest:
        ratio = (height * width / highest) ** 0.5
        sides = [int(n / ratio / unit) * unit for n in (height, width)]
    elif sides[0] * sides[1] < lowest:
        ratio = (lowest / (height * width)) ** 0.5
        sides = [int(np.ceil(n * ratio / unit)) * unit for n in (height, width)]
    whole = _resized(one, sides[0], sides[1])
    if not is_large:
        return [whole]
    tiles = _resized(one, _TILE, 2 * _TILE)
    return [tiles[:, :_TILE], tiles[:, _TILE:], whole]


def _resized(one: Media, height: int, width: int) -> NDArray[np.uint8]:
    found = Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(found)


def _inputs(_: Path, one: Media) -> Inputs:
    pieces = _pieces(one)
    shapes = [(piece.shape[0] // _PATCH, piece.shape[1] // _PATCH) for piece in pieces]
    most = max(rows * columns for rows, columns in shapes)
    values = torch.zeros(len(pieces), most, 3 * _PATCH**2)
    mask = torch.zeros(len(pieces), most, dtype=torch.int32)
    for number, (piece, (rows, columns)) in enumerate(zip(pieces, shapes, strict=True)):
        scaled = torch.from_numpy(piece.astype(np.float32) / 255 - 0.5) / 0.5
        patches = scaled.reshape(rows, _PATCH, columns, _PATCH, 3).permute(0, 2, 1, 3, 4)
        values[number, : rows * columns] = patches.reshape(rows * columns, -1)
        mask[number, : rows * columns] = 1
    return {
        "pixel_values": values,
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor(shapes),
    }


def _in_prompt(inputs: Inputs) -> str:
    """Return the tiles, of which all are in one row, and the whole picture."""
    n_tiles = len(inputs["pixel_values"]) - 1
    tiles = "".join(f"<|img_row_1_col_{n + 1}|><image>" for n in range(n_tiles))
    whole = "<|img_thumbnail|><image>" if n_tiles else "<image>"
    return f"<|image_start|>{tiles}{whole}<|image_end|>"


CASES = {
    "lfm2vl": Case(
        model=OfTransformers(
            transformers.Lfm2VlConfig(
                text_config=_TEXT,
                vision_config={
                    **SMALL_ENCODER,
                    "model_type": "siglip2_vision_model",
                    "patch_size": _PATCH,
                    "num_patches": 36,
                    "vision_use_head": False,
                },
                image_token_id=_PLACEHOLDER,
                projector_hidden_size=52,
            ),
            tensors=in_vision_model,
        ),
        tokenizer=with_marks(make_llama3_bpe, *_MARKS),
        processor={
            "image_processor_type": "Lfm2VlImageProcessor",
            "do_image_splitting": True,
            "downsample_factor": _MERGED,
            "encoder_patch_size": _PATCH,
            **SIGLIP_COLOURS,
            "max_image_tokens": 256,
            "max_pixels_tolerance": 2.0,
            "max_tiles": 10,
            "min_image_tokens": 64,
            "min_tiles": 2,
            "resample": 2,
            "tile_size": _TILE,
            "use_thumbnail": True,
        },
        media=(picture(256, 352, 1), picture(100, 150, 2), _large(3)),
        inputs=_inputs,
        in_prompt=_in_prompt,
        placeholders=(_PLACEHOLDER,),
    ),
}
