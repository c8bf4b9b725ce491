"""MiniCPM-V 4.6: a square picture, and one that is cut into two slices beside the whole.

llama.cpp pads pictures with black before it cuts them, unless they have the slices' shape.
"""

from __future__ import annotations

from functools import partial

import transformers
from reference_families.qwen3_5 import TEXT
from reference_tokenizers import make_qwen_bpe

from reference_projectors import SIGLIP_COLOURS, Case, OfTransformers, processed
from reference_projectors.minicpmv import MARKS, MEDIA, PATCH, SIZE, VISION, slices

_MARKS = (*MARKS, "<|image_pad|>")
_TOKEN = 403 + len(_MARKS) - 1


def _case(**mode: str) -> Case:
    """Return a case; mode: the setting of how many patches become one token, if it is stated."""
    return Case(
        model=OfTransformers(
            transformers.MiniCPMV4_6Config(
                text_config={
                    **TEXT,
                    "model_type": "qwen3_5_text",
                    "intermediate_size": 72,
                    "rope_parameters": {
                        "rope_type": "default",
                        "rope_theta": 10000000.0,
                        "partial_rotary_factor": 0.5,
                        "mrope_section": [2, 2, 2],
                        "mrope_interleaved": True,
                    },
                },
                vision_config=VISION,
                insert_layer_id=1,
                image_token_id=_TOKEN,
                **mode,
            )
        ),
        tokenizer=partial(make_qwen_bpe, plain=_MARKS),
        processor={
            "image_processor_type": "MiniCPMV4_6ImageProcessor",
            **SIGLIP_COLOURS,
            "patch_size": PATCH,
            "scale_resolution": SIZE,
            "max_slice_nums": 9,
            **mode,
        },
        media=MEDIA,
        inputs=processed("pixel_values", "target_sizes"),
        in_prompt=partial(slices, placeholder="<|image_pad|>"),
        placeholders=(_TOKEN,),
        weights=0.2,
    )


CASES = {"minicpmv4.6": _case(), "minicpmv4.6-4x": _case(downsample_mode="4x")}
