"""Warnings about parts of a model that the output leaves out, one for each kind of part."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dynquant.name_lists import grouped

_NOTHING_LOST = re.compile(
    r"equal to .*|zero in every element, .*|llama\.cpp computes .*|the positions 0, 1, 2 .*"
    r"|scales of activations; .*|a rotation of queries and keys, .*"
    r"|a matrix of transform_config .*|dropped by .*"
)
"""Reasons that need no warning: the file computes the same without the tensor, or a rule names it.
Tensors with any other reason are reported."""

_OTHER_FILE = (
    "which llama.cpp reads from a separate file; llama.cpp's `convert_hf_to_gguf.py --mmproj` makes"
    " it if it supports the model"
)
_PARTS = (
    (r"(.*\.)?(audio(_\w+)?|embed_audio|speech_\w+)\..*", f"the audio model, {_OTHER_FILE}"),
    (
        r"(.*\.)?((vision|visual|image)(_\w+)?|embed_vision|sam_model|qwen2_model|view_seperator"
        r"|(multi_modal_|mm_)?projector)(\..*)?",
        f"the vision model, {_OTHER_FILE}",
    ),
)
"""Parts by their stored names, and where they are available."""

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
            parts.setdefault(_part(name, reason), []).append(name)
    for part, names in parts.items():
        (first, *more) = grouped(names)
        tensors = f"{len(names)} tensors, {first}{' and others' if more else ''}"
        yield f"left out: {names[0] if len(names) == 1 else tensors}: {part}"


def _part(name: str, reason: str) -> str:
    if reason.startswith("predicts further ahead"):
        return _AHEAD
    return next((part for pattern, part in _PARTS if re.fullmatch(pattern, name)), reason)
