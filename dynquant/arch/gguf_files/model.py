"""Models in GGUF files: keys and tensors are taken as they are, for any architecture.

Models of families that this package does not describe can be quantized after llama.cpp's converter
has made a GGUF of them. For the families that it does describe, the tensors are checked as `verify`
checks them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.gguf_files.needs import (
    Contents,
    doubts,
    key_problems,
    tensor_problems,
    wrong_embedding,
)
from dynquant.arch.gguf_files.separate_experts import stacked
from dynquant.checkpoint.gguf_shards import Shards, open_gguf
from dynquant.errors import CheckpointError
from dynquant.keys import Keys
from dynquant.name_lists import grouped
from dynquant.quants.table import ALL, KEPT
from dynquant.stored_files import ALL_HERE, Elsewhere, stored_file
from dynquant.tensors import ShardFile, Stored

_READ = {t.ggml_type: t for t in (*ALL.values(), *KEPT.values())}

_FIX = "get another copy of the file, or make it again from its checkpoint"

_NOT_KEPT = re.compile(
    # Shards and layout of the source; the output has a different layout.
    r"split\..+|general\.alignment"
    # Written again by the plan.
    r"|general\.(file_type|quantization_version)|dynquant\.(version|recipe|recipe_sha256|effort)"
    # The importance that the source's blocks were encoded with. It does not apply to blocks that
    # are encoded again, and would mix with the keys that a plan writes for its imatrix.
    r"|quantize\.imatrix\..+|dynquant\.imatrix_sha256"
)


def load_gguf(path: Path, elsewhere: Elsewhere = ALL_HERE) -> Model:
    """Describe the model in a GGUF, given its file or any of its shards.

    Experts that are stored as a tensor each become one tensor for each layer, as llama.cpp needs.
    Keys that llama.cpp needs and that are missing are reported in `deviations`: users can set keys.
    So are tensors that are probably missing.

    Raises CheckpointError if files are damaged, missing or hold no model, if tensors have a type
    that is not supported, or if tensors that llama.cpp's graph needs are missing.
    """
    found = stored_gguf(path, elsewhere)
    tensors = stacked(found, path)
    contents = Contents(found.keys, {t.name: t.shape for t in tensors})
    problems = list(tensor_problems(contents))
    if wrong := wrong_embedding(contents):
        problems.append(f"token_embd.weight: {wrong}")
    CheckpointError.raise_any(f"{path}: {p}; {_FIX}" for p in problems)
    warnings = tuple(f"{path}: {p}" for p in (*key_problems(contents), *doubts(contents)))
    return replace(found, tensors=tensors, deviations=warnings)


def stored_gguf(path: Path, elsewhere: Elsewhere = ALL_HERE) -> Model:
    """Describe a GGUF with the tensors that it has, whether or not a runtime can load it.

    Raises CheckpointError if files are damaged, missing or hold no model, or if tensors have a
    type that is not supported.
    """
    shards = open_gguf(path, elsewhere)
    CheckpointError.raise_any(_unreadable(shards))
    name = _architecture(shards)
    readers = {file.path: ShardFile(stored_file(file.path, elsewhere)) for file in shards.files}
    tensors = tuple(
        ModelTensor(
            tensor.name,
            Stored(
                readers[file.path],
                file.data_offset + tensor.offset,
                tensor.shape or (1,),  # a scalar is one row of one weight in ggml
                _READ[tensor.ggml_type],
            ),
            stored_names=(tensor.name,),
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
    """Yield a message for each GGUF type that is not supported, with its tensors."""
    groups: dict[str, list[str]] = {}
    for _, tensor in shards.tensors():
        if tensor.ggml_type not in _READ:
            named = f"{tensor.type_name} (ggml type {tensor.ggml_type})"
            groups.setdefault(named, []).append(tensor.name)
    for named, names in groups.items():
        yield (
            f"{shards.path}: {', '.join(grouped(names))}: stored as {named}, which is not"
            " supported; use the GGUF that this file was made from"
        )
