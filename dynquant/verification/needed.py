"""Report what is missing to load a model: tensors, layers, tokenizer keys."""

from __future__ import annotations

from collections.abc import Iterator

from dynquant.arch.gguf_files.needs import (
    Contents,
    doubts,
    key_problems,
    tensor_problems,
    unchecked,
    wrong_embedding,
)
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.verification.findings import Fault


def needed_faults(shards: Shards) -> Iterator[Fault]:
    """Yield what a runtime needs and does not find; nothing for files that are not whole models."""
    contents = _contents(shards)
    for what in (*tensor_problems(contents), *key_problems(contents)):
        yield Fault(what, shards.path)
    wrong = wrong_embedding(contents)
    for file, tensor in shards.tensors():
        if wrong and tensor.name == "token_embd.weight":
            yield Fault(wrong, file.path, tensor.name, file.data_offset + tensor.offset)


def needed_warnings(shards: Shards) -> Iterator[str]:
    """Yield what is probably missing, though a runtime computes without it."""
    for what in doubts(_contents(shards)):
        yield f"{shards.path}: {what}"


def needed_unchecked(shards: Shards, *, is_listed: bool) -> Iterator[str]:
    """Yield the requirements that cannot be checked.

    is_listed: whether a manifest lists the tensors; an optional tensor that is missing is known
               then
    """
    yield from unchecked(_contents(shards), is_listed=is_listed)


def _contents(shards: Shards) -> Contents:
    return Contents(shards.keys, {t.name: t.shape for _, t in shards.tensors()})
