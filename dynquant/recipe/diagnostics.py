"""What a recipe's author should hear: idle and shadowed rules, rows that do not divide."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from dynquant.arch.base import ModelTensor
from dynquant.quants.table import QuantType
from dynquant.recipe.assignment import BUILT_IN, Assignment
from dynquant.recipe.facts import Facts
from dynquant.recipe.protection import Protection
from dynquant.recipe.roles import GROUPS
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.selection import Selection
from dynquant.recipe.yaml_nodes import nearest


class Findings:
    """Collects what happens while a recipe is applied, and says what of it is wrong or odd."""

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
        self._refused: dict[tuple[Rule | None, QuantType, int], list[str]] = defaultdict(list)

    def decided(self, tensor: ModelTensor, rule: Rule | None, guard: Protection | None) -> None:
        """Note which rule takes a tensor, and what protection that overrides."""
        if rule is None:
            return
        self._used.add(rule)
        self._takers[tensor.name] = rule
        if guard and rule.action != "drop":
            self._overridden[rule, guard.reason].append(tensor.name)

    def refused(self, tensor: ModelTensor, wanted: QuantType) -> None:
        """Note a row that neither the type of its rule nor the fallback divides."""
        rule = self._takers.get(tensor.name)
        self._refused[rule, wanted, tensor.n_per_row].append(tensor.name)

    def report(
        self, assignments: Mapping[str, Assignment], absent: Sequence[ModelTensor]
    ) -> tuple[list[str], tuple[str, ...]]:
        """Return what the recipe is refused for, and what the user is warned of.

        absent: tensors that the file leaves out in any case, which rules that drop them may name
        """
        errors: list[str] = []
        warnings: list[str] = []
        for selection in self._selections:
            rule = selection.rule
            if rule in self._used or rule.optional or selection.unmet:
                continue
            if rule.action == "drop" and any(map(selection.selects, absent)):
                continue
            selected = [t.name for t in self._tensors if selection.selects(t)]
            earlier = list(dict.fromkeys(r.where for n in selected if (r := self._takers.get(n))))
            if not earlier:
                why = self._why_idle(selection, selected, assignments)
                # Whoever extends a recipe cannot correct it.
                (warnings if rule.inherited else errors).append(
                    f"{rule.place}: rule ({rule}) takes no tensor: {why}"
                )
            elif not rule.inherited:
                warnings.append(
                    f"{rule.where}: rule ({rule}) takes no tensor: all it selects went to earlier"
                    f" rules ({', '.join(earlier)})"
                )
        errors += self._refusals()
        return errors, (*warnings, *self._overrides(), *self._replacements(assignments))

    def _why_idle(
        self, selection: Selection, selected: list[str], assignments: Mapping[str, Assignment]
    ) -> str:
        """Return why a rule selects nothing that it may take, and what to do."""
        rule, n_layers = selection.rule, self._facts.n_layers
        remedy = "; correct it, or say `optional: true`"
        if selected:
            reasons = dict.fromkeys(assignments[n].rule.removeprefix(BUILT_IN) for n in selected)
            return (
                f"all it selects is protected ({', '.join(reasons)}); say `override: true` if you"
                " mean it"
            )
        if rule.roles and not any(map(selection.has_role, self._tensors)):
            return f"the model has no {' or '.join(rule.roles)}{self._kin(rule)}{remedy}"
        if rule.layers and not any(map(selection.has_layer, self._tensors)):
            layers = f"the model's layers are 0-{n_layers - 1}" if n_layers else "it has no layers"
            return layers + remedy
        if rule.names and not any(map(selection.has_name, self._tensors)):
            part = next((n for n in rule.names if any(n in t.name for t in self._tensors)), None)
            whole = f" (names are whole: '*{part}*' takes all that hold this)" if part else ""
            return f"no tensor has such a name{whole}{remedy}"
        return f"each selector fits some tensors, but none fits all of them{remedy}"

    def _kin(self, rule: Rule) -> str:
        """Return a hint at the role that a model has instead: ffn_down for ffn_down_exps."""
        if len(rule.roles) != 1:
            return ""
        (role,) = rule.roles
        there = sorted({t.parts.role for t in self._tensors} - GROUPS["norms"])
        kin = [r for r in there if r.startswith(f"{role}_") or role.startswith(f"{r}_")]
        return nearest(role, kin)

    def _refusals(self) -> Iterator[str]:
        """Say, for each rule and row length, that no type divides it."""
        for (rule, wanted, n_per_row), names in self._refused.items():
            place = rule.place if rule else self._recipe.default_place
            tried = ", ".join(t.name for t in self._recipe.fallback.of(wanted))
            missing = f"nor does the fallback ({tried})" if tried else "and there is no fallback"
            yield (
                f"{place}: {wanted.name}'s block of {wanted.block_size} does not divide rows of"
                f" {n_per_row} weights, {missing}: {_some(names)}; add a fallback such as"
                " [Q8_0, F16], or give another type"
            )

    def _overrides(self) -> Iterator[str]:
        for (rule, reason), names in self._overridden.items():
            yield (
                f"{rule.where}: overrides the protection of {_some(names)} ({reason}); runtimes may"
                " refuse the file or answer worse"
            )

    def _replacements(self, assignments: Mapping[str, Assignment]) -> Iterator[str]:
        """Say where the fallback stands in, and what it costs."""
        groups: dict[tuple[QuantType, QuantType, int], list[ModelTensor]] = defaultdict(list)
        for tensor in self._tensors:
            given = assignments.get(tensor.name)
            if given and given.instead_of:
                groups[given.instead_of, given.type, tensor.n_per_row].append(tensor)
        for (wanted, taken, n_per_row), tensors in groups.items():
            bits = taken.bpw - wanted.bpw
            n_bytes = round(sum(prod(t.shape) for t in tensors) * bits / 8)
            yield (
                f"{self._recipe.path}: fallback {taken.name} instead of {wanted.name} ({bits:+.4g}"
                f" bits per weight, {n_bytes:+,} bytes), whose block of {wanted.block_size} does"
                f" not divide rows of {n_per_row} weights: {_some([t.name for t in tensors])}"
            )


def _some(names: Sequence[str]) -> str:
    """Return one name, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
