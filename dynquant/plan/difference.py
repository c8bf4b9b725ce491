"""The differences between two assignments of types, and their cost in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from dynquant.checkpoint.gguf_shards import Shards
from dynquant.plan.resolve import Resolved


@dataclass(frozen=True)
class Typed:
    """A tensor with its type and size."""

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int


@dataclass(frozen=True)
class Change:
    """A tensor that differs; None on a side without it."""

    before: Typed | None
    after: Typed | None

    @property
    def tensor(self) -> Typed:
        """The tensor before the change, or after it if it is new."""
        found = self.before or self.after
        assert found is not None, "a change has at least one side"
        return found

    @property
    def n_bytes(self) -> int:
        """Bytes that the change adds; negative if it saves some."""
        return (self.after.n_bytes if self.after else 0) - (
            self.before.n_bytes if self.before else 0
        )


def typed_by(resolved: Resolved) -> tuple[Typed, ...]:
    """Return the tensors that a resolved recipe writes."""
    found: list[Typed] = []
    for t in resolved.model.tensors:
        qtype = resolved.assigned.assignments[t.name].type
        found.append(Typed(t.name, t.shape, qtype.name, t.n_rows * qtype.row_size(t.n_per_row)))
    return tuple(found)


def typed_in(shards: Shards) -> tuple[Typed, ...]:
    """Return the tensors of a GGUF."""
    return tuple(Typed(t.name, t.shape, t.type_name, t.n_bytes) for _, t in shards.tensors())


def changes(before: Iterable[Typed], after: Iterable[Typed]) -> tuple[Change, ...]:
    """Return the tensors whose type or shape differs, and those on one side only."""
    old: Mapping[str, Typed] = {t.name: t for t in before}
    new: Mapping[str, Typed] = {t.name: t for t in after}
    names = dict.fromkeys((*old, *new))
    found = (Change(old.get(name), new.get(name)) for name in names)
    return tuple(c for c in found if c.before != c.after)


def bits_per_weight(tensors: Iterable[Typed]) -> float:
    """Return the mean bits per weight; 0 if there are no weights."""
    listed = list(tensors)
    weights = sum(prod(t.shape) for t in listed)
    return 8 * sum(t.n_bytes for t in listed) / weights if weights else 0.0
