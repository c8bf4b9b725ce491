"""Errors and warnings for a recipe's author: rules without effect, rows that do not divide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from math import prod

from dynquant.arch.base import ModelTensor
from dynquant.figures import size_text
from dynquant.quants.readers import read_by_all
from dynquant.quants.table import ALL, QuantType
from dynquant.recipe.assignment import BUILT_IN, Assignment
from dynquant.recipe.choice import Choice
from dynquant.recipe.facts import Facts
from dynquant.recipe.loader import is_shipped, shipped_recipes
from dynquant.recipe.protection import Protection
from dynquant.recipe.roles import GROUPS
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.selection import Matching, Selection
from dynquant.recipe.yaml_nodes import nearest


class Findings:
    """Records how a recipe is applied, and reports errors and warnings."""

    def __init__(
        self,
        recipe: Recipe,
        selections: Sequence[Selection],
        facts: Facts,
        tensors: Sequence[ModelTensor],
    ) -> None:
        self._recipe = recipe
        self._selections = selections
        self._facts = facts
        self._tensors = tensors
        self._used: set[Rule] = set()
        self._takers: dict[str, Rule] = {}
        self._overridden: dict[tuple[Rule, str], list[str]] = defaultdict(list)
        self._without: dict[tuple[Rule, int], list[str]] = defaultdict(list)
        self._refused: dict[tuple[Rule | None, QuantType, int], list[str]] = defaultdict(list)

    def decided(self, tensor: ModelTensor, rule: Rule | None, guard: Protection | None) -> None:
        """Record the rule that a tensor takes its type from, and the protection it overrides."""
        if rule is None:
            return
        self._used.add(rule)
        self._takers[tensor.name] = rule
        if guard and rule.action != "drop":
            self._overridden[rule, guard.reason].append(tensor.name)

    def refused(self, tensor: ModelTensor, wanted: QuantType) -> None:
        """Record a tensor whose rows no block of its type or of the fallback divides."""
        rule = self._takers.get(tensor.name)
        self._refused[rule, wanted, tensor.n_per_row].append(tensor.name)

    def without_types(self, tensor: ModelTensor) -> None:
        """Record a tensor that can have none of the types of its `choose`."""
        self._without[self._takers[tensor.name], tensor.n_per_row].append(tensor.name)

    def report(
        self, assignments: Mapping[str, Assignment], absent: Sequence[ModelTensor]
    ) -> tuple[list[str], tuple[str, ...]]:
        """Return the errors and the warnings.

        absent: tensors that the file leaves out in any case; a rule that drops them is not an error
        """
        errors: list[str] = []
        warnings: list[str] = []
        idle: set[str] = set()
        for selection in self._selections:
            rule = selection.rule
            if rule in self._used or rule.optional or selection.unmet:
                continue
            if rule.action == "drop" and any(map(selection.selects, absent)):
                continue
            selected = [t.name for t in self._tensors if selection.selects(t)]
            earlier = list(dict.fromkeys(r.where for n in selected if (r := self._takers.get(n))))
            if not earlier:
                idle.update(rule.match.roles)
                why = self._why_idle(selection, selected, assignments)
                # A user who extends a recipe cannot correct its rules.
                (warnings if rule.inherited else errors).append(
                    f"{rule.place}: rule ({rule}) applies to no tensor: {why}"
                )
            elif not rule.inherited:
                warnings.append(
                    f"{rule.where}: rule ({rule}) applies to no tensor: earlier rules"
                    f" ({', '.join(earlier)}) decide all tensors that it matches"
                )
        if (errors or idle) and (cause := self._wrong_kind(idle, is_error=bool(errors))):
            errors = [cause]
        errors += [*self._refusals(), *self._empty_choices()]
        warnings += self._idle_exclusions(absent)
        return errors, (*warnings, *self._overrides(), *self._replacements(assignments))

    def _wrong_kind(self, idle: Collection[str], *, is_error: bool) -> str:
        """Return why a recipe that its user did not write is for other models, or "".

        idle:     roles of rules that apply to no tensor, those of an extended recipe included
        is_error: whether one of the rules is the recipe's own
        """
        recipe, architecture = self._recipe, self._facts.architecture
        if is_error and recipe.intended and architecture not in recipe.intended:
            return (
                f"{recipe.path}: is for {', '.join(recipe.intended)}, but the model is"
                f" {architecture}; choose another recipe (`dynquant recipes`)"
            )
        if is_shipped(recipe) and not self._facts.n_experts and "experts" in idle:
            dense = recipe.name.replace("-moe", "")
            instead = dense if dense in shipped_recipes() else "another recipe"
            return (
                f"{recipe.path}: is for mixtures of experts, but the model has no experts; take"
                f" {instead} (`dynquant recipes`)"
            )
        return ""

    def _why_idle(
        self, selection: Selection, selected: list[str], assignments: Mapping[str, Assignment]
    ) -> str:
        """Return why a rule applies to no tensor, and how to fix it."""
        remedy = "; correct it, or add `optional: true`"
        if selected:
            reasons = dict.fromkeys(assignments[n].rule.removeprefix(BUILT_IN) for n in selected)
            return (
                f"all tensors that it matches are protected ({', '.join(reasons)}); add"
                " `override: true` to change them"
            )
        if selection.excluded and any(map(selection.match.selects, self._tensors)):
            return f"`not` excludes all tensors that it matches{remedy}"
        return self._why_none(selection.match) + remedy

    def _why_none(self, match: Matching) -> str:
        """Return why no tensor matches selectors."""
        wanted, n_layers = match.selectors, self._facts.n_layers
        if wanted.roles and not any(map(match.has_role, self._tensors)):
            return f"the model has no {' or '.join(wanted.roles)}{self._kin(wanted.roles)}"
        if wanted.layers and not any(map(match.has_layer, self._tensors)):
            return (
                f"the model has layers 0-{n_layers - 1}" if n_layers else "the model has no layers"
            )
        if wanted.names and not any(map(match.has_name, self._tensors)):
            part = next((n for n in wanted.names if any(n in t.name for t in self._tensors)), None)
            whole = f" (write '*{part}*' to match all names that contain it)" if part else ""
            return f"no tensor has such a name{whole}"
        return "each selector matches some tensors, but no tensor matches all of them"

    def _idle_exclusions(self, absent: Sequence[ModelTensor]) -> Iterator[str]:
        """Yield a warning for each `not` that excludes nothing that its rule would match."""
        for selection in self._selections:
            rule = selection.rule
            if rule.optional or not rule.excluded:
                continue
            matched = [t for t in (*self._tensors, *absent) if selection.match.selects(t)]
            for one in selection.excluded:
                if one.unmet or not matched or any(map(one.selects, matched)):
                    continue
                why = (
                    "the rule does not match the tensors that it names"
                    if any(map(one.selects, self._tensors))
                    else self._why_none(one)
                )
                yield (
                    f"{rule.where}: `not` ({one.selectors}) excludes no tensor: {why}; correct it,"
                    " or add `optional: true`"
                )

    def _kin(self, roles: tuple[str, ...]) -> str:
        """Return a hint at a similar role of the model: ffn_down for ffn_down_exps."""
        if len(roles) != 1:
            return ""
        (role,) = roles
        there = sorted({t.parts.role for t in self._tensors} - GROUPS["norms"])
        kin = [r for r in there if r.startswith(f"{role}_") or role.startswith(f"{r}_")]
        return nearest(role, kin)

    def _refusals(self) -> Iterator[str]:
        """Yield an error for each rule and row length that no block divides."""
        readers = self._recipe.readers
        for (rule, wanted, n_per_row), names in self._refused.items():
            place = rule.place if rule else self._recipe.default_place
            if rule and rule.fallback is not None:
                tried = listed = rule.fallback
            else:
                tried = self._recipe.fallback.of(wanted)
                listed = self._recipe.fallback.listed(wanted)
            missing = "and there is no fallback"
            if tried:
                missing = f"nor does the fallback ({', '.join(t.name for t in tried)})"
            elif listed:
                missing = (
                    f"and the types of the fallback have fewer bits"
                    f" ({', '.join(t.name for t in listed)})"
                )
            yield (
                f"{place}: {wanted.name}'s block of {wanted.block_size} does not divide rows of"
                f" {n_per_row} weights, {missing}: {_some(names)}; add a fallback such as"
                f" [{', '.join(_fitting(wanted, n_per_row, readers))}], or choose another type"
            )

    def _empty_choices(self) -> Iterator[str]:
        """Yield an error for each `choose` that leaves tensors no type."""
        for (rule, n_per_row), names in self._without.items():
            fitting = Choice().of(n_per_row, importance=self._facts.importance)
            yield (
                f"{rule.place}: no type of `choose` ({rule.choice}) is for rows of {n_per_row}"
                f" weights{self._for_what()}: {_some(names)}; types that are:"
                f" {', '.join(t.name for t in fitting)}"
            )

    def _for_what(self) -> str:
        found = "" if self._facts.importance else " without an imatrix"
        readers = self._recipe.readers
        return f"{found}, read by {' and '.join(readers)}" if readers else found

    def _overrides(self) -> Iterator[str]:
        """Yield a warning for each rule that overrides protection."""
        for (rule, reason), names in self._overridden.items():
            yield (
                f"{rule.where}: overrides the protection of {_some(names)} ({reason}); runtimes may"
                " reject the file or give worse answers"
            )

    def _replacements(self, assignments: Mapping[str, Assignment]) -> Iterator[str]:
        """Yield one warning for all fallback types that make the file larger."""
        groups: dict[tuple[QuantType, QuantType, int], list[ModelTensor]] = defaultdict(list)
        for tensor in self._tensors:
            given = assignments.get(tensor.name)
            if given and given.instead_of and given.type.bpw > given.instead_of.bpw:
                groups[given.instead_of, given.type, tensor.n_per_row].append(tensor)
        total, parts = 0, list[str]()
        for (wanted, taken, n_per_row), tensors in groups.items():
            bits = taken.bpw - wanted.bpw
            n_bytes = round(sum(prod(t.shape) for t in tensors) * bits / 8)
            total += n_bytes
            parts.append(
                f"{taken.name} for {wanted.name} in rows of {n_per_row} ({bits:+.4g} bits per"
                f" weight, {size_text(n_bytes)} more: {_some([t.name for t in tensors])})"
            )
        if parts:
            yield (
                f"{self._recipe.path}: fallback types make the file {size_text(total)} larger,"
                f" because blocks do not divide the rows: {'; '.join(parts)}; to choose other"
                " types, extend the recipe with rules for these tensors"
            )


def _fitting(wanted: QuantType, n_per_row: int, readers: Sequence[str]) -> list[str]:
    """Return types for a fallback, the smallest first, that all asked readers read."""
    usual = (ALL[name] for name in ("IQ4_NL", "Q5_0", "Q8_0", "F16"))
    fitting = [
        t.name
        for t in usual
        if not n_per_row % t.block_size and t.bpw >= wanted.bpw and read_by_all(t, readers)
    ]
    return list(dict.fromkeys((*fitting[:1], *fitting[-2:])))


def _some(names: Sequence[str]) -> str:
    """Return the first name and the number of the others."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
