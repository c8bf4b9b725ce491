"""LLaVA with CLIP and with SigLIP: a square picture, and one with margins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from reference_vocabularies import make_spm_json

from reference_projectors import Case, Inputs, Media, picture, with_marks

_SIZE, _PATCH, _PLACEHOLDER = 84, 14, 448
_CLIP = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
_SIGLIP = ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
_MARGIN = (122, 116, 104)
"""LLaVA's colour of margins: CLIP's mean."""

_TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "vocab_size": 452,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 72,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_VISION: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
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


def _siglip_features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    return model.get_image_features(**inputs).pooler_output[0]


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


def _clip_features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    if not isinstance(model.model.vision_tower, _ClassTokenLast):
        model.model.vision_tower = _ClassTokenLast(model.model.vision_tower)
    return model.get_image_features(**inputs).pooler_output[0]


def _case(
    kind: str,
    colours: tuple[list[float], list[float]],
    features: Any,
    processor: dict[str, Any],
    **changes: Any,
) -> Case:
    model = {k: changes.pop(k) for k in tuple(changes) if k.startswith("vision_feature")}
    return Case(
        transformers.LlavaConfig(
            text_config=_TEXT,
            vision_config={**_VISION, "model_type": kind},
            image_token_index=_PLACEHOLDER,
            **model,
        ),
        with_marks(make_spm_json, "<image>"),
        {"image_mean": colours[0], "image_std": colours[1], "resample": 3, **processor},
        (picture(_SIZE, _SIZE, 1), picture(97, 97, 2), picture(60, 91, 3)),
        _inputs,
        features,
        "The whale",
        " was white",
        "The whale<__media__> was white",
        _PLACEHOLDER,
        renamed={"vision_tower.": "vision_tower.vision_model."},
        **changes,
    )


CASES = {
    "llava": _case(
        "clip_vision_model",
        _CLIP,
        _clip_features,
        {
            "crop_size": {"height": _SIZE, "width": _SIZE},
            "do_center_crop": True,
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": _SIZE},
        },
    ),
    "llava-siglip": _case(
        "siglip_vision_model",
        _SIGLIP,
        _siglip_features,
        {
            "image_processor_type": "SiglipImageProcessor",
            "size": {"height": _SIZE, "width": _SIZE},
        },
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    ),
}
