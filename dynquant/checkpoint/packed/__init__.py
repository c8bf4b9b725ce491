"""Weights of quantized checkpoints, by name, for all supported quantization methods.

A weight that is stored as several tensors (codes, scales, zeros, groups) becomes one weight with
the name that it has in a checkpoint of floats. Its parts are not listed as tensors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dynquant.checkpoint.packed.mxfp4 import find_mxfp4
from dynquant.checkpoint.packed.rotations import undo_rotations
from dynquant.checkpoint.packed.scaled import FLOAT8, find_scaled
from dynquant.checkpoint.packed.settings import read_settings
from dynquant.checkpoint.packed.ternary import find_ternary
from dynquant.checkpoint.packed.transposed import find_transposed
from dynquant.checkpoint.packed.weight import Found, Packed, Weight
from dynquant.checkpoint.safetensors import Checkpoint
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError

__all__ = ["Packed", "Weight", "Weights", "unpack"]

_ACTIVATIONS = re.compile(
    r"(.*[._])?((input|output|activation)_(global_)?(scale(_ub)?|zero_point)|qscale_act"
    r"|[kqv]_(scale|zero_point))"
)
_ACTIVATIONS_WHY = "scales of activations; llama.cpp does not quantize activations in advance"
_PACKED_NAME = re.compile(r".*(\.qweight|\.weight_packed|_blocks)")


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint by name; ignored: tensors that are not weights, with reasons."""

    tensors: dict[str, StoredTensor | Packed]
    ignored: dict[str, str]


def unpack(checkpoint: Checkpoint) -> Weights:
    """Return the weights of a checkpoint; reads headers only.

    One exception: for packed integers, one small tensor for each shape is read, because only it
    states the length of a row.

    Raises CheckpointError for a quantization method or setting that is not supported, for rotations
    that cannot be undone, and for all weights whose parts are missing or do not fit together.
    """
    tensors, folder = checkpoint.tensors, checkpoint.folder
    settings = read_settings(checkpoint)
    found = Found()
    if settings is None:
        for name, tensor in tensors.items():
            packed = tensor.dtype in ("U8", "I32") and _PACKED_NAME.fullmatch(name)
            if tensor.dtype in FLOAT8 or packed:
                found.fault(
                    name,
                    f"is stored as {tensor.dtype}, but config.json has no quantization_config that"
                    " defines its numbers; use the config.json that belongs to the checkpoint",
                )
        CheckpointError.raise_any(found.messages(folder))
        return Weights(dict(tensors), {})
    if settings.method in ("gptq", "awq"):
        find_transposed(tensors, settings, found)
    elif settings.method == "mxfp4":
        find_mxfp4(tensors, found)
    elif settings.method == "bitnet":
        find_ternary(tensors, settings, found)
    else:
        find_scaled(tensors, settings, found)
    for name in found.weights:
        if name in tensors and name not in found.consumed:
            found.fault(name, "is stored twice, quantized and as floats; remove one of them")
    CheckpointError.raise_any(found.messages(folder))
    plain = {name: t for name, t in tensors.items() if name not in found.consumed}
    weights: dict[str, StoredTensor | Packed] = {**plain, **found.weights}
    rotated = undo_rotations(tensors, weights, settings, checkpoint.config, found)
    CheckpointError.raise_any(found.messages(folder))
    weights |= rotated.weights
    ignored = {name: _ACTIVATIONS_WHY for name in plain if _ACTIVATIONS.fullmatch(name)}
    left_out = rotated.consumed - rotated.ignored.keys()
    return Weights(
        {name: weight for name, weight in weights.items() if name not in left_out},
        ignored | rotated.ignored,
    )
