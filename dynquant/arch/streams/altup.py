"""Gemma 3n's four streams of states (AltUp) and low-rank residuals (LAuReL): rows and dimensions.

A layer computes on one stream; the others are predicted from it and corrected by its result.
"""

from __future__ import annotations

from dynquant.arch.base import Row

STREAMS, RANK = 4, 64
"""Constants of llama.cpp's graph: the number of streams, and the rank of the residuals."""

_IN, _OUT = "model.layers.{}.", "blk.{}."
STACKS = (
    Row("model.altup_projections.{expert}.weight", "altup_proj.weight", "hidden hidden"),
    Row(
        "model.altup_unembed_projections.{expert}.weight",
        "altup_unembd_proj.weight",
        "hidden hidden",
    ),
)
"""Stacks of a matrix for each stream but the first: from the embedding, and to the output."""

ALTUP = (
    Row(
        _IN + "altup.correction_coefs.weight",
        _OUT + "altup_correct_coef.weight",
        "streams streams",
    ),
    Row(_IN + "altup.correct_output_scale", _OUT + "altup_correct_scale.weight", "hidden"),
    Row(_IN + "altup.prediction_coefs.weight", _OUT + "altup_predict_coef.weight", "pairs streams"),
    Row(_IN + "altup.modality_router.weight", _OUT + "altup_router.weight", "streams hidden"),
    Row(_IN + "altup.router_norm.weight", _OUT + "altup_router_norm.weight", "hidden"),
    Row(_IN + "laurel.linear_left.weight", _OUT + "laurel_l.weight", "rank hidden"),
    Row(_IN + "laurel.linear_right.weight", _OUT + "laurel_r.weight", "hidden rank"),
    Row(_IN + "laurel.post_laurel_norm.weight", _OUT + "laurel_post_norm.weight", "hidden"),
)
"""The rows of a layer."""

SIZES = {"streams": STREAMS, "pairs": STREAMS**2, "rank": RANK}
