"""Dense modules of embedding models: matrices applied after pooling (sentence-transformers).

    modules.json      lists them, each with the folder of its config.json and model.safetensors
    config.json       in_features, out_features, bias, activation_function
    model.safetensors linear.weight [out_features, in_features]

llama.cpp's EmbeddingGemma computes two of them, without bias and activation.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dynquant.arch.base import ModelTensor
from dynquant.arch.config import Count, Truth, read_config
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32
from dynquant.quants.table import FLOATS
from dynquant.untrusted import shown

WITH_DENSE = "gemma-embedding"
"""The architecture whose graph computes dense modules."""

_NAMES = ("dense_2", "dense_3")
"""In the order of modules.json: they stand after the model and its pooling."""

_IDENTITY = "torch.nn.modules.linear.Identity"
_WEIGHT = "linear.weight"


@dataclass(frozen=True)
class _Dense:
    in_features: Count
    out_features: Count
    bias: Truth = True
    activation_function: str = "torch.nn.modules.activation.Tanh"


def read_dense(folders: list[Path], n_hidden: int) -> tuple[tuple[ModelTensor, ...], Keys]:
    """Return the tensors of dense modules, and the keys of their sizes.

    folders:  of the modules, in order
    n_hidden: weights of a vector before the first, and after the last

    Raises ArchitectureError if llama.cpp cannot compute them, CheckpointError if files are damaged.
    """
    if not folders:
        return (), {}
    if len(folders) != len(_NAMES):
        raise ArchitectureError(
            f"{folders[0].parent}: modules.json has {len(folders)} Dense modules; llama.cpp"
            f" computes {len(_NAMES)} or none"
        )
    tensors: list[ModelTensor] = []
    keys: Keys = {}
    problems: list[str] = []
    sizes: list[int] = []
    for name, folder in zip(_NAMES, folders, strict=True):
        checkpoint = open_checkpoint(folder)
        where = str(folder / "config.json")
        dense = read_config(_Dense, checkpoint.config, where)
        shape = (dense.out_features, dense.in_features)
        sizes += [dense.in_features, dense.out_features]
        problems += _problems(dense, where)
        found = checkpoint.tensors.get(_WEIGHT)
        if found is None or found.shape != shape or found.dtype not in FLOATS:
            stated = f"{found.dtype} {list(found.shape)}" if found else "missing"
            problems.append(
                f"{folder}: {_WEIGHT} is {stated}, but must be floats of shape {list(shape)};"
                " download the folder again"
            )
            continue
        tensors.append(
            ModelTensor(
                f"{name}.weight", found.source(), stored_names=(f"{folder.name}/{_WEIGHT}",)
            )
        )
        keys[f"{WITH_DENSE}.{name}_feat_in"] = u32(dense.in_features)
        keys[f"{WITH_DENSE}.{name}_feat_out"] = u32(dense.out_features)
    if (sizes[0], sizes[1], sizes[3]) != (n_hidden, sizes[2], n_hidden):
        problems.append(
            f"{folders[0].parent}: Dense modules of {sizes[0]} to {sizes[1]} and {sizes[2]} to"
            f" {sizes[3]} weights do not lead from vectors of {n_hidden} to {n_hidden}, as"
            " llama.cpp needs"
        )
    ArchitectureError.raise_any(problems)
    return tuple(tensors), keys


def _problems(dense: _Dense, where: str) -> Iterator[str]:
    if dense.bias:
        yield f"{where}: bias is true; llama.cpp computes Dense modules without bias"
    if dense.activation_function != _IDENTITY:
        yield (
            f"{where}: activation_function is {shown(dense.activation_function)}; llama.cpp"
            f" computes Dense modules without one ({_IDENTITY})"
        )
