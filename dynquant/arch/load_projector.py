"""Load a projector from a folder or the Hub: what llama.cpp needs to see and to hear."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gguf import GGUFType

from dynquant.arch.base import Architecture, Model, ModelTensor
from dynquant.arch.gather import gather
from dynquant.arch.load import Fetch, is_gguf, with_source
from dynquant.arch.metadata import general_keys
from dynquant.arch.model_types import stated_class
from dynquant.arch.projectors import find_projector, projectors, refused
from dynquant.arch.towers.whole import CLIP, Projector, Tower, Whole
from dynquant.arch.wrapped import OTHER_PARTS, SEPARATE
from dynquant.checkpoint import causes, hub
from dynquant.checkpoint.remote.fsspec_models import is_url, url_model
from dynquant.checkpoint.remote.hub_models import hub_files, unlisted_files
from dynquant.checkpoint.safetensors import (
    Checkpoint,
    open_checkpoint,
    read_config,
    shard_files,
)
from dynquant.errors import ArchitectureError, CheckpointError, Problems
from dynquant.name_lists import grouped
from dynquant.stored_files import ALL_HERE, Elsewhere

_PREFIX = r"(model\.|thinker\.|base_model\.model\.)*"
_TEXT = "the language model, which is another file"
_CONVERTED = (
    "if llama.cpp's `convert_hf_to_gguf.py --mmproj` supports it, use that and give the resulting"
    " GGUF to dynquant"
)


def load_projector(path: str | Path, *, fetch: Fetch = "download") -> Model:
    """Describe the projector of a larger model, without reading its weights.

    path: a folder with config.json and safetensors, hf://org/model[@revision], or a URL of fsspec;
          of the files elsewhere, only those with tensors of the projector are read
    fetch: how they are read

    Raises DynquantError with all problems: CheckpointError for the files, ArchitectureError for a
    model without a projector, or with one that llama.cpp cannot compute.
    """
    if hub.is_hub_name(str(path)):
        folder, name, elsewhere = _fetch(str(path), fetch)
        model = _of_folder(folder, elsewhere)
        return replace(model, keys=with_source(model.keys, hub.source_keys(name)))
    hub.refuse_address(str(path))
    if is_gguf(Path(path)):
        raise ArchitectureError(
            f"{path}: a GGUF holds one part of a model; to quantize a projector that is a GGUF,"
            " give it as the model, without --mmproj"
        )
    if is_url(str(path)):
        return _of_folder(*url_model(str(path), is_copied=fetch == "shards"))
    return _of_folder(Path(path))


def _fetch(text: str, fetch: Fetch) -> tuple[Path, hub.HubName, Elsewhere]:
    """Fetch what a projector needs of a model on the Hub.

    Returns its folder, its full name, and the weights that stay on the Hub.
    """
    name = hub.parse_hub_name(text)
    if name.file:
        raise ArchitectureError(
            f"{text}: a GGUF holds one part of a model; give the repository with its safetensors"
        )
    folder, name = hub.fetch_description(name)
    towers = projector_of(read_config(folder), str(folder / "config.json"))
    listed = shard_files(folder, _is_of(towers))
    if fetch != "download":
        listed = listed or unlisted_files(name)
        return folder, name, hub_files(name, folder, listed, is_copied=fetch == "shards")
    if listed:
        hub.fetch_files(name, listed)
    else:
        hub.fetch_unlisted(name)
    return folder, name, ALL_HERE


def _is_of(towers: Projector) -> Callable[[str], bool]:
    """Return whether a stored name belongs to a part that sees or hears."""
    patterns = [_within(tower) for tower in towers]
    return lambda name: any(p.match(name) for p in patterns) or _is_other_part(name)


def _is_other_part(name: str) -> bool:
    return any(re.fullmatch(p, name) for p, why in OTHER_PARTS.items() if SEPARATE in why)


def _of_folder(folder: Path, elsewhere: Elsewhere = ALL_HERE) -> Model:
    where = str(folder / "config.json")
    if not folder.is_dir():
        open_checkpoint(folder)  # raises, with what to give instead
    config = read_config(folder)
    CheckpointError.raise_any(causes.check_config(config, where))
    towers = tuple(t for t in projector_of(config, where) if t.is_part_of(config))
    checkpoint = open_checkpoint(folder, _is_of(towers), elsewhere)
    CheckpointError.raise_any(causes.check_weights(checkpoint))
    whole = Whole.of(checkpoint.config, folder, elsewhere)
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
        {name: why for name, why in ignored.items() if why != _TEXT},
        deviations=tuple(w for _, found in architectures for w in found.deviations),
    )


def projector_of(config: Mapping[str, Any], where: str) -> Projector:
    """Return the towers of a model's class.

    where: the path of config.json, which begins the message

    Raises ArchitectureError if dynquant knows no projector for it.
    """
    name = stated_class(config, where)
    known = projectors()
    if (projector := find_projector(name, config)) is not None:
        return projector
    if not any(isinstance(config.get(n), dict) for n in ("vision_config", "audio_config")):
        raise ArchitectureError(
            f"{where}: {name!r} has no part that sees or hears, so there is no projector to write"
        )
    if reason := refused().get(name):
        raise ArchitectureError(f"{where}: the projector of {name!r} is not supported: {reason}")
    if kinds := [kind.removeprefix(f"{name}/") for kind in known if kind.startswith(f"{name}/")]:
        raise ArchitectureError(
            f"{where}: the projector of {name!r} is supported with a vision_config of model_type"
            f" {' or '.join(kinds)}; {_CONVERTED}"
        )
    near = difflib.get_close_matches(name, (n for n in known if "/" not in n), 3, 0.7)
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
    others = [
        name
        for name in checkpoint.tensors
        if _is_other_part(name) and not any(p.match(name) for p in patterns)
    ]
    for name in grouped(others):
        yield (
            f"{checkpoint.folder}: {name} is not a tensor of this model's projector; take weights"
            " and config.json from one model"
        )
    for tower, pattern in zip(towers, patterns, strict=True):
        if not any(pattern.match(name) for name in checkpoint.tensors):
            yield (
                f"{checkpoint.folder}: has no tensors of the {tower.kind} encoder; this copy was"
                " saved without it, so take the projector from the original model"
            )
