"""Layers for multi-token prediction: their rows of the tensor table and their keys.

Each is a decoder layer like the model's last. Its input is the hidden state joined with the
embedding of the next token, multiplied by one matrix (eh_proj). Checkpoints number these layers
after the model's own.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynquant.arch.base import Prediction, Row, on
from dynquant.keys import i32s, u32

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


_FOLDED = (
    Row("mtp.layers.0.eh_proj.weight", _OUT + "eh_proj.weight", "hidden hidden_twice"),
    Row("mtp.layers.0.enorm.weight", _OUT + "enorm.weight", "hidden"),
    Row("mtp.layers.0.hnorm.weight", _OUT + "hnorm.weight", "hidden"),
    Row("mtp.layers.1.norm.weight", "blk.{}.post_attention_norm.weight", "hidden"),
    Row("mtp.layers.1.final_layernorm.weight", _OUT + "shared_head_norm.weight", "hidden"),
)


def folded_rows(
    n: int, layer: str, attention: Sequence[Row], experts: Sequence[Row]
) -> tuple[Row, ...]:
    """Return the rows of a prediction layer that checkpoints store as two (Nemotron-H).

    n:         the number of the layer
    layer:     the beginning of the names of the model's layers ("model.layers.{}.")
    attention: the rows of a layer with attention, with its norm
    experts:   the rows of a layer with experts, without its norm
    """
    first = (row.within(layer, "mtp.layers.0.") for row in attention)
    second = (row.within(layer, "mtp.layers.1.") for row in experts)
    return on([n], (*_FOLDED, *first, *second))


def folded_prediction(arch: str, n_kv: Sequence[int], widths: Sequence[int]) -> Prediction:
    """Return the description of that layer, the last of all.

    n_kv, widths: heads of K and V, and the width of the MLP or of an expert, for each layer
    """
    n = len(widths)
    keys = {
        "block_count": u32(n),
        "nextn_predict_layers": u32(1),
        "attention.head_count_kv": i32s(n_kv),
        "feed_forward_length": i32s(widths),
    }
    return Prediction(range(n - 1, n), {f"{arch}.{name}": value for name, value in keys.items()})
