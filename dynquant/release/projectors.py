"""Projector files among those of a release: which language models they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from dynquant.errors import ReleaseError
from dynquant.release.finished import Finished
from dynquant.report.picture import text_of

_CLIP = "clip"
_SEES, _HEARS = "clip.has_vision_encoder", "clip.has_audio_encoder"
_WIDTH = re.compile(r"clip\.(vision|audio)\.projection_dim")


def is_projector(model: Finished) -> bool:
    """Whether a file is a projector, which runtimes load beside a language model."""
    return model.architecture == _CLIP


def apart(files: Sequence[Finished]) -> tuple[list[Finished], list[Finished]]:
    """Return the language models and their projectors.

    Raises ReleaseError for projectors without a language model, or of another one.
    """
    ReleaseError.raise_any(
        f"{file.path}: is an adapter; a release is of models and their projectors"
        for file in files
        if text_of(file.keys, "general.type") == "adapter"
    )
    models = [file for file in files if not is_projector(file)]
    projectors = [file for file in files if is_projector(file)]
    if not models:
        raise ReleaseError(
            f"{projectors[0].path}: is a projector; name the GGUF of its language model, too"
        )
    ReleaseError.raise_any(p for one in projectors for p in _problems(one, models[0]))
    return models, projectors


def _problems(projector: Finished, model: Finished) -> Iterator[str]:
    ours, theirs = model.repository, projector.repository
    if ours and theirs and ours != theirs:
        yield (
            f"{projector.path}: is the projector of {theirs}, but {model.path} is of {ours}; take"
            " both from one model"
        )
    if changed := _other_sources(projector, model):
        yield (
            f"{projector.path}: was made from another {changed} than {model.path}; take both from"
            " one model"
        )
    elif projector.name != model.name and not (ours and theirs):
        yield (
            f"{projector.path}: is of {projector.name!r}, but {model.path} is of {model.name!r};"
            " take both from one model, or give both one name (--set general.name=NAME)"
        )
    width = model.keys.get(f"{model.architecture}.embedding_length")
    for name, key in projector.keys.items():
        if _WIDTH.fullmatch(name) and width is not None and key.value != width.value:
            yield (
                f"{projector.path}: {name} is {key.value}, but the embeddings of {model.path} have"
                f" {width.value} numbers; take both from one model"
            )


def _other_sources(projector: Finished, model: Finished) -> str:
    """Return the name of a source file of which the two had different ones; "" if none is known."""
    ours, theirs = (
        {s.name: (s.bytes, s.header_sha256) for s in one.manifest.sources} if one.manifest else {}
        for one in (model, projector)
    )
    return next((n for n, facts in theirs.items() if n in ours and ours[n] != facts), "")


def abilities(projectors: Sequence[Finished]) -> tuple[str, ...]:
    """Return what projectors add: "image", "audio", or both."""
    found = [
        name
        for name, key in (("image", _SEES), ("audio", _HEARS))
        if any(key in p.keys and p.keys[key].value for p in projectors)
    ]
    return tuple(found)
