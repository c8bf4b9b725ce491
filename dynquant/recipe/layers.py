"""Which layers a rule is for: numbers, ranges, parts of the depth, and patterns of these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Bound:
    """A position in the depth: `3`, `12.5%` rounded down, or `12.5%+2`; with `%` also a count."""

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
        """Whether the layer lies in the range, in a model of n_layers; the range may reach out."""
        first, last = (n + n_layers if n < 0 else n for n in (self.first, self.last))
        return first <= layer <= last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class PercentRange:
    """Layers from one part of the depth up to another, the latter not included.

    Both ends are rounded down, so that ranges that meet share no layer and leave none out.
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
    """Layers of which all that is given here holds.

    inside:      ranges, of which one is enough
    first, last: how many at the beginning or the end
    every:       each of so many, beginning with `start`
    of:          roles and groups; positions then count the layers that have a tensor of these
    """

    inside: tuple[LayerRange | PercentRange, ...] = ()
    first: Bound | None = None
    last: Bound | None = None
    every: int | None = None
    start: Bound | None = None
    of: tuple[str, ...] = ()

    def covers(self, layer: int, layers: Sequence[int]) -> bool:
        """Whether the layer is one of them; layers: those that are counted, in their order."""
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
"""What a rule's `layers` is a list of."""


def _percent(part: Fraction) -> str:
    return f"{float(part):g}%"
