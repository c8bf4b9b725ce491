"""Load a projector from a folder or the Hub: the file that llama.cpp needs to see and to hear."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from gguf import GGUFType

from dynquant.arch.base import Architecture, Model, ModelTensor
from dynquant.arch.gather import gather
from dynquant.arch.metadata import general_keys
from dynquant.arch.model_types import stated_class
from dynquant.arch.projectors import projectors
from dynquant.arch.towers.whole import CLIP, Projector, Tower, Whole
from dynquant.arch.wrapped import OTHER_PARTS
from dynquant.checkpoint import causes
from dynquant.checkpoint.safetensors import Checkpoint, open_checkpoint
from dynquant.errors import ArchitectureError, CheckpointError, Problems
from dynquant.name_lists import grouped

_PREFIX = r"(model\.|thinker\.|base_model\.model\.)*"
_TEXT = "the language model, which is another file"
_OTHER = "another part of the model"
_CONVERTED = (
    "if llama.cpp's `convert_hf_to_gguf.py --mmproj` supports it, use that and give the resulting"
    " GGUF to dynquant"
)


def has_projector(config: Mapping[str, Any]) -> bool:
    """Return whether a model of this config.json has a projector that dynquant knows."""
    listed: object = config.get("architectures")
    names = cast("list[object]", listed) if isinstance(listed, list) else []
    return bool(names) and of_tower(str(names[0]), config) in projectors()


def of_tower(name: str, config: Mapping[str, Any]) -> str:
    """Return the name of a class's projector; some classes have one for each kind of tower.

    Such a projector's name is `class/model_type of the vision tower`.
    """
    vision: object = config.get("vision_config")
    settings = cast("dict[str, object]", vision) if isinstance(vision, dict) else {}
    found = f"{name}/{settings.get('model_type')}"
    return found if found in projectors() else name


def load_projector(path: str | Path) -> Model:
    """Describe the projector of the model in a folder, without reading its weights.

    path: a folder with config.json and safetensors

    Raises DynquantError with all problems: CheckpointError for the files, ArchitectureError for a
    model without a projector, or with one that llama.cpp cannot compute.
    """
    folder = Path(path)
    checkpoint = open_checkpoint(folder)
    where = str(folder / "config.json")
    CheckpointError.raise_any(causes.check_config(checkpoint.config, where))
    towers = projector_of(checkpoint.config, where)
    CheckpointError.raise_any(causes.check_weights(checkpoint))
    whole = Whole.of(checkpoint.config, folder)
    problems = Problems()
    parts = [(tower, problems.attempt(lambda tower=tower: tower(whole))) for tower in towers]
    problems.add(*_unused(checkpoint, towers))
    problems.raise_any(ArchitectureError)
    tensors: list[ModelTensor] = []
    ignored: dict[str, str] = {}
    architectures = [(tower, found) for tower, found in parts if found is not None]
    for tower, found in architectures:
        gathered = problems.attempt(lambda t=tower, a=found: gather(_alone(a, t), checkpoint))
        if gathered is not None:
            tensors += gathered[0]
            ignored |= gathered[1]
    problems.raise_any()
    general = general_keys(folder, checkpoint.config, CLIP, tensors, GGUFType.MMPROJ)
    keys = general
    for _, found in architectures:
        keys = keys | found.keys
    return Model(
        CLIP,
        keys,
        tuple(tensors),
        {name: why for name, why in ignored.items() if why not in (_TEXT, _OTHER)},
        deviations=tuple(w for _, found in architectures for w in found.deviations),
    )


def projector_of(config: Mapping[str, Any], where: str) -> Projector:
    """Return the towers of a model's class.

    where: the path of config.json, which begins the message

    Raises ArchitectureError if dynquant knows no projector for it.
    """
    name = stated_class(config, where)
    known = projectors()
    projector = of_tower(name, config)
    if projector in known:
        return known[projector]
    if not any(isinstance(config.get(n), dict) for n in ("vision_config", "audio_config")):
        raise ArchitectureError(
            f"{where}: {name!r} has no part that sees or hears, so there is no projector to write;"
            " remove --mmproj"
        )
    near = difflib.get_close_matches(name, known, 3, 0.7)
    hint = f" (similar classes with one: {', '.join(near)})" if near else ""
    raise ArchitectureError(
        f"{where}: the projector of {name!r} is not supported; {_CONVERTED}{hint}"
    )


def _within(tower: Tower) -> re.Pattern[str]:
    return re.compile(rf"{_PREFIX}(?:{tower.within})")


def _alone(architecture: Architecture, tower: Tower) -> Architecture:
    """Return a tower that leaves all tensors outside of it out."""
    shared = rf"|{_PREFIX}(?:{tower.shared})" if tower.shared else ""
    outside = rf"(?!{_within(tower).pattern}{shared}).*"
    return replace(architecture, ignored={**architecture.ignored, outside: _TEXT})


def _unused(checkpoint: Checkpoint, towers: Projector) -> Iterator[str]:
    """Yield messages for tensors of parts that see or hear and that no tower has."""
    patterns = [_within(tower) for tower in towers]
    parts = [re.compile(p) for p, why in OTHER_PARTS.items() if "separate file" in why]
    others = [
        name
        for name in checkpoint.tensors
        if any(p.fullmatch(name) for p in parts) and not any(p.match(name) for p in patterns)
    ]
    for name in grouped(others):
        yield (
            f"{checkpoint.folder}: {name} is not a tensor of this model's projector; take weights"
            " and config.json from one model"
        )
    for tower, pattern in zip(towers, patterns, strict=True):
        if not any(pattern.match(name) for name in checkpoint.tensors):
            yield (
                f"{checkpoint.folder}: has no tensors of the {tower.place} model; this copy was"
                " saved without it, so take the projector from the original model"
            )
