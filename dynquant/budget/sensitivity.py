"""A file of sensitivities: what types do to tensors, and what their errors cost the model.

It holds what `dynquant sensitivity` measured, so that solving for another size takes a moment. It
is refused for other weights, another importance, other moments, or other encoders.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dynquant.budget.damage import MeasuredFactor
from dynquant.budget.errors import TensorErrors, rows_hash
from dynquant.budget.groups import Group
from dynquant.distribution import our_version
from dynquant.errors import PlanError
from dynquant.figures import counted
from dynquant.json_documents import Count, Figure, Part, Sha256, read_document, write_document
from dynquant.name_lists import grouped
from dynquant.plan.feedback import settings_text
from dynquant.plan.plan import Plan
from dynquant.quants.encoder import ENCODER_REVISION


class TensorPart(Part):
    """A tensor."""

    shape: list[Count]
    """Its dimensions, slowest first."""
    rows: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    """XXH3-128 of the stored rows that were sampled."""
    errors: dict[str, Figure]
    """Relative error by type."""


class GroupPart(Part):
    """Tensors that were changed together."""

    label: str
    """Their role, and part of the depth."""
    tensors: list[str]
    """Their names."""
    error: float
    """Sum of the relative errors that it added; negative if types of more bits were taken."""
    kld: Annotated[float, Field(allow_inf_nan=False)]
    """Mean KL divergence that it added."""
    standard_error: Figure
    """Of `kld`, over windows."""


class MeasuredPart(Part):
    """What groups cost, measured around a solution."""

    reference: str
    """Name of the model that files were compared with."""
    texts: dict[str, Sha256]
    """Names and hashes of the texts."""
    tokens: Count
    """Tokens that were scored."""
    recipe: str
    """The recipe that groups were changed from."""
    kld: Figure
    """Mean KL divergence of its file."""
    groups: list[GroupPart]
    """What was measured so far."""

    @property
    def text(self) -> str:
        """What was measured, for a message."""
        found = re.search(r"^name: *(.+)$", self.recipe, re.MULTILINE)
        around = f" around {found[1]}" if found else ""
        return f"factors of {counted(len(self.groups), 'group')}, measured{around}"

    def is_of(self, other: MeasuredPart) -> bool:
        """Whether its groups were measured around the same solution, on the same tokens."""
        return self.model_copy(update={"groups": other.groups}) == other


class InputsPart(Part):
    """What the errors depend on besides the weights."""

    architecture: str
    """general.architecture."""
    encoder_revision: Count
    """Revision of the encoders."""
    effort: str
    """How much they searched."""
    imatrix: Sha256 | None
    """Hash of the imatrix."""
    moments: str | None
    """Hash of the header of the second moments."""
    feedback: str
    """Settings of error feedback."""


class Sensitivity(Part):
    """What `dynquant sensitivity` measured of a model."""

    sensitivity: Literal[1]
    """Version of this form."""
    dynquant: str
    """Version of dynquant."""
    inputs: InputsPart
    """What the errors depend on besides the weights."""
    weights: Count
    """Weights of a tensor that were encoded with each type, about."""
    tensors: dict[str, TensorPart]
    """The tensors whose types were open."""
    measured: MeasuredPart | None = None
    """What errors cost; None if it was not measured."""

    def errors(self) -> dict[str, TensorErrors]:
        """Return the errors of tensors, by name."""
        return {name: TensorErrors(t.errors, t.rows) for name, t in self.tensors.items()}

    def factors(self) -> dict[str, MeasuredFactor]:
        """Return the factors of damage that were measured, by tensor."""
        found: dict[str, MeasuredFactor] = {}
        for group in self.measured.groups if self.measured else ():
            its = MeasuredFactor(group.kld / group.error, group.standard_error / abs(group.error))
            found |= dict.fromkeys(group.tensors, its)
        return found


def sensitivity_of(plan: Plan, errors: Mapping[str, TensorErrors], weights: int) -> Sensitivity:
    """Return the document of measured errors."""
    shapes = {t.name: list(t.shape) for t in plan.tensors}
    return Sensitivity(
        sensitivity=1,
        dynquant=our_version(),
        inputs=_inputs(plan),
        weights=weights,
        tensors={
            name: TensorPart(shape=shapes[name], rows=its.rows, errors=dict(its.relative))
            for name, its in errors.items()
        },
    )


def _inputs(plan: Plan) -> InputsPart:
    return InputsPart(
        architecture=plan.architecture,
        encoder_revision=ENCODER_REVISION,
        effort=plan.effort,
        imatrix=plan.imatrix.sha256 if plan.imatrix else None,
        moments=plan.moments.header_sha256 if plan.moments else None,
        feedback=settings_text(plan.feedback),
    )


_WORDS = {
    "architecture": "architecture",
    "encoder_revision": "revision of the encoders",
    "effort": "effort",
    "imatrix": "imatrix",
    "moments": "second moments",
    "feedback": "error feedback",
}


def read_sensitivity(path: Path) -> Sensitivity:
    """Read a file of `dynquant sensitivity`; raise PlanError with all faults of it."""
    return read_document(path, Sensitivity, "sensitivity", 1, PlanError)


def write_sensitivity(found: Sensitivity, path: Path) -> None:
    """Write a file, completely or not at all; raise PlanError if it cannot be written."""
    write_document(found, path, PlanError)


def check_fit(found: Sensitivity, plan: Plan, groups: Iterable[Group], where: str) -> None:
    """Raise PlanError with everything of a file that is not of a plan's model and inputs."""
    PlanError.raise_any(f"{where}: {problem}" for problem in _misfits(found, plan, groups))


def _misfits(found: Sensitivity, plan: Plan, groups: Iterable[Group]) -> Iterator[str]:
    before, now = found.inputs.model_dump(), _inputs(plan).model_dump()
    differing = [
        f"{_WORDS[key]} ({_shown(before[key])}, now {_shown(value)})"
        for key, value in now.items()
        if before[key] != value
    ]
    if differing:
        yield f"was measured with another {', another '.join(differing)}; measure again"
        return
    others: list[str] = []
    for group in groups:
        for t in group.tensors:
            known = found.tensors.get(t.name)
            missing = [c.name for c in group.types if not known or c.name not in known.errors]
            if known is None or known.shape != list(t.shape):
                others.append(t.name)
            elif missing:
                yield f"{t.name}: has no error of {', '.join(missing)}; measure with this recipe"
            elif known.rows != rows_hash(plan, t, found.weights):
                others.append(t.name)
    if others:
        yield f"was measured with other weights: {', '.join(grouped(others))}; measure again"


def _shown(value: object) -> str:
    text = "none" if value in (None, "") else str(value)
    return text if len(text) < 24 else f"{text[:12]}…"
