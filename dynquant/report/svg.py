"""Charts by matplotlib as SVG that is part of an HTML page.

A chart is drawn with the colours of INKS, which stand for custom properties of the page's style, so
that one picture is right on light and on dark pages. Its texts are texts of the page. matplotlib
never sees a name that somebody else chose: it draws marks, which are replaced by the names.
"""

from __future__ import annotations

import contextlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Generator, Sequence
from typing import Any
from unicodedata import east_asian_width

from dynquant.distribution import requirement
from dynquant.errors import ReportError

INKS = {"text": "#fe0101", "quiet": "#fe0102", "line": "#fe0103", "accent": "#fe0104"}
"""Colours to draw with, by the custom property that replaces each."""

FONT = 12
"""Pixels of the font of all texts."""

_MARK = re.compile(r"@(\d+)@")
_SIZE = re.compile(r"([\d.]+)px")
_REFERENCE = re.compile(r"#([\w.-]+)")
_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "dynquant",
    "font.size": FONT,
    "axes.linewidth": 1,
    "axes.edgecolor": INKS["line"],
    "axes.labelcolor": INKS["quiet"],
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "text.color": INKS["text"],
    "text.parse_math": False,
    "legend.frameon": False,
    "xtick.color": INKS["line"],
    "xtick.labelcolor": INKS["quiet"],
    "ytick.color": INKS["line"],
    "ytick.labelcolor": INKS["quiet"],
    "grid.color": INKS["line"],
    "grid.linewidth": 0.6,
}


def check_charts() -> None:
    """Raise ReportError with the command that installs matplotlib, if it is missing."""
    try:
        import matplotlib  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise ReportError(
            f"charts need matplotlib, which is not installed: pip install '{requirement('eval')}'"
        ) from None


def mark(number: int) -> str:
    """Return the text to draw in place of a name; number: of the name."""
    return f"@{number}@"


def width_of(text: str) -> float:
    """Return about how many pixels a text needs, rather too many than too few."""
    return FONT * sum(1.0 if east_asian_width(c) in "WF" else 0.64 for c in text)


@contextlib.contextmanager
def new_figure(width: float, height: float) -> Generator[Any]:
    """Yield an empty figure; draw and save it within this context. Sizes are in pixels.

    The settings of the user's matplotlib have no effect.
    """
    check_charts()
    import matplotlib
    from matplotlib.figure import Figure

    library: Any = matplotlib
    with library.rc_context():
        library.rcdefaults()
        library.rcParams.update(_SETTINGS)
        yield Figure(figsize=(width / 72, height / 72), dpi=72)


def svg_text(
    figure: Any, key: str, description: str, names: Sequence[str], short: Sequence[str]
) -> str:
    """Return a figure as an element of a page; the same figure gives the same text.

    key:   distinguishes the ids of this chart from those of others on the page
    names: that the marks stand for; short: how they are shown
    """
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(written, format="svg", metadata=nothing)
    root = ET.fromstring(written.getvalue())
    ids = {element.get("id", "") for element in root.iter()}
    used = {
        found
        for element in root.iter()
        for value in element.attrib.values()
        for found in _REFERENCE.findall(value)
        if found in ids
    }
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}style"):  # it would apply to the whole page
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        element.attrib = {
            name.partition("}")[2] or name: _own(value, used, key)
            for name, value in element.attrib.items()
            if name != "id" or value in used
        }
        if "style" in element.attrib:
            element.set("style", _style(element.get("style", "")))
        if element.get("id"):
            element.set("id", f"{key}-{element.get('id')}")
        if found := _MARK.fullmatch(element.text or ""):
            number = int(found[1])
            element.text = short[number]
            element.set("class", "name")
            ET.SubElement(element, "title").text = names[number]
    _, _, width, height = (float(v) for v in root.get("viewBox", "").split())
    root.attrib = {
        "class": "chart",
        "role": "img",
        "aria-label": description,
        "width": f"{width:g}",
        "height": f"{height:g}",
        "viewBox": f"0 0 {width:g} {height:g}",
        "stroke-linejoin": "round",
    }
    return ET.tostring(root, "unicode")


def _own(value: str, used: set[str], key: str) -> str:
    """Return an attribute with references to ids of this chart."""
    return _REFERENCE.sub(lambda m: f"#{key}-{m[1]}" if m[1] in used else m[0], value)


def _style(style: str) -> str:
    """Return a style with the page's colours and font."""
    for name, colour in INKS.items():
        style = style.replace(colour, f"var(--{name})")
    parts = [part.strip() for part in style.split(";")]
    fonts = [_SIZE.search(part) for part in parts if part.startswith("font")]
    size = [f"font-size: {found[1]}px" for found in fonts if found]
    size += ["font-weight: 600"] if any(" bold" in p for p in parts if p.startswith("font")) else []
    return "; ".join([*size, *(part for part in parts if not part.startswith("font"))])
