"""Warnings about parts of a model that the output leaves out, one for each kind of part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dynquant.name_lists import grouped

_NOTHING_LOST = re.compile(
    r"equal to .*|zero in every element, .*|llama\.cpp computes .*|the positions 0, 1, 2 .*"
    r"|scales of activations; .*|a rotation of queries and keys, .*"
    r"|a matrix of transform_config .*|dropped by .*|the encoder's own head, which is not used"
)
"""Reasons that need no warning: the file computes the same without the tensor, or a rule names it.
Tensors with any other reason are reported."""

_AHEAD = (
    "layers that predict further ahead; to write them, use a recipe with `prediction_layers: keep`"
)


def left_out(ignored: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for each part that is left out: its tensors, what it is, where to get it.

    ignored: stored tensors that the output leaves out, with the reason
    """
    parts: dict[str, list[str]] = {}
    for name, reason in ignored.items():
        if not _NOTHING_LOST.fullmatch(reason):
            part = _AHEAD if reason.startswith("predicts further ahead") else reason
            parts.setdefault(part, []).append(name)
    for part, names in parts.items():
        (first, *more) = grouped(names)
        tensors = f"{len(names)} tensors, {first}{' and others' if more else ''}"
        yield f"left out: {names[0] if len(names) == 1 else tensors}: {part}"
