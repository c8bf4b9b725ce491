"""Short names for charts, and places for them beside points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin

from dynquant.report.svg import FONT, width_of

_LONGEST = 30
"""Characters of a name in a chart; the whole name is in the tables."""

_CUTS = "-_. /"
"""Characters at which the common beginning of names may end."""

_GAP = 9.0
"""Pixels between a point and its label."""

Box = tuple[float, float, float, float]
"""Left, bottom, right and top."""


def short_names(names: Sequence[str]) -> list[str]:
    """Return names for a chart, of at most _LONGEST characters.

    Without `.gguf`; of long names, without the common beginning, and without their middle.
    """
    found = [" ".join(name.removesuffix(".gguf").split()) for name in names]
    if len(found) > 1 and max(map(len, found)) > _LONGEST:
        same = [len(set(letters)) == 1 for letters in zip(*found, strict=False)]
        common = found[0][: [*same, False].index(False)]
        cut = 1 + max((common.rfind(c) for c in _CUTS), default=-1)
        if cut > 1:
            found = [f"…{name[cut:]}" for name in found]
    half = _LONGEST // 2
    return [
        name if len(name) <= _LONGEST else f"{name[: half - 1]}…{name[-half:]}" for name in found
    ]


@dataclass(frozen=True)
class Label:
    """A place for a label.

    far:  it is so far from its point that a line should join them
    side: the end of the text that is at the point's side: "left", "right" or "center"
    """

    box: Box
    far: bool
    side: str

    @property
    def at(self) -> tuple[float, float]:
        """The place of that end, at half of the text's height."""
        left, bottom, right, top = self.box
        x = {"left": left, "right": right, "center": (left + right) / 2}[self.side]
        return x, (bottom + top) / 2


def place_labels(
    points: Sequence[tuple[float, float]],
    texts: Sequence[str],
    within: Box,
    obstacles: Sequence[Box] = (),
) -> list[Label]:
    """Return a place for the label of each point, so that labels cover nothing if possible.

    points, within, obstacles: in pixels; each point is an obstacle too
    """
    taken = [*obstacles, *((x - 6, y - 6, x + 6, y + 6) for x, y in points)]
    found: dict[int, Label] = {}
    for i in sorted(range(len(points)), key=lambda i: points[i]):
        tried = _candidates(*points[i], width_of(texts[i]))
        best = min(tried, key=lambda label: _cost(label.box, within, taken))
        found[i] = best
        taken.append(best.box)
    return [found[i] for i in range(len(points))]


def _candidates(x: float, y: float, width: float) -> list[Label]:
    """Return places for a label, the best ones first: beside, above and below, then farther."""
    half = FONT / 2 + 1
    shift = {"left": 0.0, "right": width, "center": width / 2}

    def at(end: float, middle: float, side: str, far: bool) -> Label:
        left = end - shift[side]
        return Label((left, middle - half, left + width, middle + half), far, side)

    found = [
        at(x + dx, y + dy, side, False)
        for dx, dy, side in (
            *((_GAP, 0, "left"), (-_GAP, 0, "right"), (0, 16, "center"), (0, -16, "center")),
            *((6, 13, "left"), (6, -13, "left"), (-6, 13, "right"), (-6, -13, "right")),
        )
    ]
    for radius in (24, 40, 60, 85, 115, 150):
        for eighth in (1, -1, 3, -3, 2, -2, 5, -5, 7, -7, 6, -6):
            dx, dy = radius * cos(eighth * pi / 8), radius * sin(eighth * pi / 8)
            side = "left" if dx > 1 else "right" if dx < -1 else "center"
            found.append(at(x + dx, y + dy, side, True))
    return found


def _cost(box: Box, within: Box, taken: Sequence[Box]) -> float:
    """Return the area that a label covers of others, and that is outside of the chart."""
    covered = sum(_area(box, other) for other in taken)
    return covered + 4 * (_area(box, box) - _area(box, within))


def _area(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def distance(label: Label, x: float, y: float) -> tuple[float, float, float]:
    """Return the point of a label's box that is closest to a point, and how far it is."""
    near_x = min(max(x, label.box[0]), label.box[2])
    near_y = min(max(y, label.box[1]), label.box[3])
    return near_x, near_y, hypot(near_x - x, near_y - y)
