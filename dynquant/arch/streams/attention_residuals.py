"""Attention residuals (Kimi-K3): each block reads a weighted sum of earlier states of the stream.

Every few layers the residual stream is put aside, and a new one starts. Before each block, a
softmax weights those states and the stream. A state's score is a norm times a matrix with one row;
llama.cpp needs the product of their factors.
"""

from __future__ import annotations

from dynquant.arch.base import Row

_IN, _OUT = "model.layers.{}.", "blk.{}."


def _score(stored: str, name: str) -> Row:
    return Row(
        f"{stored}_norm.weight", name, "hidden", times=(f"{stored}_proj.weight", "one hidden")
    )


SCORES = (
    _score(_IN + "self_attention_res", _OUT + "attn_res_score.weight"),
    _score(_IN + "mlp_res", _OUT + "ffn_res_score.weight"),
)
"""The rows of a layer; dimensions: `hidden` and `one`."""

LAST_SCORE = _score("model.output_attn_res", "output_res_score.weight")
"""The row before the last norm."""
