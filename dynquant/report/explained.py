"""Tables and JSON of why tensors have their types (`dynquant recipe explain`)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.figures import size_text
from dynquant.name_lists import grouped
from dynquant.plan.resolve import Resolved
from dynquant.recipe.assignment import Assignment
from dynquant.recipe.explain import Step, explain
from dynquant.recipe.rules import Recipe, name_pattern
from dynquant.recipe.yaml_nodes import nearest
from dynquant.report.tables import plain_table


@dataclass(frozen=True)
class Explanation:
    """A tensor, its assignment (None if it is dropped), and the rules that were tried."""

    tensor: ModelTensor
    given: Assignment | None
    steps: tuple[Step, ...]


def explanations(
    recipe: Recipe, resolved: Resolved, patterns: Sequence[str]
) -> tuple[Explanation, ...]:
    """Explain the tensors that match names, globs or /regular expressions/.

    Names may be given without `.weight`.
    Raises RecipeError with each pattern that matches nothing, and the most similar name.
    """
    tensors = {t.name: t for t in resolved.model.tensors}
    picked: dict[str, None] = {}
    problems: list[str] = []
    for pattern in patterns:
        search = name_pattern(pattern).search
        weight = name_pattern(f"{pattern}.weight").search if pattern[:1] != "/" else search
        found = [n for n in tensors if search(n) or weight(n)]
        if not found:
            hint = nearest(pattern, tensors)
            problems.append(f"the model has no tensor {pattern!r}{hint}")
        picked |= dict.fromkeys(found)
    RecipeError.raise_any(problems)
    assignments = resolved.assigned.assignments
    return tuple(
        Explanation(
            tensors[name], assignments.get(name), explain(recipe, tensors[name], resolved.facts)
        )
        for name in picked
    )


def explained_tables(explained: Sequence[Explanation]) -> list[RenderableType]:
    """Return a table for each group of tensors with the same steps."""
    together: dict[tuple[Assignment | None, tuple[Step, ...]], list[ModelTensor]] = {}
    for e in explained:
        together.setdefault((e.given, e.steps), []).append(e.tensor)
    found: list[RenderableType] = []
    for (given, steps), tensors in together.items():
        table = plain_table("", "rule", "selects", "gives", "")
        for step in steps:
            mark = {"takes": "=>", "unreached": "", "misses": "", "protected": ""}[step.verdict]
            why = step.why
            if step.verdict == "unreached":
                why = "an earlier rule decides"
            table.add_row(mark, step.where, Text(step.says), _gives(step), Text(why))
        found += [Text("\n".join(_head(tensors, given))), table, Text()]
    return found[:-1]


def _gives(step: Step) -> str:
    feedback = f", feedback {step.feedback}" if step.feedback else ""
    if step.fallback is None:
        return step.action + feedback
    return f"{step.action}, fallback {' '.join(step.fallback) or 'error'}{feedback}"


def _head(tensors: Sequence[ModelTensor], given: Assignment | None) -> Iterator[str]:
    yield ", ".join(grouped(t.name for t in tensors))
    if given is None:
        return
    if given.choice:
        yield f"open: {', '.join(t.name for t in given.choice)}; the size of the file decides"
        if given.note:
            yield given.note
        return
    n_bytes = sum(t.n_rows * given.type.row_size(t.n_per_row) for t in tensors)
    line = f"{given.type.name}, {given.type.bpw:g} bits per weight, {size_text(n_bytes)}"
    if given.instead_of:
        line += (
            f"; the fallback for {given.instead_of.name}, whose blocks of"
            f" {given.instead_of.block_size} do not divide rows of {tensors[0].n_per_row} weights"
        )
    yield line
    if given.note:
        yield given.note


def explained_json(explained: Sequence[Explanation]) -> list[dict[str, Any]]:
    """Return explanations as `dynquant recipe explain --json` prints them."""
    return [
        {
            "name": e.tensor.name,
            "shape": list(e.tensor.shape),
            "type": e.given.type.name if e.given and not e.given.choice else None,
            "open": [t.name for t in e.given.choice] if e.given else [],
            "instead_of": e.given.instead_of.name if e.given and e.given.instead_of else None,
            "rule": e.given.rule if e.given else None,
            "steps": [
                {
                    "where": s.where,
                    "selects": s.says,
                    "gives": s.action,
                    "fallback": None if s.fallback is None else list(s.fallback),
                    "feedback": s.feedback or None,
                    "verdict": s.verdict,
                    "why": s.why,
                }
                for s in e.steps
            ],
        }
        for e in explained
    ]
