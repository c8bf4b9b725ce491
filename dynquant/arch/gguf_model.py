"""A GGUF is a model ready made: its keys and tensors as they are, whatever its architecture.

What llama.cpp's converter can make can be quantized so, families that are none of ours included.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from dynquant.arch.base import Model, ModelTensor
from dynquant.checkpoint.gguf_shards import Shards, open_gguf
from dynquant.errors import CheckpointError
from dynquant.keys import Keys
from dynquant.name_lists import grouped
from dynquant.quants.table import ALL, KEPT
from dynquant.tensors import ShardFile, Stored

_READ = {t.ggml_type: t for t in (*ALL.values(), *KEPT.values())}

_NOT_KEPT = re.compile(
    # How the source is cut and laid out; the output is one file with places of its own.
    r"split\..+|general\.alignment"
    # What the plan says anew of the output.
    r"|general\.(file_type|quantization_version)|dynquant\.(version|recipe|recipe_sha256|effort)"
    # The importance that the source's blocks were made with: true of none that is encoded here,
    # and beside another imatrix a mixture of two. A plan with an imatrix writes its own.
    r"|quantize\.imatrix\..+|dynquant\.imatrix_sha256"
)


def load_gguf(path: Path) -> Model:
    """Describe the model in a GGUF, given its file or any of its shards.

    Raises CheckpointError for files that are damaged, missing or hold no model, and for tensors of
    types that are not read.
    """
    shards = open_gguf(path)
    CheckpointError.raise_any(_unreadable(shards))
    name = _architecture(shards)
    readers = {file.path: ShardFile(file.path) for file in shards.files}
    tensors = tuple(
        ModelTensor(
            tensor.name,
            Stored(
                readers[file.path],
                file.data_offset + tensor.offset,
                tensor.shape or (1,),  # ggml counts one row of one weight
                _READ[tensor.ggml_type],
            ),
        )
        for file, tensor in shards.tensors()
    )
    keys: Keys = {k: v for k, v in shards.keys.items() if not _NOT_KEPT.fullmatch(k)}
    return Model(name, keys, tensors, {}, files=tuple(readers), is_gguf=True)


def _architecture(shards: Shards) -> str:
    kind = shards.keys.get("general.type")
    if kind is not None and kind.value == "imatrix":
        raise CheckpointError(f"{shards.path}: is an imatrix, not a model; give it to --imatrix")
    found = shards.keys.get("general.architecture")
    if found is None or not isinstance(found.value, str) or not found.value:
        raise CheckpointError(f"{shards.path}: has no general.architecture; not a model")
    return found.value


def _unreadable(shards: Shards) -> Iterator[str]:
    """Say which tensors have types that GGUF knows and the encoders do not read."""
    groups: dict[str, list[str]] = {}
    for _, tensor in shards.tensors():
        if tensor.ggml_type not in _READ:
            named = f"{tensor.type_name} (ggml type {tensor.ggml_type})"
            groups.setdefault(named, []).append(tensor.name)
    for named, names in groups.items():
        yield (
            f"{shards.path}: {', '.join(grouped(names))}: stored as {named}, which is not read as"
            " weights; take the GGUF that it was made from"
        )
