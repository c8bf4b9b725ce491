"""CLIP's vision encoder: SigLIP's layers, with a class token before the patches."""

from __future__ import annotations

from typing import Any

from dynquant.arch.base import Row
from dynquant.arch.settings import harmless
from dynquant.arch.towers import siglip
from dynquant.arch.towers.vision import biased, class_token_last, spelled

DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "layer_norm_eps": 1e-5,
    "hidden_act": "quick_gelu",
}
"""Defaults of transformers' class."""

HARMLESS = harmless(
    "of CLIP's comparison with texts", "projection_dim vocab_size logit_scale_init_value"
)

_IN = "model.vision_tower.vision_model."
_ROWS: tuple[Row, ...] = (
    Row(_IN + "embeddings.class_embedding", "v.class_embd", "hidden"),
    Row(
        _IN + "embeddings.patch_embedding.weight",
        "v.patch_embd.weight",
        "hidden colours patch patch",
    ),
    Row(
        _IN + "embeddings.position_embedding.weight",
        "v.position_embd.weight",
        "places hidden",
        via=class_token_last,
    ),
    *biased(_IN + "pre_layrnorm", "v.pre_ln", "hidden"),
)
ROWS = (*spelled(_ROWS, "vision_tower.vision_model.", "vision_tower."), *siglip.LAYERS)
"""All tensors but the last norm, which only the comparison with texts needs.

llama.cpp's graph adds the class token last, so its position is last, too.
"""
