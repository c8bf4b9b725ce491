"""Colours for quant types by their bits per weight: more bits, more contrast with the page.

Other quantities use the same scale.
"""

from __future__ import annotations

from itertools import pairwise
from math import log2

from dynquant.quants.table import QuantType

Colour = tuple[int, int, int]
"""Red, green and blue, 0..255."""

_RAMPS = {
    "light": {
        1.5: "#fef2ac",
        2.1: "#c9e581",
        3.1: "#79d28d",
        4.5: "#2eb4b0",
        5.5: "#0275a3",
        6.6: "#284e99",
        8.5: "#3f2777",
    },
    "dark": {
        1.5: "#534b18",
        2.1: "#4d5c22",
        3.1: "#336f43",
        4.5: "#057c79",
        5.5: "#50a9d9",
        6.6: "#97bbfb",
        8.5: "#d8d1fe",
    },
}
"""Colours by bits per weight, interpolated linearly in the logarithm of the bits.

The lightness falls with the bits (OKLCH 0.955 to 0.35; on dark pages it rises from 0.41 to 0.88),
so that the order stays visible in grey print; the hue goes from yellow (100) to violet (292) in
both themes. Between 4.5 and 5.5 bits the lightness jumps, because neither black nor white text is
readable on the lightness between.
"""

_PLAIN = {"light": "#d5d8dd", "dark": "#4a4f57"}
"""Colours of floats and integers, which are not quantized."""

THEMES = tuple(_RAMPS)


def shade(qtype: QuantType, theme: str) -> Colour:
    """Return the colour of a type on a page of a theme."""
    if qtype.is_float:
        return _read(_PLAIN[theme])
    return _between(log2(qtype.bpw), theme)


def ramp(part: float, theme: str) -> Colour:
    """Return the colour of a part, 0 (least contrast with the page) to 1, of the same scale."""
    ends = log2(min(_RAMPS[theme])), log2(max(_RAMPS[theme]))
    return _between(ends[0] + part * (ends[1] - ends[0]), theme)


def _between(depth: float, theme: str) -> Colour:
    stops = [(log2(bits), _read(text)) for bits, text in _RAMPS[theme].items()]
    depth = min(max(depth, stops[0][0]), stops[-1][0])
    (start, before), (end, after) = next(
        (a, b) for a, b in pairwise(stops) if a[0] <= depth <= b[0]
    )
    part = (depth - start) / (end - start)
    red, green, blue = (round(a + (b - a) * part) for a, b in zip(before, after, strict=True))
    return red, green, blue


def ink(ground: Colour) -> Colour:
    """Return black or white, whichever has more contrast with a background: at least 4.5 to 1."""
    black, white = (0, 0, 0), (255, 255, 255)
    return black if contrast(ground, black) >= contrast(ground, white) else white


def contrast(a: Colour, b: Colour) -> float:
    """Return the contrast ratio of two colours, 1 to 21, as WCAG 2 defines it."""
    darker, lighter = sorted((_luminance(a), _luminance(b)))
    return (lighter + 0.05) / (darker + 0.05)


def css(colour: Colour) -> str:
    """Return a colour in the notation of CSS."""
    return "#" + bytes(colour).hex()


def _luminance(colour: Colour) -> float:
    linear = [
        v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4
        for v in (c / 255 for c in colour)
    ]
    return sum(w * v for w, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def _read(text: str) -> Colour:
    red, green, blue = bytes.fromhex(text.removeprefix("#"))
    return red, green, blue
