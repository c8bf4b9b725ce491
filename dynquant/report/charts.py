"""Charts of an evaluation: size against divergence, percentiles, and texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from math import hypot
from typing import Any

from dynquant.evaluate.results import Estimate, Figures, FileResult
from dynquant.figures import counted, figure, size_column
from dynquant.report.evaluation import nats
from dynquant.report.labels import Box, distance, place_labels, short_names
from dynquant.report.svg import INKS, mark, new_figure, svg_text, width_of

_WIDTH = 860.0
_LEAST, _MOST = 1e-9, 1e6
"""Divergences in nats that charts show; rounding alone is larger than the first."""

_PERCENTILES: tuple[tuple[str, Callable[[Figures], Estimate], str], ...] = (
    ("median", lambda f: f.median_kld, "o"),
    ("90 %", lambda f: f.kld_90, "s"),
    ("95 %", lambda f: f.kld_95, "D"),
    ("99 %", lambda f: f.kld_99, "^"),
    ("99.9 %", lambda f: f.kld_999, ">"),
)
"""Name, figure and marker of each percentile."""


def by_size(files: Iterable[FileResult]) -> list[FileResult]:
    """Return files in the order of their sizes."""
    return sorted(files, key=lambda file: (file.bytes, file.name))


def pareto_front(files: Sequence[FileResult]) -> list[bool]:
    """Return for each file whether no other is at most as large and at least as close."""

    def is_better(a: FileResult, b: FileResult) -> bool:
        ours, theirs = _key(a), _key(b)
        return ours != theirs and all(x <= y for x, y in zip(ours, theirs, strict=True))

    return [not any(is_better(other, file) for other in files) for file in files]


def _key(file: FileResult) -> tuple[float, float]:
    return file.bytes, file.figures.mean_kld.value


def size_chart(files: Sequence[FileResult]) -> str:
    """Return file size against mean KLD, with intervals, names and the Pareto front."""
    files = by_size(files)
    front = pareto_front(files)
    estimates = [file.figures.mean_kld for file in files]
    low, high = _limits(v for e in estimates for v in (e.value, e.low, e.high))
    names = [file.name for file in files]
    short = short_names(names)
    height, (left, right, bottom, top) = 430.0, (70.0, 16.0, 48.0, 14.0)
    unit = size_column([max(file.bytes for file in files)])[0].rpartition(" ")[2]
    per = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}.get(unit, 1e15)
    with new_figure(_WIDTH, height) as drawing:
        axes: Any = _axes(drawing, left, right, bottom, top)
        xs = [file.bytes / per for file in files]
        ys = [_within(e.value, low, high) for e in estimates]
        spread = (max(xs) - min(xs)) or max(xs) or 1.0
        axes.set_xlim(min(xs) - 0.06 * spread, max(xs) + 0.12 * spread)
        axes.set_xlabel(f"file size, {unit}")
        axes.set_ylabel("mean KLD, nats")
        _logarithmic(axes, "y", low, high)
        axes.grid(True, which="major")
        on_front = [(x, y) for x, y, best in zip(xs, ys, front, strict=True) if best]
        axes.plot(*zip(*on_front, strict=True), color=INKS["accent"], lw=1.2, ls=(0, (5, 3)))
        obstacles: list[Box] = []
        pixels: list[tuple[float, float]] = []
        for x, y, e, best in zip(xs, ys, estimates, front, strict=True):
            ends = (_within(e.low, low, high), _within(e.high, low, high))
            colour = INKS["accent" if best else "quiet"]
            axes.plot((x, x), ends, color=colour, lw=1.6, solid_capstyle="butt")
            shape = "o" if e.value > low else "v"
            fill = colour if best else "none"
            axes.plot([x], [y], shape, ms=6, mec=colour, mfc=fill, mew=1.6, clip_on=False)
            (px, py), (_, y0), (_, y1) = axes.transData.transform([(x, y), *((x, v) for v in ends)])
            pixels.append((float(px), float(py)))
            obstacles.append((px - 3, y0, px + 3, y1))
        line = [pixel for pixel, best in zip(pixels, front, strict=True) if best]
        obstacles += _along(line)
        box = (left + 2, bottom + 2, _WIDTH - 2, height - 2)
        places = place_labels(pixels, short, box, obstacles)
        for i, (label, (px, py)) in enumerate(zip(places, pixels, strict=True)):
            near_x, near_y, far = distance(label, px, py)
            if label.far and far > 14:
                drawing.add_artist(_line((px, py), (near_x, near_y), drawing))
            x, y = label.at
            drawing.text(x / _WIDTH, y / height, mark(i), va="center_baseline", ha=label.side)
        best = ", ".join(name for name, yes in zip(names, front, strict=True) if yes)
        words = f"File size against mean KLD of {counted(len(files), 'file')}. Pareto front: {best}"
        return svg_text(drawing, "size", words, names, short)


def percentile_chart(files: Sequence[FileResult]) -> str:
    """Return the median, 90, 95, 99 and 99.9 % of the divergences of each file."""
    files = by_size(files)
    low, high = _limits(of(file.figures).value for file in files for _, of, _ in _PERCENTILES)
    names = [file.name for file in files]
    short = short_names(names)
    left, right, bottom, top = max(map(width_of, short)) + 14, 20.0, 46.0, 34.0
    height = bottom + top + 26.0 * len(files)
    with new_figure(_WIDTH, height) as drawing:
        axes: Any = _axes(drawing, left, right, bottom, top)
        axes.set_ylim(len(files) - 0.5, -0.5)
        axes.set_xlabel("KLD, nats")
        _logarithmic(axes, "x", low, high)
        axes.grid(True, which="major", axis="x")
        axes.set_yticks(range(len(files)), [mark(i) for i in range(len(files))])
        axes.tick_params(axis="y", length=0, pad=8, labelcolor=INKS["text"])
        axes.spines["left"].set_visible(False)
        for row, file in enumerate(files):
            ends = [
                _within(of(file.figures).value, low, high)
                for _, of, _ in (_PERCENTILES[0], _PERCENTILES[-1])
            ]
            axes.plot(ends, (row, row), color=INKS["line"], lw=3, solid_capstyle="butt")
        for name, of, shape in _PERCENTILES:
            values = [_within(of(file.figures).value, low, high) for file in files]
            axes.plot(
                values,
                range(len(files)),
                shape,
                ms=6.5,
                mec=INKS["accent"],
                mfc=INKS["accent"] if shape in "o>" else "none",
                mew=1.4,
                ls="",
                label=name,
            )
        axes.legend(
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=len(_PERCENTILES),
            handletextpad=0.1,
            columnspacing=1.6,
            borderaxespad=0.2,
            borderpad=0.2,
        )
        return svg_text(drawing, "percentiles", "Percentiles of the KLD of each file", names, short)


def text_chart(files: Sequence[FileResult]) -> str:
    """Return the mean KLD by text: a group of bars for each file, scaled to its largest bar."""
    files = [file for file in by_size(files) if file.domains]
    texts = list(dict.fromkeys(d.text for file in files for d in file.domains))
    names = [*(file.name for file in files), *texts]
    short = [*short_names([file.name for file in files]), *short_names(texts)]
    row, head, gap = 20.0, 24.0, 8.0
    left, right = max(map(width_of, short[len(files) :])) + 24, 200.0
    height = sum(head + gap + row * len(file.domains) for file in files) + 2
    with new_figure(_WIDTH, height) as drawing:
        axes: Any = drawing.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        axes.set_xlim(0, _WIDTH)
        axes.set_ylim(height, 0)
        y = 0.0
        for i, file in enumerate(files):
            axes.text(0, y + head / 2, mark(i), va="center_baseline", weight="bold")
            y += head
            estimates = [domain.figures.mean_kld for domain in file.domains]
            most = max(*(max(e.value, e.high) for e in estimates), _LEAST)
            scale = (_WIDTH - left - right) / most
            axes.plot(
                (left, left),
                (y, y + row * len(estimates)),
                color=INKS["line"],
                lw=1,
            )
            for domain, e in zip(file.domains, estimates, strict=True):
                middle = y + row / 2
                number = len(files) + texts.index(domain.text)
                axes.text(left - 8, middle, mark(number), ha="right", va="center_baseline")
                start, value, end = (max(v, 0.0) * scale for v in (e.low, e.value, e.high))
                axes.barh(
                    middle, value, left=left, height=row - 7, color=INKS["accent"], alpha=0.75
                )
                axes.plot((left + start, left + end), (middle, middle), color=INKS["text"], lw=1.4)
                axes.text(
                    left + max(value, end) + 8,
                    middle,
                    nats(e.value),
                    va="center_baseline",
                    color=INKS["quiet"],
                )
                y += row
            y += gap
        return svg_text(drawing, "texts", "Mean KLD of each file by text", names, short)


def _limits(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis; figures below it are drawn at its lower end."""
    shown = [min(v, _MOST) for v in values if v > _LEAST]
    low, high = (min(shown), max(shown)) if shown else (_LEAST, 1e3 * _LEAST)
    return low / 1.6, high * 1.6


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _logarithmic(axes: Any, which: str, low: float, high: float) -> None:
    """Make an axis ("x" or "y") logarithmic, with plain numbers at 1, 2 and 5 of each decade.

    If there are many decades, with numbers at powers of ten only.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    steps = (1.0, 2.0, 5.0) if high / low < 3000 else (1.0,)
    axes.set(**{f"{which}scale": "log", f"{which}lim": (low, high)})
    axis = getattr(axes, f"{which}axis")
    axis.set_major_locator(LogLocator(base=10, subs=steps, numticks=20))
    axis.set_major_formatter(FuncFormatter(_plain))
    axis.set_minor_locator(NullLocator())


def _plain(value: float, position: int | None) -> str:
    """Return the text of a tick."""
    del position
    return figure(value)


def _axes(drawing: Any, left: float, right: float, bottom: float, top: float) -> Any:
    """Return axes with margins in pixels, without lines above and to the right."""
    width, height = drawing.get_size_inches() * 72
    inner = ((width - left - right) / width, (height - top - bottom) / height)
    axes = drawing.add_axes((left / width, bottom / height, *inner))
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _along(points: Sequence[tuple[float, float]]) -> Iterator[Box]:
    """Yield small boxes along the lines between points, in pixels."""
    for (x, y), (to_x, to_y) in pairwise(points):
        steps = max(1, round(hypot(to_x - x, to_y - y) / 6))
        for i in range(steps):
            at_x, at_y = x + (to_x - x) * i / steps, y + (to_y - y) * i / steps
            yield at_x - 2, at_y - 2, at_x + 2, at_y + 2


def _line(start: tuple[float, float], end: tuple[float, float], drawing: Any) -> Any:
    """Return a thin line between two pixels."""
    from matplotlib.lines import Line2D

    width, height = drawing.get_size_inches() * 72
    xs, ys = (start[0] / width, end[0] / width), (start[1] / height, end[1] / height)
    return Line2D(xs, ys, color=INKS["quiet"], lw=0.8)
