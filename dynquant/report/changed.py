"""Tables and JSON of the changes between two sets of tensors (`dynquant recipe diff`)."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from dynquant.arch.base import TensorName
from dynquant.figures import size_text
from dynquant.plan.difference import Change, Typed, bits_per_weight, changes
from dynquant.report.tables import plain_table, ranges

_ABSENT = "-"


def changed_tables(
    a: str, b: str, before: Sequence[Typed], after: Sequence[Typed]
) -> list[RenderableType]:
    """Return a table with a line for each role and change of type, and the totals.

    a, b: names of the two sides
    """
    found = changes(before, after)
    table = plain_table("role", "layers", "count>", a, b, "weights>", "bytes>")
    for (role, old, new), members in _by_role_and_types(found).items():
        layers = [p.layer for p in map(_parts, members) if p.layer is not None]
        table.add_row(
            role,
            ranges(layers) or _ABSENT,
            str(len(members)),
            old,
            new,
            f"{sum(prod(c.tensor.shape) for c in members):,}",
            f"{sum(c.n_bytes for c in members):+,}",
        )
    total = sum(c.n_bytes for c in found)
    lines = [f"{name}: {_size(side)}" for name, side in ((a, before), (b, after))]
    lines.append(f"{len(found)} of {len(after)} tensors change, {total:+,} bytes")
    return [*([table, Text()] if found else []), Text("\n".join(lines))]


def _by_role_and_types(found: Sequence[Change]) -> dict[tuple[str, str, str], list[Change]]:
    """Group changes by role and types; shapes and feedback are shown where they change."""
    groups: dict[tuple[str, str, str], list[Change]] = {}
    for change in found:
        old, new = (side.type_name if side else _ABSENT for side in (change.before, change.after))
        if change.before and change.after and change.before.shape != change.after.shape:
            old, new = f"{old} {change.before.shape}", f"{new} {change.after.shape}"
        feedback = [side.feedback if side else "" for side in (change.before, change.after)]
        if all(feedback) and feedback[0] != feedback[1]:
            old, new = f"{old}, {feedback[0]}", f"{new}, {feedback[1]}"
        groups.setdefault((_parts(change).role, old, new), []).append(change)
    return groups


def _parts(change: Change) -> TensorName:
    return TensorName.parse(change.tensor.name)


def _size(tensors: Sequence[Typed]) -> str:
    n_bytes = sum(t.n_bytes for t in tensors)
    return f"{size_text(n_bytes)}, {bits_per_weight(tensors):.3f} bits per weight"


def changed_json(before: Sequence[Typed], after: Sequence[Typed]) -> dict[str, Any]:
    """Return the changes as `dynquant recipe diff --json` prints them."""
    return {
        "before": _totals(before),
        "after": _totals(after),
        "changes": [
            {
                "name": c.tensor.name,
                "before": c.before.type_name if c.before else None,
                "after": c.after.type_name if c.after else None,
                "bytes": c.n_bytes,
                "feedback_before": c.before.feedback or None if c.before else None,
                "feedback_after": c.after.feedback or None if c.after else None,
            }
            for c in changes(before, after)
        ],
    }


def _totals(tensors: Sequence[Typed]) -> dict[str, Any]:
    return {
        "tensors": len(tensors),
        "tensor_bytes": sum(t.n_bytes for t in tensors),
        "bits_per_weight": bits_per_weight(tensors),
    }
