"""The layers of a rule: numbers, ranges, parts of the depth, and patterns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Bound:
    """A position in the depth: `3`, `12.5%` rounded down, or `12.5%+2`; also a number of layers."""

    number: int = 0
    percent: Fraction | None = None

    def of(self, n: int) -> int:
        """Return the position among n layers."""
        return self.number if self.percent is None else int(n * self.percent / 100) + self.number

    def __str__(self) -> str:
        if self.percent is None:
            return str(self.number)
        return _percent(self.percent) + (f"+{self.number}" if self.number else "")


@dataclass(frozen=True)
class LayerRange:
    """Layers first..last, both included; a negative number counts from the end, -1 is the last."""

    first: int
    last: int

    def covers(self, layer: int, n_layers: int) -> bool:
        """Whether the layer lies in the range, in a model of n_layers; it may end beyond them."""
        first, last = (n + n_layers if n < 0 else n for n in (self.first, self.last))
        return first <= layer <= last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class PercentRange:
    """Layers from one percentage of the depth up to another, exclusive.

    Both ends are rounded down, so adjacent ranges neither overlap nor leave a gap.
    """

    first: Fraction
    last: Fraction

    def covers(self, layer: int, n_layers: int) -> bool:
        """Whether the layer lies in this part of a model of n_layers."""
        first, last = (Bound(percent=p).of(n_layers) for p in (self.first, self.last))
        return first <= layer < last

    def __str__(self) -> str:
        return f"{_percent(self.first)}-{_percent(self.last)}"


@dataclass(frozen=True)
class LayerPattern:
    """Layers that meet all conditions given here.

    inside:      ranges; the layer is in one of them
    first, last: number of layers at the beginning or the end
    every:       the step between layers, beginning with `start`
    of:          roles and groups; only layers that have a tensor of these are counted
    """

    inside: tuple[LayerRange | PercentRange, ...] = ()
    first: Bound | None = None
    last: Bound | None = None
    every: int | None = None
    start: Bound | None = None
    of: tuple[str, ...] = ()

    def covers(self, layer: int, layers: Sequence[int]) -> bool:
        """Whether the pattern includes the layer; layers: the counted ones, in order."""
        if layer not in layers:
            return False
        n, position = len(layers), layers.index(layer)
        begin = 0 if self.start is None else self.start.of(n)
        return (
            (not self.inside or any(r.covers(position, n) for r in self.inside))
            and (self.first is None or position < self.first.of(n))
            and (self.last is None or position >= n - self.last.of(n))
            and position >= begin
            and (self.every is None or (position - begin) % self.every == 0)
        )

    def __str__(self) -> str:
        given = {
            "in": " ".join(map(str, self.inside)),
            "first": self.first,
            "last": self.last,
            "every": self.every,
            "from": self.start,
            "of": " ".join(self.of),
        }
        return "{" + ", ".join(f"{k}: {v}" for k, v in given.items() if v not in (None, "")) + "}"


LayerItem = LayerRange | PercentRange | LayerPattern
"""An item of a rule's `layers`."""


def _percent(part: Fraction) -> str:
    return f"{float(part):.9g}%"  # all digits that the language allows
