"""Experts that are stored in a form that cannot be read: one message for each cause.

Some programs store the experts of a layer as stacks. Which form it is, names and shapes show
(`Row.forms`). If they do not, or not with certainty, the model is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynquant.arch.wanted_tensors import Wanted
from dynquant.checkpoint.packed import Weight
from dynquant.name_lists import grouped

_AGAIN = (
    "save the model with a tensor for each expert (transformers' `save_pretrained` does so, unless"
    " save_original_format is false)"
)
_OF_LAYER = re.compile(r"(.*\blayers\.[0-9]+\.)(mlp|block_sparse_moe|moe|ffn|feed_forward)\b.*")


@dataclass(frozen=True)
class Unreadable:
    """Messages, and the names of all tensors that they explain: stored, or missing."""

    messages: tuple[str, ...]
    names: frozenset[str]


def unreadable_stacks(
    folder: Path,
    stored: Mapping[str, Weight],
    wanted: Iterable[Wanted],
    unknown: Sequence[str],
) -> Unreadable:
    """Return what is wrong with the forms in which a checkpoint stores experts.

    wanted:  the tensors of the output; unknown: stored tensors that none of them is made of
    """
    experts = [want for want in wanted if want.has_forms]
    matrices = [want for want in experts if len(want.shape) > 1]
    found = (
        _twice(experts),
        _transposed(matrices, stored),
        _square(matrices, stored),
        _foreign(matrices, stored, unknown),
    )
    messages = tuple(f"{folder}: {text}" for text, _ in found if text)
    return Unreadable(messages, frozenset(name for _, names in found for name in names))


_Finding = tuple[str, Iterable[str]]
"""A message, empty if nothing is wrong, and the names that it explains."""


def _twice(experts: Iterable[Wanted]) -> _Finding:
    names = [name for want in experts if want.again for name in (want.stored_names[0], *want.again)]
    if not names:
        return "", ()
    both = ", ".join(grouped(dict.fromkeys(names)))
    return f"the same tensors are stored in two forms: {both}; remove one of them", ()


def _transposed(experts: Iterable[Wanted], stored: Mapping[str, Weight]) -> _Finding:
    names: dict[str, list[int]] = {}
    for want in experts:
        *outer, rows, columns = want.shape
        for name in want.stored_names:
            if name in stored and stored[name].shape == (*outer, columns, rows) != want.shape:
                names[name] = list(stored[name].shape)
    if not names:
        return "", ()
    text = _with_shapes(names.items())
    return (
        f"{text}: the last two dimensions are exchanged; stacks of experts with outputs last are"
        f" not supported, {_AGAIN}"
    ), names


def _square(experts: Iterable[Wanted], stored: Mapping[str, Weight]) -> _Finding:
    """Find stacks of square matrices that could be transposed."""
    layouts: dict[tuple[str, str], list[Wanted]] = {}
    for want in experts:
        if not want.oriented and all(name in stored for name in want.stored_names):
            layer = want.name.rpartition(".ffn_")[0]
            layouts.setdefault((layer, want.layout), []).append(want)
    names = {
        name: list(want.shape)
        for wants in layouts.values()
        if all(want.shape[-1] == want.shape[-2] for want in wants)
        for want in wants
        for name in want.stored_names
    }
    if not names:
        return "", ()
    return (
        f"{_with_shapes(names.items())}: nothing shows whether the rows of these square matrices"
        f" are outputs or inputs; {_AGAIN}"
    ), names


def _foreign(
    experts: Iterable[Wanted], stored: Mapping[str, Weight], unknown: Iterable[str]
) -> _Finding:
    """Find tensors of other names in the place of experts that are missing."""
    absent: dict[str, list[str]] = {}
    for want in experts:
        place = _OF_LAYER.fullmatch(want.stored_names[0])
        if place and not any(name in stored for name in want.stored_names):
            absent.setdefault(place[1], []).extend(want.stored_names)
    instead = {
        name: (list(stored[name].shape), place[1])
        for name in unknown
        if (place := _OF_LAYER.fullmatch(name)) and place[1] in absent
        if not re.search(r"shared|router|\bgate\.", name)
    }
    if not instead:
        return "", ()
    text = _with_shapes((name, shape) for name, (shape, _) in instead.items())
    layers = {layer for _, layer in instead.values()}
    return (f"{text}: experts in a layout that is not known; {_AGAIN}"), (
        *instead,
        *(name for layer in layers for name in absent[layer]),
    )


def _with_shapes(names: Iterable[tuple[str, list[int]]]) -> str:
    return ", ".join(grouped(f"{name} {shape}" for name, shape in names))
