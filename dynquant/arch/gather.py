"""From a checkpoint's tensors to the model's: each used once, or ignored for a reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from dynquant.arch.base import Architecture, ModelTensor, Row, TensorName
from dynquant.checkpoint.header import StoredTensor
from dynquant.checkpoint.names import grouped
from dynquant.checkpoint.safetensors import Checkpoint
from dynquant.errors import ArchitectureError, CheckpointError
from dynquant.tensors import TensorSource

HEAD = "lm_head.weight"
"""The tensor that checkpoints of tied models leave out; config.json may fail to say so."""

_CHUNK = 1 << 22


@dataclass(frozen=True)
class _Wanted:
    stored: str
    name: str
    shape: tuple[int, ...]


def gather(
    architecture: Architecture, checkpoint: Checkpoint
) -> tuple[tuple[ModelTensor, ...], dict[str, str]]:
    """Return the model's tensors, and the stored ones that are left out with the reason.

    Raises ArchitectureError listing all that are missing, left over or of another shape than
    config.json says, or CheckpointError listing all whose dtype is not read as weights.
    """
    stored = checkpoint.tensors
    bare = {name.partition(".")[0] for name in stored} >= {"embed_tokens", "layers"}
    wanted = list(_wanted(architecture, bare))
    ignored = {
        name: reason
        for name in stored
        for pattern, reason in architecture.ignored.items()
        if re.fullmatch(pattern, name)
    }
    if architecture.tied is not None:
        head, embedding = (_bare(n) if bare else n for n in architecture.tied)
        wanted, tied = _tie(wanted, stored, head, embedding)
        ignored |= tied
    tensors, unusable = _use(architecture, wanted, stored)
    problems = list(_problems(architecture, checkpoint, wanted, ignored))
    ArchitectureError.raise_any([*problems, *unusable] if problems else [])
    CheckpointError.raise_any(unusable)
    return (*architecture.extra, *tensors), ignored


def _bare(name: str) -> str:
    """Return a name as checkpoints of the model without its head spell it."""
    return name.removeprefix("model.")


def _wanted(architecture: Architecture, bare: bool) -> Iterator[_Wanted]:
    """Yield the tensor table written out, in the order of the output: layer by layer."""
    rows = architecture.rows
    layered = [row for row in rows if "{}" in row.name]
    first = rows.index(layered[0])
    yield from (_expand(architecture, row, bare) for row in rows[:first])
    for layer in range(architecture.n_layers):
        yield from (_expand(architecture, row, bare, layer) for row in layered)
    yield from (_expand(architecture, r, bare) for r in rows[first:] if r not in layered)


def _expand(architecture: Architecture, row: Row, bare: bool, layer: int | None = None) -> _Wanted:
    stored = row.stored.format(layer)
    shape = tuple(architecture.sizes[size] for size in row.shape.split())
    return _Wanted(_bare(stored) if bare else stored, row.name.format(layer), shape)


def _tie(
    wanted: list[_Wanted], stored: dict[str, StoredTensor], head: str, embedding: str
) -> tuple[list[_Wanted], dict[str, str]]:
    """Drop the output matrix where the embedding stands in for it.

    As transformers does: two stored matrices that differ are not tied, whatever config.json says,
    and where only the head is stored it serves as the embedding.
    """
    without_head = [w for w in wanted if w.stored != head]
    if head not in stored:
        return without_head, {}
    if embedding not in stored:
        return [
            _Wanted(head, w.name, w.shape) if w.stored == embedding else w for w in without_head
        ], {}
    if _equal(stored[head], stored[embedding]):
        return without_head, {head: f"equal to {embedding}, which llama.cpp uses in its place"}
    return wanted, {}


def _equal(a: StoredTensor, b: StoredTensor) -> bool:
    """Tell whether two tensors hold the same bytes, reading up to the first difference."""
    if (a.dtype, a.shape, a.n_bytes) != (b.dtype, b.shape, b.n_bytes):
        return False
    for start in range(0, a.n_bytes, _CHUNK):
        found = [np.empty(min(_CHUNK, a.n_bytes - start), np.uint8) for _ in range(2)]
        for tensor, into in zip((a, b), found, strict=True):
            tensor.file.read(tensor.offset + start, into)
        if not np.array_equal(found[0], found[1]):
            return False
    return True


def _use(
    architecture: Architecture, wanted: list[_Wanted], stored: dict[str, StoredTensor]
) -> tuple[list[ModelTensor], list[str]]:
    """Return a tensor for each wanted one that is there, and messages for unreadable dtypes."""
    tensors: list[ModelTensor] = []
    unusable: list[str] = []
    for want in wanted:
        if want.stored not in stored or stored[want.stored].shape != want.shape:
            continue
        try:
            source: TensorSource = stored[want.stored].source()
        except CheckpointError as e:
            unusable += e.messages
            continue
        via = architecture.via.get(TensorName.parse(want.name).role)
        tensors.append(ModelTensor(want.name, via(source) if via else source))
    return tensors, unusable


def _problems(
    architecture: Architecture,
    checkpoint: Checkpoint,
    wanted: list[_Wanted],
    ignored: Iterable[str],
) -> Iterator[str]:
    stored, folder = checkpoint.tensors, checkpoint.folder
    for name in grouped(w.stored for w in wanted if w.stored not in stored):
        tied = name == HEAD and architecture.tied is None
        hint = "; tie_word_embeddings in config.json is false" if tied else ""
        yield f"{folder}: {name} is missing, a tensor of {architecture.name}{hint}"
    shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for want in wanted:
        if want.stored in stored and stored[want.stored].shape != want.shape:
            shapes.setdefault((stored[want.stored].shape, want.shape), []).append(want.stored)
    for (found, expected), names in shapes.items():
        for name in grouped(names):
            yield (
                f"{folder}: {name} has shape {list(found)}, but by config.json it is"
                f" {list(expected)}"
            )
    known = {w.stored for w in wanted}.union(ignored)
    for name in grouped(n for n in stored if n not in known):
        yield (
            f"{folder}: {name} is no tensor of {architecture.name} as config.json describes it, and"
            " would be lost"
        )
