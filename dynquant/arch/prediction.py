"""Layers for multi-token prediction: their rows of the tensor table and their keys.

Each is a decoder layer like the model's last. Its input is the hidden state joined with the
embedding of the next token, multiplied by one matrix (eh_proj). Checkpoints number these layers
after the model's own.
"""

from __future__ import annotations

from dynquant.arch.base import Prediction, Row, on
from dynquant.keys import u32

_IN, _OUT = "model.layers.{}.", "blk.{}.nextn."

_ROWS = (
    Row(_IN + "eh_proj.weight", _OUT + "eh_proj.weight", "hidden hidden_twice"),
    Row(_IN + "enorm.weight", _OUT + "enorm.weight", "hidden"),
    Row(_IN + "hnorm.weight", _OUT + "hnorm.weight", "hidden"),
    Row(_IN + "embed_tokens.weight", _OUT + "embed_tokens.weight", "vocab hidden", optional=True),
    Row(
        _IN + "shared_head.head.weight",
        _OUT + "shared_head_head.weight",
        "vocab hidden",
        optional=True,
    ),
    Row(_IN + "shared_head.norm.weight", _OUT + "shared_head_norm.weight", "hidden"),
)


def prediction_rows(layers: range) -> tuple[Row, ...]:
    """Return the rows that these layers have besides those of a decoder layer.

    Dimensions: `hidden`, `hidden_twice` and `vocab`.
    """
    return on(layers, _ROWS)


def prediction_of(arch: str, layers: range) -> Prediction | None:
    """Return the description of prediction layers; None if the range is empty."""
    if not layers:
        return None
    keys = {"block_count": u32(layers.stop), "nextn_predict_layers": u32(len(layers))}
    return Prediction(
        layers,
        {f"{arch}.{name}": value for name, value in keys.items()},
        {"nextn.embed_tokens": "token_embd.weight", "nextn.shared_head_head": "output.weight"},
    )
