"""The table of projectors, from the registry of projectors and their tiny models."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from dynquant.arch.load_projector import load_projector, projector_of
from dynquant.arch.projectors import projectors
from dynquant.arch.towers.whole import Projector, Tower

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references" / "projectors"

HEAD = ("what", "such as", "classes in `config.json`", "llama.cpp's projector", "references")

PUBLISHED = {
    "deepseek-ocr": "DeepSeek-OCR",
    "deepseek-ocr-2": "DeepSeek-OCR 2",
    "gemma4": "Gemma 4 26B-A4B, 31B, E2B, E4B",
    "gemma4unified": "Gemma 4 12B",
    "glm4v": "GLM-4.1V, 4.5V, 4.6V",
    "glm-ocr": "GLM-OCR",
    "kimik25": "Kimi-K2.5",
    "kimivl": "Kimi-VL",
    "lightonocr": "LightOnOCR",
    "mistral3": "Mistral Small 3.1, 3.2, Ministral 3, Devstral 2",
    "pixtral": "Pixtral 12B",
    "minicpmv2.6": "MiniCPM-V 2.6, 4.0, 4.5",
    "minicpmv4.6": "MiniCPM-V 4.6",
    "gemma3": "Gemma 3 4B, 12B, 27B, MedGemma",
    "idefics3": "Idefics3-8B",
    "internvl": "InternVL 2.5 to 3.5 (-hf)",
    "internvl-chat": "InternVL 2 to 3.5",
    "janus": "Janus Pro",
    "lfm2vl": "LFM2-VL, LFM2.5-VL",
    "llava": "LLaVA 1.5, BakLLaVA",
    "llava-siglip": "LLaVA with SigLIP",
    "qwen2audio": "Qwen2-Audio",
    "qwen2.5omni": "Qwen2.5-Omni",
    "qwen3omni": "Qwen3-Omni",
    "smolvlm": "SmolVLM, SmolVLM2",
    "ultravox": "Ultravox 0.5 and later",
    "voxtral": "Voxtral Mini, Small",
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
        towers = projector_of(json.loads(path.read_text("utf-8")), str(path))
        references.setdefault(towers, []).append(path.parent.name)
    rows: list[tuple[str, ...]] = []
    for towers, names in classes.items():
        tiny = references.get(towers, [])
        kinds = {
            str(key.value)
            for one in tiny
            for name, key in load_projector(REFERENCES / one).keys.items()
            if name.endswith("projector_type")
        }
        what = "; ".join(map(_what, towers))
        models = ", ".join(PUBLISHED[one] for one in tiny if one in PUBLISHED)
        rows.append((what, models, _code(names), _code(sorted(kinds)), ", ".join(tiny)))
    return sorted(rows, key=lambda row: row[0].lower())


def _what(tower: Tower) -> str:
    """Return what a page's function describes: the vision encoder of a Gemma 3."""
    function = tower.describe.func if isinstance(tower.describe, partial) else tower.describe
    docstring = function.__doc__ or ""
    return docstring.partition("\n")[0].removeprefix("Describe the ").removesuffix(".")


def _code(names: list[str]) -> str:
    """Return names in code; a class with several kinds of encoders is followed by the kind."""
    parts = (name.partition("/") for name in names)
    return ", ".join(f"`{name}`" + (f" ({kind})" if kind else "") for name, _, kind in parts)
