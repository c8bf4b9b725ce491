"""LLaVA with CLIP and with SigLIP: a square picture, and one with margins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from reference_vocabularies import make_spm_json

from reference_projectors import (
    CLIP_COLOURS,
    SIGLIP_COLOURS,
    SMALL_ENCODER,
    SMALL_TEXT,
    Case,
    Inputs,
    Media,
    OfTransformers,
    in_vision_model,
    picture,
    with_marks,
)

_SIZE, _PATCH, _PLACEHOLDER = 84, 14, 448
_MARGIN = (122, 116, 104)
"""LLaVA's colour of margins: CLIP's mean."""

_TEXT: dict[str, Any] = {
    **SMALL_TEXT,
    "model_type": "llama",
    "vocab_size": 452,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {
    **SMALL_ENCODER,
    "num_hidden_layers": 4,
    "image_size": _SIZE,
    "patch_size": _PATCH,
}


def _inputs(folder: Path, one: Media) -> Inputs:
    """Return a picture with margins, as LLaVA's first code and llama.cpp make it."""
    height, width, _ = one.shape
    scale = _SIZE / max(height, width)
    sides = int(np.ceil(width * scale)), int(np.ceil(height * scale))
    inner = Image.fromarray(one).resize(sides, Image.Resampling.BICUBIC)
    square = Image.new("RGB", (_SIZE, _SIZE), _MARGIN)
    square.paste(inner, ((_SIZE - sides[0]) // 2, (_SIZE - sides[1]) // 2))
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return {"pixel_values": processor(images=[square], return_tensors="pt")["pixel_values"]}


class _ClassTokenLast(torch.nn.Module):
    """An encoder whose outputs are in another order: that of the class token comes last.

    LLaVA leaves out the first output; llama.cpp leaves out that of the first patch.
    """

    def __init__(self, tower: torch.nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, *args: Any, **options: Any) -> Any:
        found = self.tower(*args, **options)
        found.hidden_states = [h if h is None else h.roll(-1, dims=1) for h in found.hidden_states]
        return found


def _with_class_token_last(model: transformers.PreTrainedModel) -> None:
    model.model.vision_tower = _ClassTokenLast(model.model.vision_tower)


def _case(model: OfTransformers, processor: dict[str, Any]) -> Case:
    return Case(
        model=model,
        tokenizer=with_marks(make_spm_json, "<image>"),
        processor=processor,
        media=(picture(_SIZE, _SIZE, 1), picture(97, 97, 2), picture(60, 91, 3)),
        inputs=_inputs,
        in_prompt="<image>",
        placeholders=(_PLACEHOLDER,),
    )


CASES = {
    "llava": _case(
        OfTransformers(
            transformers.LlavaConfig(
                text_config=_TEXT,
                vision_config={**_VISION, "model_type": "clip_vision_model"},
                image_token_index=_PLACEHOLDER,
            ),
            tensors=in_vision_model,
            adapt=_with_class_token_last,
        ),
        {
            **CLIP_COLOURS,
            "resample": 3,
            "crop_size": {"height": _SIZE, "width": _SIZE},
            "do_center_crop": True,
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": _SIZE},
        },
    ),
    "llava-siglip": _case(
        OfTransformers(
            transformers.LlavaConfig(
                text_config=_TEXT,
                vision_config={**_VISION, "model_type": "siglip_vision_model"},
                image_token_index=_PLACEHOLDER,
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
            ),
            tensors=in_vision_model,
        ),
        {
            **SIGLIP_COLOURS,
            "resample": 3,
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": _SIZE, "width": _SIZE},
        },
    ),
}
