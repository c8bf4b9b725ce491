"""Tensors that a recipe's rules leave out of the file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from dynquant.arch.base import Model
from dynquant.checkpoint.names import grouped
from dynquant.errors import PlanError
from dynquant.plan.prediction import settle_prediction


def leave_out(
    model: Model, dropped: Mapping[str, str], whole: Model
) -> tuple[Model, tuple[str, ...]]:
    """Return a model without some tensors, and what the user is to be warned of.

    dropped: names of tensors, with the place of the rule that drops them
    whole:   the model before its layers that predict further ahead were settled

    Raises PlanError where layers that predict further ahead would lose only some of their tensors:
    a file's keys count these layers, and runtimes look for all of them.
    """
    if not dropped:
        return model, ()
    ahead = model.prediction.layers if model.prediction else range(0)
    theirs = [t.name for t in model.tensors if t.parts.layer in ahead]
    gone = [name for name in theirs if name in dropped]
    if gone and len(gone) < len(theirs):
        left = grouped(name for name in theirs if name not in dropped)
        raise PlanError(
            f"{dropped[gone[0]]}: drops only a part of the layers that predict further ahead; drop"
            f" all of them (role: mtp) or none; left are {', '.join(left)}"
        )
    if gone:
        model = settle_prediction(whole, keep=False, reason=f"dropped by {dropped[gone[0]]}")
    others = {t.name: dropped[t.name] for t in model.tensors if t.name in dropped}
    if not others:
        return model, ()
    warning = (
        f"{next(iter(others.values()))}: drops {', '.join(grouped(others))}; llama.cpp does not"
        " load a file that lacks a tensor of its architecture"
    )
    return (
        replace(
            model,
            tensors=tuple(t for t in model.tensors if t.name not in others),
            ignored=model.ignored | {n: f"dropped by {where}" for n, where in others.items()},
        ),
        (warning,),
    )
