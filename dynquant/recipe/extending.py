"""Joins a recipe with those that it extends: the order of their rules, and whose keys count.

Each file precedes every file that it extends. Of two files in one `extends` list, the later
precedes the earlier: the rules of a file that extends `[a, b]` are its own, then those of b, then
those of a. A file that is extended twice counts once, after all files that extend it. Python looks
up methods of classes with several bases in the same order (C3,
https://docs.python.org/3/howto/mro.html).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TypeVar

from dynquant.importance.experts import DEFAULT, Policy, Unseen
from dynquant.quants.search import Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.feedback import UNSET, Feedback
from dynquant.recipe.rules import Fallback, Output, Recipe, Rule, TensorOrder, Use
from dynquant.recipe.target import NO_TARGET, Target
from dynquant.recipe.yaml_nodes import Place

T = TypeVar("T")


@dataclass(frozen=True)
class Given:
    """The content of one file; None and empty collections where it says nothing.

    path: the file's name in messages, different for each file of a recipe
    """

    name: str
    path: str
    text: str
    rules: tuple[Rule, ...] = ()
    description: str | None = None
    default: QuantType | None = None
    default_place: Place | None = None
    fallback: Fallback | None = None
    intended: tuple[str, ...] = ()
    importance: Use | None = None
    shrink: int | None = None
    unseen: Unseen | None = None
    feedback: Feedback = UNSET
    target: Target = NO_TARGET
    effort: Effort | None = None
    shard_bytes: int | None = None
    tensor_order: TensorOrder | None = None
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    keeps_prediction: bool | None = None
    readers: tuple[str, ...] = ()


class OrderError(ValueError):
    """Two files would each have to precede the other; the text says why and what to do."""


def in_order(parents: Sequence[Sequence[Given]]) -> tuple[Given, ...]:
    """Return the files that a file extends, in the order of their rules.

    parents: for each entry of its `extends`, that file and those that it extends in turn, in order

    Raises OrderError if a list has a file after one that extends it, or if two lists have the same
    files in different orders.
    """
    listed = [files[0] for files in parents]
    left = [list(files) for files in reversed(parents)] + [listed[::-1]]
    found: list[Given] = []
    while left := [files for files in left if files]:
        waiting = {one.path for files in left for one in files[1:]}
        free = next((files[0] for files in left if files[0].path not in waiting), None)
        if free is None:
            raise OrderError(_contradiction(left, parents))
        found.append(free)
        for files in left:
            if files[0].path == free.path:
                del files[0]
    return tuple(found)


def _contradiction(left: Sequence[Sequence[Given]], parents: Sequence[Sequence[Given]]) -> str:
    """Return why none of the first files can be the next."""
    pairs = ((a[0].path, b[0].path) for a in left for b in left if a[0] in b[1:])
    path, other = next(pairs)
    extended = next((files[1:] for files in parents if files[0].path == other), ())
    if any(file.path == path for file in extended):
        return (
            f"{path} is listed after {other}, which extends it, so that each would precede the"
            f" other; list {other} after it"
        )
    return (
        f"{path} and {other} are in different orders in two lists of `extends`, so that each would"
        " precede the other; list them in one order"
    )


def joined(files: Sequence[Given]) -> Recipe:
    """Return the recipe of a file and of those that it extends, in the order of their rules.

    Of each other key, the value of the first file which has it counts; `importance`, `feedback`,
    `metadata` and `output` are joined key by key. At least one file has a default.
    """

    def first(key: Callable[[Given], T | None]) -> T | None:
        return next((value for file in files if (value := key(file)) is not None), None)

    own, *others = files
    default, place = first(lambda f: f.default), first(lambda f: f.default_place)
    assert default is not None and place is not None, "a recipe without a default has a fault"
    importance: Use | None = first(lambda f: f.importance)
    shrink = first(lambda f: f.shrink)
    unseen: Unseen | None = first(lambda f: f.unseen)
    tensor_order: TensorOrder | None = first(lambda f: f.tensor_order)
    metadata: dict[str, str] = {}
    for file in reversed(files):
        metadata |= file.metadata
    rules = [replace(rule, inherited=True) for file in others for rule in file.rules]
    return Recipe(
        own.name,
        first(lambda f: f.description) or "",
        own.path,
        own.text,
        default,
        place,
        (*own.rules, *rules),
        fallback=first(lambda f: f.fallback) or Fallback(),
        texts=tuple(file.text for file in others),
        extended=tuple(file.path for file in others),
        intended=first(lambda f: f.intended or None) or (),
        importance=importance or "optional",
        experts=Policy(DEFAULT.shrink if shrink is None else shrink, unseen or DEFAULT.unseen),
        feedback=Feedback.first_of(file.feedback for file in files),
        target=reduce(Target.over, (file.target for file in files)),
        effort=first(lambda f: f.effort),
        output=Output(first(lambda f: f.shard_bytes), tensor_order or "model"),
        metadata=metadata,
        keeps_prediction=bool(first(lambda f: f.keeps_prediction)),
        readers=first(lambda f: f.readers or None) or (),
    )
