"""SigLIP's vision encoder, which several larger models have."""

from __future__ import annotations

from typing import Any

from dynquant.arch.base import Row
from dynquant.arch.settings import constant
from dynquant.arch.towers.vision import OUT, biased, spelled

ONLY = constant(3, "num_channels")
"""Settings with one supported value."""

DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
"""Defaults of transformers' class."""

_IN = "model.vision_tower.vision_model."
_LAYER = _IN + "encoder.layers.{}."

_ROWS: tuple[Row, ...] = (
    *biased(_IN + "embeddings.patch_embedding", "v.patch_embd", "hidden colours patch patch"),
    Row(_IN + "embeddings.position_embedding.weight", "v.position_embd.weight", "patches hidden"),
    *biased(_LAYER + "layer_norm1", OUT + "ln1", "hidden"),
    *biased(_LAYER + "self_attn.q_proj", OUT + "attn_q", "hidden hidden"),
    *biased(_LAYER + "self_attn.k_proj", OUT + "attn_k", "hidden hidden"),
    *biased(_LAYER + "self_attn.v_proj", OUT + "attn_v", "hidden hidden"),
    *biased(_LAYER + "self_attn.out_proj", OUT + "attn_out", "hidden hidden"),
    *biased(_LAYER + "layer_norm2", OUT + "ln2", "hidden"),
    *biased(_LAYER + "mlp.fc1", OUT + "ffn_up", "ffn hidden"),
    *biased(_LAYER + "mlp.fc2", OUT + "ffn_down", "hidden ffn"),
    *biased(_IN + "post_layernorm", "v.post_ln", "hidden"),
)
ROWS = spelled(_ROWS, "vision_tower.vision_model.", "vision_tower.")
"""All tensors; transformers 5 writes them without `vision_model.`."""

LAYERS = tuple(row for row in ROWS if row.name.startswith(OUT))
"""The tensors of the layers."""

INNER = tuple(row.within("vision_tower.", "") for row in _ROWS)
"""All tensors, for larger models that name the tower `vision_model`."""

UNUSED = {
    r".*vision_tower\.(vision_model\.)?head\..*": "the encoder's own head, which is not used",
    r".*\.position_ids": "numbers from zero on, which need no tensor",
}
"""Stored tensors that no larger model uses."""
