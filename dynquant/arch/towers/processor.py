"""Settings of a model's image processor: colours, and sizes that the encoder implies, too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, cast

from pydantic import Field

from dynquant.arch.config import Count, read_config
from dynquant.arch.towers.whole import Whole
from dynquant.errors import ArchitectureError
from dynquant.untrusted import shown

_BYTE = 1 / 255
"""The factor by which llama.cpp multiplies the bytes of a picture before mean and deviation."""

_Part = Annotated[float, Field(ge=0, le=1)]
_Deviation = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class Norm:
    """Mean and deviation of the colours, which are from 0 to 1."""

    image_mean: tuple[_Part, _Part, _Part]
    image_std: tuple[_Deviation, _Deviation, _Deviation]


def norm(whole: Whole) -> Norm:
    """Return mean and deviation: zero and one if the model's processor does not normalize.

    Raises ArchitectureError if the model has no valid settings of a processor.
    """
    if whole.images.get("do_normalize") is False:
        return Norm((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    if not whole.images:
        raise ArchitectureError(
            f"{whole.folder}: has no preprocessor_config.json, which says how pictures are prepared"
            " (image_mean, image_std); download it from the original model"
        )
    return read_config(Norm, whole.images, whole.processor)


def colour_problems(whole: Whole) -> Iterator[str]:
    """Yield a message for each step between a picture's bytes and mean that llama.cpp has fixed."""
    if whole.images.get("do_rescale") is False:
        yield f"{whole.processor}: do_rescale is false; llama.cpp always does it"
    factor = whole.images.get("rescale_factor", _BYTE)
    if not isinstance(factor, int | float) or abs(factor - _BYTE) > 1e-6:
        yield f"{whole.processor}: rescale_factor is {shown(factor)}; llama.cpp multiplies by 1/255"


@dataclass(frozen=True)
class Edges:
    """The processor's `size`, where pictures keep their shape: pixels of edges, or of an area."""

    shortest_edge: Count | None = None
    longest_edge: Count | None = None


@dataclass(frozen=True)
class _Sized:
    size: Edges = field(default_factory=Edges)


def edges(whole: Whole) -> Edges:
    """Return the processor's `size`; raise ArchitectureError for one that is not valid."""
    return read_config(_Sized, whole.images, whole.processor).size


def contradictions(whole: Whole, **implied: int | tuple[int, ...]) -> Iterator[str]:
    """Yield a message for each setting of the processor that config.json contradicts.

    implied: the value of each setting by its name, or several where programs mean it differently;
             the processor may omit settings
    """
    for name, values in implied.items():
        expected = values if isinstance(values, tuple) else (values,)
        stated = whole.images.get(name)
        if stated is not None and all(_numbers(stated) != {value} for value in expected):
            yield (
                f"{whole.processor}: {name} is {shown(stated)}, but config.json implies"
                f" {' or '.join(map(str, expected))}; take both from one model"
            )


def _numbers(stated: object) -> set[object]:
    """Return the numbers of a setting: n, [n, n], or {"height": n, "width": n}; others as text."""
    if isinstance(stated, dict):
        found = [*cast("dict[str, object]", stated).values()]
    else:
        found = cast("list[object]", stated) if isinstance(stated, list) else [stated]
    return {x if type(x) is int else shown(x) for x in found}
