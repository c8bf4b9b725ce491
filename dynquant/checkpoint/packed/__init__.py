"""How stored numbers become weights: names to rows, whatever a checkpoint was quantized with.

A weight that is stored as several tensors (codes, scales, zeros, groups) is one weight here, under
the name that it has in a checkpoint of floats, and what it is made of is no tensor of its own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dynquant.checkpoint.packed.mxfp4 import find_mxfp4
from dynquant.checkpoint.packed.scaled import FLOAT8, find_scaled
from dynquant.checkpoint.packed.settings import read_settings
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
_ACTIVATIONS_WHY = "scales of activations, which llama.cpp does not quantize in advance"
_PACKED_NAME = re.compile(r".*(\.qweight|\.weight_packed|_blocks)")


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint by name, and stored tensors that are none, with the reason."""

    tensors: dict[str, StoredTensor | Packed]
    ignored: dict[str, str]


def unpack(checkpoint: Checkpoint) -> Weights:
    """Return a checkpoint's weights, each once, reading headers only.

    (And of packed integers one small tensor for each shape, since only it says how long a row is.)

    Raises CheckpointError for a way of quantizing that is not read, and for all weights whose parts
    are missing or do not fit together.
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
                    f"is stored as {tensor.dtype}, and config.json has no quantization_config that"
                    " says what its numbers mean; take the config.json that belongs to it",
                )
        CheckpointError.raise_any(found.messages(folder))
        return Weights(dict(tensors), {})
    if settings.method in ("gptq", "awq"):
        find_transposed(tensors, settings, found)
    elif settings.method == "mxfp4":
        find_mxfp4(tensors, found)
    else:
        find_scaled(tensors, settings, found)
    for name in found.weights:
        if name in tensors and name not in found.consumed:
            found.fault(name, "is there twice, quantized and not; remove one of them")
    CheckpointError.raise_any(found.messages(folder))
    plain = {name: t for name, t in tensors.items() if name not in found.consumed}
    ignored = {name: _ACTIVATIONS_WHY for name in plain if _ACTIVATIONS.fullmatch(name)}
    return Weights({**plain, **found.weights}, ignored)
