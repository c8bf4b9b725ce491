"""Numbers that a checkpoint stores as tensors, one for each layer, and a GGUF as keys."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.errors import CheckpointError
from dynquant.keys import Keys, f32s
from dynquant.transforms import read_weights


def numbers_as_keys(
    tensors: tuple[ModelTensor, ...], names: Collection[str], folder: Path
) -> tuple[tuple[ModelTensor, ...], Keys, dict[str, str]]:
    """Return the tensors without numbers, and the numbers as keys, in the order of the layers.

    Also returned are the stored names of the numbers, with the reason why no tensor has them.

    names: of the keys; the tensors are named `blk.N.` and the name of the key

    Raises CheckpointError for each number that is not finite.
    """
    left: list[ModelTensor] = []
    found: dict[str, dict[int, float]] = {}
    problems: list[str] = []
    reasons: dict[str, str] = {}
    for tensor in tensors:
        layer = tensor.parts.layer
        name = tensor.name.removeprefix(f"blk.{layer}.")
        if layer is None or name not in names:
            left.append(tensor)
            continue
        value = float(read_weights(tensor.source, 0, 1)[0, 0])
        found.setdefault(name, {})[layer] = value
        reasons |= dict.fromkeys(tensor.stored_names, f"llama.cpp computes with the key {name}")
        if not np.isfinite(value):
            stored = ", ".join(tensor.stored_names)
            problems.append(f"{folder}: {stored} is {value}; download the checkpoint again")
    CheckpointError.raise_any(problems)
    keys = {name: f32s([values[n] for n in sorted(values)]) for name, values in found.items()}
    return tuple(left), keys, reasons
