"""Gemma 3 with a tiny SigLIP: one picture of the encoder's own size, one that is resized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image
from reference_vocabularies import make_gemma_bpe

from reference_projectors import Case, Inputs, Media, picture, with_marks

_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "vocab_size": 452,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "sliding_window": 64,
}
_SIZE, _PATCH = 84, 14


def _inputs(folder: Path, one: Media) -> Inputs:
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    found = processor(images=[Image.fromarray(one)], return_tensors="pt")
    return {"pixel_values": found["pixel_values"]}


def _features(model: transformers.PreTrainedModel, inputs: Inputs) -> torch.Tensor:
    return model.get_image_features(**inputs).pooler_output[0]


def _more(ids: torch.Tensor, token: int) -> Inputs:
    return {"token_type_ids": (ids == token).int()}


CASES = {
    "gemma3": Case(
        transformers.Gemma3Config(
            text_config={**_TEXT, "query_pre_attn_scalar": 12},
            vision_config={
                "hidden_size": 24,
                "intermediate_size": 40,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "image_size": _SIZE,
                "patch_size": _PATCH,
            },
            mm_tokens_per_image=9,
            image_token_index=450,
            boi_token_index=448,
            eoi_token_index=449,
        ),
        with_marks(make_gemma_bpe, "<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        {
            "image_processor_type": "Gemma3ImageProcessor",
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
            "size": {"height": _SIZE, "width": _SIZE},
            "resample": 2,
            "do_pan_and_scan": None,
            "image_seq_length": 9,
        },
        (picture(_SIZE, _SIZE, 1), picture(97, 97, 2)),
        _inputs,
        _features,
        "The whale<start_of_image>",
        "<end_of_image> was white",
        "The whale<__media__> was white",
        450,
        _more,
        norms=0.0,
        weights=0.15,
        renamed={"vision_tower.": "vision_tower.vision_model."},
    ),
}
