"""Idefics3 and SmolVLM: pictures of two, four, six and nine tiles, and the whole picture."""

from __future__ import annotations

from math import ceil
from typing import Any

import torch
import transformers
from reference_tokenizers import make_llama3_bpe

from reference_projectors import (
    LLAMA3_TEXT,
    SIGLIP_COLOURS,
    SMALL_ENCODER,
    Case,
    Inputs,
    OfTransformers,
    image_features,
    picture,
    processed,
    with_marks,
)

_TEXT: dict[str, Any] = {**LLAMA3_TEXT, "model_type": "llama", "vocab_size": 464}
_CELLS = tuple(f"<row_{row}_col_{column}>" for row in (1, 2, 3) for column in (1, 2, 3))
_AROUND, _WHOLE, _IMAGE = "<fake_token_around_image>", "<global-img>", "<image>"
_MARKS = ("\n\n", _AROUND, _WHOLE, _IMAGE, *_CELLS)
_PLACEHOLDER = 451


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    (tiles,) = image_features(model, inputs)
    return list(tiles.chunk(inputs["pixel_values"].shape[1]))


def _in_prompt(inputs: Inputs) -> str:
    """Return the tiles row by row, and the whole picture.

    No picture here has more columns than rows, so the number of tiles gives both.
    """
    n_tiles = inputs["pixel_values"].shape[1] - 1
    n_rows = ceil(n_tiles**0.5)
    columns = range(1, n_tiles // n_rows + 1)
    rows = [
        "".join(f"{_AROUND}<row_{row}_col_{column}>{_IMAGE}" for column in columns)
        for row in range(1, n_rows + 1)
    ]
    return "\n".join(rows) + f"\n\n{_AROUND}{_WHOLE}{_IMAGE}{_AROUND}"


def _case(model: OfTransformers, kind: str, tile: int, edge: int) -> Case:
    """Return a case; kind: of the processor; tile, edge: pixels of a tile and of a picture."""
    return Case(
        model=model,
        tokenizer=with_marks(make_llama3_bpe, *_MARKS),
        processor={
            "image_processor_type": kind,
            "do_image_splitting": True,
            **SIGLIP_COLOURS,
            "max_image_size": {"longest_edge": tile},
            "size": {"longest_edge": edge},
            "resample": 1,
        },
        media=(picture(edge, edge // 2, 1), picture(97, 143, 2)),
        inputs=processed("pixel_values", "pixel_attention_mask"),
        features=_features,
        in_prompt=_in_prompt,
        placeholders=(_PLACEHOLDER,),
    )


CASES = {
    "idefics3": _case(
        OfTransformers(
            transformers.Idefics3Config(
                text_config=_TEXT,
                vision_config={**SMALL_ENCODER, "image_size": 56, "patch_size": 14},
                scale_factor=2,
                image_token_id=_PLACEHOLDER,
            ),
            published={"tie_word_embeddings": False},
        ),
        "Idefics3ImageProcessor",
        tile=56,
        edge=112,
    ),
    "smolvlm": _case(
        OfTransformers(
            transformers.SmolVLMConfig(
                text_config=_TEXT,
                vision_config={**SMALL_ENCODER, "image_size": 50, "patch_size": 8},
                scale_factor=3,
                image_token_id=_PLACEHOLDER,
            ),
            # As published: what the class has as default is not stated.
            published={
                "vision_config": {
                    **SMALL_ENCODER,
                    "image_size": 50,
                    "max_image_size": {"longest_edge": 50},
                    "model_type": "smolvlm_vision",
                    "patch_size": 8,
                    "size": {"longest_edge": 150},
                    "tie_word_embeddings": False,
                    "use_base_siglip": False,
                }
            },
        ),
        "SmolVLMImageProcessor",
        tile=50,
        edge=150,
    ),
}
