"""DeepSeek-OCR by transformers' class for Unlimited-OCR, which has its encoders; DeepSeek-OCR-2.

Pictures are no larger than a tile: those have a single view, of 1024 pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image, ImageOps
from reference_tokenizers import make_llama3_bpe

from reference_projectors import (
    SIGLIP_COLOURS,
    Case,
    Inputs,
    Media,
    OfTransformers,
    picture,
    with_marks,
)

_TOKEN = 448
_TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 512,
    "bos_token_id": 442,
    "eos_token_id": 443,
    "intermediate_size": 72,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_hidden_layers": 2,
    "vocab_size": _TOKEN + 1,
    "moe_intermediate_size": 20,
    "n_routed_experts": 5,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "topk_method": "greedy",
    "n_group": 1,
    "topk_group": 1,
    "mlp_layer_types": ["dense", "sparse"],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
}
_SAM: dict[str, Any] = {
    "hidden_size": 8,
    "output_channels": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "mlp_dim": 32,
    "downsample_channels": [10, 16],
}
_WRITTEN_SAM: dict[str, Any] = {
    "downsample_channels": [10, 16],
    "global_attn_indexes": [2, 5, 8, 11],
    "heads": 2,
    "layers": 3,
    "output_channels": 8,
    "width": 8,
}


def _written(name: str, encoder: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return config.json's changes for the published form; name: of the class."""
    text = {
        **{k: v for k, v in _TEXT.items() if k not in ("mlp_layer_types", "rope_parameters")},
        "architectures": ["DeepseekV2ForCausalLM"],
        "first_k_dense_replace": 1,
        "kv_lora_rank": None,
        "lm_head": True,
        "q_lora_rank": None,
        "qk_nope_head_dim": 0,
        "qk_rope_head_dim": 0,
        "rm_head": False,
        "use_mla": False,
        "v_head_dim": 0,
    }
    return {
        "architectures": [name],
        "model_type": "deepseek_vl_v2",
        "language_config": text,
        "text_config": None,
        "image_token_id": None,
        "vision_config": {
            "image_size": 1024,
            "mlp_ratio": 3.7362,
            "model_type": "vision",
            "width": {**encoder, "sam_vit_b": _WRITTEN_SAM},
            **more,
        },
    }


def _inputs(_: Path, one: Media) -> Inputs:
    """Return the single view: the picture as large as it fits, in the middle of grey."""
    padded = ImageOps.pad(
        Image.fromarray(one), (1024, 1024), Image.Resampling.BICUBIC, color=(127, 127, 127)
    )
    pixels = torch.from_numpy(np.asarray(padded).copy()).permute(2, 0, 1).float()
    return {"pixel_values": (pixels / 255 - 0.5)[None] / 0.5}


def _case(config: transformers.PretrainedConfig, published: dict[str, Any]) -> Case:
    return Case(
        model=OfTransformers(config, published, reads_config=False),
        tokenizer=with_marks(make_llama3_bpe, "<image>"),
        processor=SIGLIP_COLOURS,
        media=(picture(128, 128, 1), picture(96, 128, 2)),
        inputs=_inputs,
        in_prompt="<image>\n",
        placeholders=(_TOKEN,),
    )


CASES = {
    "deepseek-ocr": _case(
        transformers.UnlimitedOcrConfig(
            text_config={**_TEXT, "sliding_window": 4096},
            vision_config={
                "sam_config": _SAM,
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 64,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 2,
                },
            },
            image_token_id=_TOKEN,
        ),
        _written(
            "DeepseekOCRForCausalLM",
            {
                "clip-l-14-224": {
                    "heads": 2,
                    "image_size": 224,
                    "layers": 4,
                    "patch_size": 14,
                    "width": 16,
                }
            },
        ),
    ),
    "deepseek-ocr-2": _case(
        transformers.DeepseekOcr2Config(
            text_config=_TEXT,
            vision_config={
                "sam_config": _SAM,
                "encoder_config": {
                    "hidden_size": 16,
                    "intermediate_size": 40,
                    "num_hidden_layers": 4,
                    "num_attention_heads": 4,
                    "num_key_value_heads": 2,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
                },
            },
            image_token_id=_TOKEN,
        ),
        _written(
            "DeepseekOCR2ForCausalLM",
            {"qwen2-0-5b": {"dim": 16}},
            layers=4,
            num_attention_heads=4,
            intermediate_size=40,
        ),
    ),
}
