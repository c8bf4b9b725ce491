"""Checks a file of second moments against a model and against the imatrix beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from statistics import median

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.errors import ImportanceError
from dynquant.importance.audit import with_same_inputs
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Input, Moments
from dynquant.name_lists import grouped

MOST_APART = 0.5
"""How far mean squares may be from those of the imatrix: the sum of differences, relative to the
sum of both; the median of all inputs."""

TOKENS_OF_CHANNEL = 2
"""Tokens for each channel of an input below which a warning is given."""

NEEDS_IMATRIX = (
    "second moments need the imatrix that `dynquant imatrix --moments` writes beside them; give it,"
    " too (--imatrix FILE)"
)


def fitted(
    moments: Moments, tensors: Sequence[ModelTensor], imatrix: Imatrix
) -> tuple[Moments, tuple[str, ...]]:
    """Return the moments with an input for each of a model's tensors that has one, and warnings.

    A tensor without an input has that of a tensor with the same inputs, such as the gate of a file
    with separate matrices for a model with fused ones.

    Raises ImportanceError for the file of another model, with the names and sizes that differ.
    """
    path = moments.path
    known = {t.name: (t, found) for t in tensors if (found := _input_of(t, moments)) is not None}
    used = {name for _, found in known.values() for name in found.tensors}
    extra = grouped(sorted(moments.inputs.keys() - used))
    if not known:
        raise ImportanceError(
            f"{path}: has the moments of another model: this model has none of its tensors"
            f" ({', '.join(extra[:3])}{', …' if len(extra) > 3 else ''})"
        )
    ImportanceError.raise_any(
        f"{path}: has the moments of another model: {m}" for m in _misfits(list(known.values()))
    )
    warnings = [f"{path}: ignored, not in the model: {', '.join(extra)}"] if extra else []
    theirs = imatrix.made.get("dynquant.imatrix.tokens_sha256")
    ours = moments.metadata.get("tokens_sha256")
    inputs = {name: found for name, (_, found) in known.items()}
    fit = replace(moments, inputs=inputs)
    warnings += _of_few_tokens(fit)
    if not theirs or theirs != ours:
        _refuse_others(fit, imatrix)
    if theirs and ours and theirs != ours:
        warnings.append(
            f"{path}: has the moments of other tokens than {imatrix.path.name}; give files that one"
            " run of `dynquant imatrix --moments` wrote"
        )
    return fit, tuple(warnings)


def _of_few_tokens(moments: Moments) -> Iterator[str]:
    """Yield a warning if an input that all tokens pass has few of them for its channels."""
    few: dict[int, float] = {}
    for each in {i.name: i for i in moments.inputs.values()}.values():
        if each.n_matrices == 1:
            tokens = float(moments.peek(each, "counts").max())
            if tokens < TOKENS_OF_CHANNEL * each.n:
                few[each.n] = tokens
    if few:
        yield (
            f"{moments.path}: has {min(few.values()):,.0f} tokens for inputs of up to"
            f" {max(few):,} channels; correlations of so few are largely chance, and feedback may"
            f" harm: give `dynquant imatrix` a longer text, at least {TOKENS_OF_CHANNEL} tokens for"
            " each channel"
        )


def _refuse_others(moments: Moments, imatrix: Imatrix) -> None:
    """Raise ImportanceError if the mean squares are not about those of the imatrix.

    Half of the sum of both is a difference between texts that no model has shown, and less than
    between two models.
    """
    found: list[float] = []
    for each in {i.name: i for i in moments.inputs.values()}.values():
        entry = next((imatrix.entries[t] for t in each.tensors if t in imatrix.entries), None)
        if entry is None or entry.n_values != each.n_matrices * each.n:
            continue
        theirs = entry.sums(0, entry.n_values).reshape(-1, each.n).sum(axis=0, dtype=np.float64)
        theirs /= max(1, sum(entry.counts))
        counts = moments.peek(each, "counts").astype(np.float64)
        squares = moments.peek(each, "squares").astype(np.float64)
        ours = (squares * counts[:, None]).sum(axis=0) / max(1.0, counts.sum())
        if (total := float((ours + theirs).sum())) > 0:
            found.append(float(np.abs(ours - theirs).sum()) / total)
    if found and median(found) > MOST_APART:
        raise ImportanceError(
            f"{moments.path}: has other mean squares than {imatrix.path.name}: it is of another"
            " model or another text; give files that one run of `dynquant imatrix --moments` wrote"
        )


def _input_of(tensor: ModelTensor, moments: Moments) -> Input | None:
    """Return a tensor's input, or that of another tensor with the same inputs, if it fits."""
    if tensor.name in moments.inputs:
        return moments.inputs[tensor.name]
    others = (moments.inputs.get(name) for name in with_same_inputs(tensor))
    return next((found for found in others if found and _has(found) == _wants(tensor)), None)


def _misfits(known: Sequence[tuple[ModelTensor, Input]]) -> Iterator[str]:
    """Yield a message for each wrong number of channels or matrices, with names of tensors."""
    groups: dict[tuple[str, str], list[str]] = {}
    for tensor, found in known:
        has, wanted = _has(found), _wants(tensor)
        if has != wanted:
            groups.setdefault((has, wanted), []).append(tensor.name)
    for (has, wanted), names in groups.items():
        yield f"{has} channels for the {wanted} input channels of {', '.join(grouped(names))}"


def _has(found: Input) -> str:
    return _size(found.n_matrices, found.n)


def _wants(tensor: ModelTensor) -> str:
    return _size(prod(tensor.shape[:-2]), tensor.n_per_row)


def _size(n_matrices: int, n: int) -> str:
    return f"{n_matrices} times {n}" if n_matrices > 1 else str(n)
