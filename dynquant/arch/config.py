"""config.json as typed values; all missing or mistyped settings are reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sized
from functools import cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from dynquant.errors import ArchitectureError
from dynquant.untrusted import shown

Count = Annotated[int, Field(strict=True, gt=0, lt=2**31)]
Integer = Annotated[int, Field(strict=True)]
Natural = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
MAX_LAYERS = 512
"""LLAMA_MAX_LAYERS of llama.cpp."""

LayersCount = Annotated[int, Field(strict=True, gt=0, le=MAX_LAYERS)]

ExpertsCount = Annotated[int, Field(strict=True, gt=0, le=1024)]
"""LLAMA_MAX_EXPERTS of llama.cpp; 512 before Kimi-K3."""

AheadCount = Annotated[int, Field(strict=True, ge=0, le=512)]
"""Number of layers that predict further ahead; published models have at most three."""

Positive = Annotated[float, Field(strict=True, gt=0, le=3e38)]
"""Within the range of float32, the type of the keys."""

_MAX_ITEMS = 1 << 16
"""Limit on the length of a list: the longest have an entry per layer or per rotary pair."""

Truth = Annotated[bool, Field(strict=True)]

T = TypeVar("T")


@cache
def _adapter(form: type[T]) -> TypeAdapter[T]:
    return TypeAdapter(form)


def without_nulls(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that have a value; null leaves a setting at its default."""
    return {name: value for name, value in settings.items() if value is not None}


def usual_names(config: Mapping[str, Any], where: str, names: Mapping[str, str]) -> dict[str, Any]:
    """Return config.json with the usual names of its settings beside its own.

    names: the usual name of each setting that has another one

    Raises ArchitectureError for settings that it states twice with different values.
    """
    ArchitectureError.raise_any(
        f"{where}: {own} is {shown(config[own])}, but {usual} is {shown(config[usual])}; both name"
        " one setting, make them equal"
        for own, usual in names.items()
        if None not in (config.get(own), config.get(usual)) and config[own] != config[usual]
    )
    stated = {usual: config[own] for own, usual in names.items() if config.get(own) is not None}
    return {**config, **stated}


def read_config(form: type[T], values: Mapping[str, Any], where: str) -> T:
    """Return the values as an instance of a dataclass; unknown keys are ignored, null is absent.

    where: the file and the place in it, which begin every message

    Raises ArchitectureError naming every key that is missing or whose value is not valid.
    """
    present = without_nulls(values)
    # pydantic would report each wrong item of a long list.
    ArchitectureError.raise_any(
        f"{where}: {key} has {len(cast(Sized, value))} entries; at most {_MAX_ITEMS} are read"
        for key, value in present.items()
        if isinstance(value, list | dict) and len(cast(Sized, value)) > _MAX_ITEMS
    )
    try:
        return _adapter(form).validate_python(present)
    except ValidationError as e:
        found = (_message(problem) for problem in e.errors(include_url=False))
        raise ArchitectureError(*(f"{where}: {m}" for m in dict.fromkeys(found))) from e


def _message(problem: ErrorDetails) -> str:
    """Return what is wrong with a setting, in the words of messages."""
    *outer, last = problem["loc"]
    if problem["type"] == "missing" and isinstance(last, int):
        return f"{'.'.join(map(str, outer))} has too few entries"
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "missing":
        return f"{key} is missing"
    expected = problem["msg"].removeprefix("Input ").lower().replace("a valid tuple", "a list")
    return f"{key} is {shown(problem['input'])}, but {expected}"
