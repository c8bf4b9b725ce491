"""Totals of a plan: bytes by role, by type and by rule, and the cost of fallbacks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from dynquant.arch.base import TensorName
from dynquant.measure.grids import ROWS
from dynquant.name_lists import grouped
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants.encoder import is_copied
from dynquant.quants.table import QuantType
from dynquant.recipe.assignment import BUILT_IN
from dynquant.report.grid import SMALL, column_of, is_small

_FEW = 3
"""Limit on the lines of names that a summary shows."""


@dataclass(frozen=True)
class Fallback:
    """Tensors whose rows the block size of the rule's type does not divide, and the type used."""

    wanted: QuantType
    taken: QuantType
    names: tuple[str, ...]
    n_weights: int

    @property
    def extra_bits(self) -> float:
        """Additional bits per weight of the fallback."""
        return self.taken.bpw - self.wanted.bpw

    @property
    def extra_bytes(self) -> int:
        """Additional bytes of the fallback, by the bits per weight of both types."""
        return round(self.n_weights * self.extra_bits / 8)


@dataclass(frozen=True)
class Share:
    """Tensors with a common role, type or rule."""

    name: str
    tensors: tuple[TensorPlan, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of these tensors."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def n_weights(self) -> int:
        """Weights of these tensors."""
        return sum(t.n_weights for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight."""
        return 8 * self.n_bytes / self.n_weights

    @property
    def roles(self) -> tuple[str, ...]:
        """Their roles, each once."""
        return tuple(dict.fromkeys(column_of(t.name) for t in self.tensors))

    @property
    def layers(self) -> tuple[int, ...]:
        """Their layers; none for tensors outside the layers."""
        parsed = (TensorName.parse(t.name).layer for t in self.tensors)
        return tuple(layer for layer in parsed if layer is not None)

    @property
    def by_type(self) -> tuple[Share, ...]:
        """The same tensors by type; the type with the fewest bits comes first."""
        return by_type(self.tensors)


def fallbacks(tensors: Iterable[TensorPlan]) -> tuple[Fallback, ...]:
    """Return each pair of wanted and fallback type, with the tensors concerned."""
    groups: dict[tuple[QuantType, QuantType], list[TensorPlan]] = {}
    for t in tensors:
        if t.instead_of:
            groups.setdefault((t.instead_of, t.type), []).append(t)
    return tuple(
        Fallback(wanted, taken, tuple(t.name for t in found), sum(t.n_weights for t in found))
        for (wanted, taken), found in groups.items()
    )


def needing(plan: Plan) -> tuple[TensorPlan, ...]:
    """Return the tensors whose type needs importance."""
    return tuple(
        t
        for t in plan.tensors
        if t.type.needs_importance and not is_copied(plan.sources[t.name].source.stored, t.type)
    )


def grid_lines(plan: Plan) -> list[str]:
    """Return a line for each grid that tensors of stored floats lie on: how many, and their types.

    Only a few rows of each tensor were read; a conversion reads all rows of those that it keeps.
    """
    found: dict[str, list[TensorPlan]] = {}
    for t in plan.tensors:
        if grid := plan.grids.get(t.name):
            found.setdefault(grid.type.name, []).append(t)
    lines: list[str] = []
    for name, tensors in found.items():
        n_rounded = sum(not plan.grids[t.name].exact for t in tensors)
        types = Counter(t.type.name for t in tensors).most_common()
        lines.append(
            f"{name}: {len(tensors)} tensors ({_few([t.name for t in tensors])}) lie on it, by"
            f" {ROWS} rows of each"
            + (f"; {n_rounded} up to the rounding of scales to F16" if n_rounded else "")
            + f"; the recipe gives them {', '.join(f'{t} ({n})' for t, n in types)}"
        )
    return lines


def _few(names: list[str]) -> str:
    lines = grouped(names)
    return ", ".join(lines) if len(lines) <= _FEW else f"{lines[0]} and others"


def by_reason(ignored: Mapping[str, str]) -> dict[str, list[str]]:
    """Return the ignored tensors by reason, given the reason of each."""
    reasons: dict[str, list[str]] = {}
    for name, reason in ignored.items():
        reasons.setdefault(reason, []).append(name)
    return reasons


def by_type(tensors: Iterable[TensorPlan]) -> tuple[Share, ...]:
    """Return the tensors of each type; the type with the fewest bits comes first."""
    shares = _shares(tensors, lambda t: t.type.name)
    return tuple(sorted(shares, key=lambda s: (s.tensors[0].type.bpw, s.name)))


def by_role(tensors: Iterable[TensorPlan]) -> tuple[Share, ...]:
    """Return the tensors of each role, the largest first; SMALL is one group and comes last."""
    shares = _shares(tensors, lambda t: SMALL if is_small(t) else column_of(t.name))
    return tuple(sorted(shares, key=lambda s: (s.name == SMALL, -s.n_bytes)))


def by_rule(tensors: Iterable[TensorPlan]) -> tuple[Share, ...]:
    """Return the tensors of each rule in the order of the recipe; built-in rules come last."""
    return tuple(sorted(_shares(tensors, lambda t: t.rule), key=lambda s: _line(s.name)))


def _shares(tensors: Iterable[TensorPlan], key: Callable[[TensorPlan], str]) -> tuple[Share, ...]:
    groups: dict[str, list[TensorPlan]] = {}
    for t in tensors:
        groups.setdefault(key(t), []).append(t)
    return tuple(Share(name, tuple(found)) for name, found in groups.items())


def _line(rule: str) -> tuple[bool, bool, str, int]:
    """Return a sort key: rules by file and line, then a file's default, then built-in rules."""
    place = re.fullmatch(r"(.*):(\d+)( default)?", rule)
    if place is None or rule.startswith(BUILT_IN):
        return (True, False, rule, 0)
    return (False, bool(place[3]), place[1], int(place[2]))
