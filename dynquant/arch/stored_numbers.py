"""Numbers that a checkpoint stores as tensors and a GGUF as keys: one for each layer, or a list."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from dynquant.arch.base import Architecture, ModelTensor
from dynquant.errors import CheckpointError, Problems
from dynquant.keys import Keys, f32s, u64s
from dynquant.tensors import row_bytes
from dynquant.transforms import read_weights

_Found = tuple[tuple[ModelTensor, ...], Keys, dict[str, str]]


def stored_keys(
    tensors: tuple[ModelTensor, ...], architecture: Architecture, folder: Path
) -> _Found:
    """Return the tensors without those that are values of keys, and these keys.

    Also returned are the stored names of the values, with the reason why no tensor has them.

    Raises CheckpointError for each number that is not finite, and for each list that is not stored
    as integers or has others than permitted.
    """
    problems, nothing = Problems(), (tensors, Keys(), dict[str, str]())
    left, numbers, of_numbers = (
        problems.attempt(lambda: _numbers(tensors, architecture.numbers, folder)) or nothing
    )
    left, lists, of_lists = (
        problems.attempt(lambda: _integers(left, architecture.integers, folder)) or nothing
    )
    problems.raise_any()
    return left, numbers | lists, of_numbers | of_lists


def _numbers(tensors: tuple[ModelTensor, ...], names: Collection[str], folder: Path) -> _Found:
    """Return the numbers in the order of the layers.

    names: of the keys; the tensors are named `blk.N.` and the name of the key
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


_INTEGERS = {"I32": "<i4", "I64": "<i8"}


def _integers(
    tensors: tuple[ModelTensor, ...], permitted: Mapping[str, range], folder: Path
) -> _Found:
    """Return lists of integers as keys with the names of the tensors."""
    left: list[ModelTensor] = []
    keys: Keys = {}
    problems: list[str] = []
    reasons: dict[str, str] = {}
    for tensor in tensors:
        limits = permitted.get(tensor.name)
        if limits is None:
            left.append(tensor)
            continue
        stored, dtype = ", ".join(tensor.stored_names), tensor.source.stored.name
        if dtype not in _INTEGERS:
            problems.append(
                f"{folder}: {stored} is stored as {dtype}, which may have rounded its integers;"
                " download the checkpoint again"
            )
            continue
        content = np.empty(row_bytes(tensor.source), np.uint8)
        tensor.source.read(0, 1, content)
        values = [int(value) for value in content.view(_INTEGERS[dtype])]
        keys[tensor.name] = u64s(values)
        reasons |= dict.fromkeys(tensor.stored_names, f"llama.cpp computes with {tensor.name}")
        if wrong := [value for value in values if value not in limits]:
            problems.append(
                f"{folder}: {stored} has {wrong[0]}; it must be {limits.start} to"
                f" {limits.stop - 1} in a model of this size, take config.json and the tensors"
                " from one model"
            )
    CheckpointError.raise_any(problems)
    return tuple(left), keys, reasons
