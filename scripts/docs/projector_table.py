"""The table of projectors, from the registry of projectors and their tiny models."""

from __future__ import annotations

import json
from pathlib import Path

from dynquant.arch.load_projector import load_projector
from dynquant.arch.projectors import projectors
from dynquant.arch.towers.whole import Projector

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references" / "projectors"

HEAD = ("what", "such as", "classes in `config.json`", "llama.cpp's projector", "references")

PUBLISHED = {
    "gemma3": "Gemma 3 4B, 12B, 27B, MedGemma",
    "qwen2vl": "Qwen2-VL",
    "qwen2.5vl": "Qwen2.5-VL",
    "qwen3vl": "Qwen3-VL, Qwen3.5, 3.6, 3.8",
}
"""Published models, as people call them, by the name of a tiny model."""


def projector_rows() -> list[tuple[str, ...]]:
    """Return a row for each projector: what it is, published models, classes, name, references."""
    classes: dict[Projector, list[str]] = {}
    for name, towers in projectors().items():
        classes.setdefault(towers, []).append(name)
    references: dict[Projector, list[str]] = {}
    for path in sorted(REFERENCES.glob("*/config.json")):
        (name,) = json.loads(path.read_text("utf-8"))["architectures"]
        references.setdefault(projectors()[name], []).append(path.parent.name)
    rows: list[tuple[str, ...]] = []
    for towers, names in classes.items():
        tiny = references.get(towers, [])
        kinds = {
            str(key.value)
            for one in tiny
            for name, key in load_projector(REFERENCES / one).keys.items()
            if name.endswith("projector_type")
        }
        what = "; ".join(_what(tower.describe.__doc__ or "") for tower in towers)
        models = ", ".join(PUBLISHED[one] for one in tiny if one in PUBLISHED)
        rows.append((what, models, _code(names), _code(sorted(kinds)), ", ".join(tiny)))
    return sorted(rows, key=lambda row: row[0].lower())


def _what(docstring: str) -> str:
    """Return what a page's function describes: the vision encoder of a Gemma 3."""
    return docstring.partition("\n")[0].removeprefix("Describe the ").removesuffix(".")


def _code(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)
