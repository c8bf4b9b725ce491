"""What errors cost a model: its groups of tensors are changed in turn, around a solution.

The file of a solved recipe is made once. For each group, tensors of one role in one part of the
depth, another file has types of fewer bits for them and everything else as it is; llama.cpp says
how much more it loses on the same tokens. The quotient of the loss and of the relative errors that
were added is the group's factor of damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.arch.load import load_model
from dynquant.arrays import F64
from dynquant.budget.damage import label_of, layers_in
from dynquant.budget.errors import TensorErrors
from dynquant.budget.sensitivity import GroupPart, MeasuredPart, Sensitivity
from dynquant.budget.solve import Problem, Solved, solve_for
from dynquant.conversion.write import convert_plan
from dynquant.evaluate.base import Base, open_base
from dynquant.evaluate.complete import complete
from dynquant.evaluate.given import check_given
from dynquant.evaluate.judged import judge
from dynquant.evaluate.settings import Progress, Settings
from dynquant.figures import counted, size_text
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants.table import QuantType
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.target import Target

WORSE = 2.5
"""A group's types are changed until its errors have grown by this factor, or as near as can be."""


@dataclass(frozen=True)
class Change:
    """A group of tensors with other types.

    label: role and part of the depth
    error: relative errors that the change adds
    """

    label: str
    types: Mapping[str, QuantType]
    error: float


def changes_of(problem: Problem, solved: Solved) -> list[Change]:
    """Return a change for each group of a solution's open tensors that can have other types."""
    n_layers = layers_in(t.name for t in problem.plan.tensors)
    groups: dict[str, dict[str, tuple[QuantType, tuple[QuantType, ...]]]] = {}
    for group, chosen in zip(problem.groups, solved.chosen, strict=True):
        for name in group.names:
            groups.setdefault(label_of(name, n_layers), {})[name] = chosen, group.types
    found = (_change(label, tensors, problem.errors) for label, tensors in groups.items())
    return [change for change in found if change is not None]


def _change(
    label: str,
    tensors: Mapping[str, tuple[QuantType, tuple[QuantType, ...]]],
    errors: Mapping[str, TensorErrors],
) -> Change | None:
    types: dict[str, QuantType] = {}
    added = 0.0
    for name, (chosen, allowed) in tensors.items():
        its = errors[name].relative
        worse = [t for t in allowed if its[t.name] > its[chosen.name]]
        better = [t for t in allowed if its[t.name] < its[chosen.name]]
        wanted = WORSE * its[chosen.name]
        near = min(worse or better, key=lambda t: abs(its[t.name] - wanted), default=None)
        if near is not None:
            types[name] = near
            added += its[near.name] - its[chosen.name]
    return Change(label, types, added) if added else None


class Measuring:
    """The solution's file, the reference, and the groups that are measured so far."""

    def __init__(
        self,
        problem: Problem,
        solved: Solved,
        folder: Path,
        settings: Settings,
        reference: str,
        progress: Progress,
        say: Callable[[str], None],
    ) -> None:
        """Make the solution's file and compare it with the reference.

        folder:    for files as large as the solution's, two at a time
        reference: a GGUF, a checkpoint or a stored reference, as for `evaluate`

        Raises EvalError if llama.cpp refuses a file, and what conversions raise.
        """
        self._problem, self._solved = problem, solved
        self._folder, self._settings, self._progress = folder, settings, progress
        self._file = folder / "solution.gguf"
        self._written(solved.plan, self._file)
        given = check_given([self._file], reference, settings.texts)
        base = open_base(given, settings, progress, say)
        self._base: Base = complete(base, settings, progress, say)
        self._kl = self._loss(self._file, "solution")

    def start(self) -> MeasuredPart:
        """Return the document without groups."""
        header = self._base.header
        return MeasuredPart(
            reference=header.model.name,
            texts={text.name: text.sha256 for text in header.texts},
            tokens=self._kl.size,
            recipe=self._solved.recipe.text,
            kld=float(self._kl.mean()),
            groups=[],
        )

    def measure(self, change: Change) -> GroupPart:
        """Return what a change costs."""
        file = self._folder / "changed.gguf"
        self._written(self._changed(change.types), file)
        more = (self._loss(file, change.label) - self._kl).mean(axis=1)
        n = len(more)
        return GroupPart(
            label=change.label,
            tensors=list(change.types),
            error=change.error,
            kld=float(more.mean()),
            standard_error=float(more.std(ddof=1) / n**0.5) if n > 1 else abs(float(more.mean())),
        )

    def _loss(self, file: Path, name: str) -> F64:
        """Return the KL divergence of a file, [n_windows, n_scored]."""
        _, measures = judge(file, name, self._base, self._settings, self._progress)
        return np.stack([m.kl for m in measures])

    def _written(self, plan: Plan, file: Path) -> None:
        n = self._settings.n_threads
        convert_plan(plan, file, threads=n, force=True, verify_sample=0, manifest=None)

    def _changed(self, types: Mapping[str, QuantType]) -> Plan:
        """Return the plan of a file with other types for some tensors, and copies of the rest."""
        given = self._problem.given
        solution = load_model(self._file)
        originals = {t.name: t for t in given.tensors}
        model = replace(solution, tensors=tuple(_joined(solution.tensors, originals, types)))
        named: dict[str, list[str]] = {}
        for name, qtype in types.items():
            named.setdefault(qtype.name, []).append(name)
        rules = "".join(
            f"- {{name: [{', '.join(names)}], type: {kind}}}\n" for kind, names in named.items()
        )
        text = f"default: F32\nrules:\n{rules}- {{name: '*', override: true, keep: true}}\n"
        plan = self._problem.plan
        return make_plan(
            model,
            parse_recipe(text, "changed", "changed"),
            imatrix=plan.imatrix,
            moments=plan.moments,
            effort=plan.effort,
        )


def _joined(
    tensors: Iterable[ModelTensor],
    originals: Mapping[str, ModelTensor],
    names: Iterable[str],
) -> Iterator[ModelTensor]:
    wanted = set(names)
    for tensor in tensors:
        yield originals[tensor.name] if tensor.name in wanted else tensor


def measure_factors(
    problem: Problem,
    target: Target,
    found: Sensitivity,
    settings: Settings,
    reference: str,
    folder: Path,
    *,
    progress: Progress,
    say: Callable[[str], None],
    save: Callable[[Sensitivity], None],
) -> Sensitivity:
    """Measure what groups cost around the solution for a size; return the completed document.

    problem:   with the factors of trained models, so that a resumed run has the same solution
    found:     the errors; its groups of this solution and these texts are not measured again
    folder:    for files as large as the solution's, two at a time
    reference: as for `Measuring`
    save:      called with the document after each group

    Raises what solving, conversions and evaluations raise.
    """
    solved = solve_for(problem, target)
    changes = changes_of(problem, solved)
    say(
        f"{counted(len(changes), 'group')} of tensors: each takes a file of"
        f" {size_text(solved.file_bytes)} and {settings.tokens:,} tokens through llama.cpp"
    )
    measuring = Measuring(problem, solved, folder, settings, reference, progress, say)
    measured = measuring.start()
    if found.measured and found.measured.is_of(measured):
        measured = found.measured
        say(f"{counted(len(measured.groups), 'group')} measured already")
    known = {group.label for group in measured.groups}
    for change in changes:
        if change.label in known:
            continue
        groups = [*measured.groups, measuring.measure(change)]
        measured = measured.model_copy(update={"groups": groups})
        found = found.model_copy(update={"measured": measured})
        save(found)
    return found
