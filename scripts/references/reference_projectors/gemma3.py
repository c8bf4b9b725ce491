"""Gemma 3 with a tiny SigLIP: one picture of the encoder's own size, one that is resized."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from reference_vocabularies import make_gemma_bpe

from reference_projectors import (
    SIGLIP_COLOURS,
    SMALL_ENCODER,
    SMALL_TEXT,
    Case,
    Inputs,
    OfTransformers,
    in_vision_model,
    picture,
    processed,
    with_marks,
)

_TEXT: dict[str, Any] = {
    **SMALL_TEXT,
    "rms_norm_eps": 1e-6,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "vocab_size": 452,
    "head_dim": 12,
    "query_pre_attn_scalar": 12,
    "sliding_window": 64,
}
_SIZE, _PATCH, _PLACEHOLDER = 84, 14, 450


def _more(ids: torch.Tensor) -> Inputs:
    return {"token_type_ids": (ids == _PLACEHOLDER).int()}


CASES = {
    "gemma3": Case(
        model=OfTransformers(
            transformers.Gemma3Config(
                text_config=_TEXT,
                vision_config={**SMALL_ENCODER, "image_size": _SIZE, "patch_size": _PATCH},
                mm_tokens_per_image=9,
                image_token_index=_PLACEHOLDER,
                boi_token_index=448,
                eoi_token_index=449,
            ),
            tensors=in_vision_model,
        ),
        tokenizer=with_marks(
            make_gemma_bpe, "<start_of_image>", "<end_of_image>", "<image_soft_token>"
        ),
        processor={
            "image_processor_type": "Gemma3ImageProcessor",
            **SIGLIP_COLOURS,
            "size": {"height": _SIZE, "width": _SIZE},
            "resample": 2,
            "do_pan_and_scan": None,
            "image_seq_length": 9,
        },
        media=(picture(_SIZE, _SIZE, 1), picture(97, 97, 2)),
        inputs=processed("pixel_values"),
        in_prompt="<start_of_image><image_soft_token><end_of_image>",
        placeholders=(_PLACEHOLDER,),
        more=_more,
        norms=0.0,
        weights=0.15,
    ),
}
