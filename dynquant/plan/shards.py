"""Cuts a model into files of whole tensors, up to a size or a number of tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index

from dynquant.errors import PlanError


@dataclass(frozen=True)
class Split:
    """Limits on a file: bytes of tensors, and number of tensors; None is no limit."""

    max_bytes: int | None = None
    max_tensors: int | None = None

    def __post_init__(self) -> None:
        """Raise PlanError for limits that are not positive whole numbers."""
        for name, value in (("max_bytes", self.max_bytes), ("max_tensors", self.max_tensors)):
            if value is not None and not _is_positive(value):
                raise PlanError(f"{name}={value!r} is not a whole number of at least 1")


def _is_positive(value: object) -> bool:
    try:
        return index(value) >= 1  # pyright: ignore[reportArgumentType]
    except TypeError:
        return False


@dataclass(frozen=True)
class Shard:
    """Tensors start..stop of a plan in one file; n_bytes: of its data section."""

    start: int
    stop: int
    n_bytes: int


def shards_of(sizes: Sequence[int], split: Split) -> tuple[Shard, ...]:
    """Return the shards of tensors of these padded sizes.

    A tensor that is larger than the limit gets a shard to itself. As in llama-gguf-split, keys are
    not counted.
    """
    return tuple(_cut(sizes, split))


def _cut(sizes: Sequence[int], split: Split) -> Iterator[Shard]:
    start, n_bytes = 0, 0
    for i, size in enumerate(sizes):
        is_long = split.max_bytes is not None and n_bytes + size > split.max_bytes
        is_many = split.max_tensors is not None and i - start >= split.max_tensors
        if i > start and (is_long or is_many):
            yield Shard(start, i, n_bytes)
            start, n_bytes = i, 0
        n_bytes += size
    yield Shard(start, len(sizes), n_bytes)
