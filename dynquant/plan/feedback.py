"""Which tensors of a plan are encoded with error feedback, and the key that records it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from dynquant.arch.base import ModelTensor, TensorName
from dynquant.figures import counted
from dynquant.importance.audit import Importance
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.importance.moments_fit import fitted
from dynquant.keys import Keys, string
from dynquant.name_lists import grouped
from dynquant.plan.objective import LOOKED_UP, search_for
from dynquant.quants.table import QuantType
from dynquant.recipe.assignment import Assignment
from dynquant.recipe.feedback import MAX_SWEEPS, MIN_DAMPING, FeedbackSetting
from dynquant.recipe.roles import GROUPS
from dynquant.recipe.rules import Recipe

FEEDBACK_KEY = "dynquant.feedback"
"""A JSON list: each setting with the names of its tensors."""

_WITHOUT = LOOKED_UP | GROUPS["router"] | GROUPS["norms"]
"""Roles of tensors that are not encoded with error feedback."""


class _Group(BaseModel):
    """The tensors of one setting, in the key."""

    model_config = ConfigDict(extra="forbid", strict=True)

    damping: Annotated[float, Field(ge=MIN_DAMPING, le=1)]
    sweeps: Annotated[int, Field(ge=0, le=MAX_SWEEPS)]
    tensors: list[str]


_GROUPS = TypeAdapter(list[_Group])


def may_have_feedback(name: str, qtype: QuantType) -> bool:
    """Whether a tensor of this name and type is one that error feedback is for.

    It is for matrices of block types whose errors are weighted by the importance: not for tables
    that are looked up, routers and norms.
    """
    role = TensorName.parse(name).role
    is_plain = search_for(name, "normal").weighting != "magnitude"
    return is_plain and not (qtype.is_float or role in _WITHOUT or "router" in role)


def settings_of(changed: Mapping[str, Assignment]) -> dict[str, FeedbackSetting]:
    """Return the settings of the tensors that get error feedback if they have moments.

    changed: the tensors that do not keep their type
    """
    return {
        name: setting
        for name, given in changed.items()
        if (setting := given.feedback.setting) is not None
        and not given.on_grid
        and may_have_feedback(name, given.type)
    }


@dataclass(frozen=True)
class Fed:
    """The second moments that a plan uses, None if it uses none, and the tensors that have them."""

    moments: Moments | None = None
    settings: Mapping[str, FeedbackSetting] = field(default_factory=dict[str, FeedbackSetting])
    warnings: tuple[str, ...] = ()


def decide_feedback(
    recipe: Recipe,
    moments: Moments,
    imatrix: Imatrix | None,
    tensors: Sequence[ModelTensor],
    changed: Mapping[str, Assignment],
    importance: Mapping[str, Importance],
) -> Fed:
    """Return the tensors that are encoded with error feedback.

    imatrix:    None if the recipe ignores it
    changed:    the tensors that do not keep their type; importance: of those that have one

    Raises ImportanceError if the moments are another model's.
    """
    ignores = f"{recipe.path}: ignores the second moments {moments.path.name}"
    if imatrix is None:
        return Fed(warnings=(f"{ignores} (importance: ignored)",))
    wanted = settings_of(changed)
    if not wanted and recipe.feedback.use == "off":
        return Fed(warnings=(f"{ignores} (feedback: off)",))
    found, warnings = fitted(moments, tensors, imatrix)
    settings = {n: s for n, s in wanted.items() if n in found.inputs and n in importance}
    if not settings:
        none = (
            f"the second moments {moments.path.name} are not used: no tensor that is quantized has"
        )
        return Fed(warnings=(f"{none} moments and importance",))
    return Fed(found, settings, warnings)


def required_problems(
    recipe: Recipe, moments: Moments | None, changed: Mapping[str, Assignment]
) -> Iterator[str]:
    """Yield a message for the recipe, or for each of its rules, that requires what is missing."""
    required = {n for n in settings_of(changed) if changed[n].feedback.use == "required"}
    if recipe.importance == "ignored" and (required or recipe.feedback.use == "required"):
        yield (
            f"{recipe.path}: feedback: required needs the importance that importance: ignored"
            " ignores; change one of them"
        )
        return
    if moments is not None:
        return
    remedy = "give the model's moments (--moments FILE)"
    if recipe.feedback.use == "required":
        yield f"{recipe.path}: needs second moments (feedback: required); {remedy}"
        return
    groups: dict[str, list[str]] = {}
    for name in changed:
        if name in required:
            groups.setdefault(changed[name].rule, []).append(name)
    for rule, names in groups.items():
        yield (
            f"{rule}: needs second moments for {', '.join(grouped(names))} (feedback: required);"
            f" {remedy}"
        )


def unmet_problems(
    recipe: Recipe, moments: Moments, changed: Mapping[str, Assignment], fed: Fed
) -> Iterator[str]:
    """Yield a message if tensors that require error feedback have no moments or no importance."""
    without = [
        name
        for name in settings_of(changed)
        if name not in fed.settings
        and "required" in (changed[name].feedback.use, recipe.feedback.use)
    ]
    if without:
        yield (
            f"{recipe.path}: feedback: required, but {', '.join(grouped(without))} has no moments"
            f" in {moments.path.name}, or no importance; collect them, or set feedback: auto"
        )


def settings_text(feedback: Mapping[str, FeedbackSetting]) -> str:
    """Return the settings with their numbers of tensors, the most frequent first."""
    counts = Counter(feedback.values()).most_common()
    if len(counts) == 1:
        return str(counts[0][0])
    return "; ".join(f"{setting} in {counted(n, 'tensor')}" for setting, n in counts)


def feedback_keys(moments: Moments | None, feedback: Mapping[str, FeedbackSetting]) -> Keys:
    """Return the keys that record the moments, and the tensors that are encoded with them."""
    if moments is None:
        return {}
    groups: dict[FeedbackSetting, list[str]] = {}
    for name, setting in feedback.items():
        groups.setdefault(setting, []).append(name)
    text = json.dumps(
        [{"damping": s.damping, "sweeps": s.sweeps, "tensors": n} for s, n in groups.items()]
    )
    return {
        "dynquant.moments": string(moments.path.name),
        "dynquant.moments_header_sha256": string(moments.header_sha256),
        FEEDBACK_KEY: string(text),
    }


def read_feedback(text: str) -> dict[str, FeedbackSetting]:
    """Read the key of a file: the setting of each tensor that was encoded with error feedback.

    Raises ValueError if it is not what `feedback_keys` writes.
    """
    found: dict[str, FeedbackSetting] = {}
    for group in _GROUPS.validate_json(text):
        for name in group.tensors:
            if name in found:
                raise ValueError(f"{name!r} has two settings")
            found[name] = FeedbackSetting(group.damping, group.sweeps)
    return found
