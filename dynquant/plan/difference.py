"""The differences between two assignments of types, and their cost in bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from dynquant.checkpoint.gguf_shards import Shards
from dynquant.plan.feedback import FEEDBACK_KEY, may_have_feedback, read_feedback
from dynquant.plan.resolve import Resolved
from dynquant.quants.table import ALL, QuantType
from dynquant.recipe.feedback import FeedbackSetting


@dataclass(frozen=True)
class Typed:
    """A tensor with its type and size.

    feedback: the settings of error feedback, or "no feedback"; empty for tensors that cannot have
              it. Of a recipe, the settings with which tensors that have moments are encoded
    """

    name: str
    shape: tuple[int, ...]
    type_name: str
    n_bytes: int
    feedback: str = ""


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
        given = resolved.assigned.assignments[t.name]
        n_bytes = t.n_rows * given.type.row_size(t.n_per_row)
        feedback = _feedback(t.name, given.type, given.feedback.setting)
        found.append(Typed(t.name, t.shape, given.type.name, n_bytes, feedback))
    return tuple(found)


def typed_in(shards: Shards) -> tuple[Typed, ...]:
    """Return the tensors of a GGUF."""
    key = shards.keys.get(FEEDBACK_KEY)
    try:
        fed = read_feedback(key.value) if key and isinstance(key.value, str) else {}
    except ValueError:  # `verify` reports it
        fed = {}
    return tuple(
        Typed(
            t.name,
            t.shape,
            t.type_name,
            t.n_bytes,
            _feedback(t.name, ALL.get(t.type_name), fed.get(t.name)),
        )
        for _, t in shards.tensors()
    )


def _feedback(name: str, qtype: QuantType | None, setting: FeedbackSetting | None) -> str:
    """Return the settings of a tensor as text; empty for tensors that cannot have feedback."""
    if qtype is None or not may_have_feedback(name, qtype):
        return ""
    return str(setting) if setting else "no feedback"


def changes(before: Iterable[Typed], after: Iterable[Typed]) -> tuple[Change, ...]:
    """Return the tensors whose type, shape or feedback differs, and those on one side only."""
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
