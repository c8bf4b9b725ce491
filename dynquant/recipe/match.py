"""Which rule of a recipe decides each tensor of a model."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dynquant.arch.base import ModelTensor, TensorName
from dynquant.errors import RecipeError
from dynquant.quants.table import ALL, QuantType
from dynquant.recipe.language import Recipe, Rule, name_pattern
from dynquant.recipe.nodes import nearest

BUILT_IN = "built-in: "


@dataclass(frozen=True)
class Assignment:
    """The type of one tensor, and what decided it.

    rule:       `recipes/small.yaml:14`, `recipes/small.yaml:9 default`, or `built-in: <why>`
    instead_of: the type that the rule gave, where the fallback had to replace it
    """

    type: QuantType
    rule: str
    instead_of: QuantType | None = None


@dataclass(frozen=True)
class Assigned:
    """The assignment of every tensor by name, and what the user should hear about them."""

    assignments: dict[str, Assignment]
    warnings: tuple[str, ...]


def assign(recipe: Recipe, tensors: Sequence[ModelTensor]) -> Assigned:
    """Give every tensor of a model its type: built-in protection, then rules, then the default.

    Raises RecipeError, all at once, for rules that take no tensor without being optional, and for
    rows that neither a rule's type nor the fallback divides.
    """
    n_layers = count_layers(tensors)
    deciding: dict[str, Rule | None] = {}
    assignments: dict[str, Assignment] = {}
    refused: list[ModelTensor] = []
    for tensor in tensors:
        if reason := protection(tensor):
            assignments[tensor.name] = Assignment(ALL["F32"], BUILT_IN + reason)
            continue
        rule = next((r for r in recipe.rules if selects(r, tensor.parts, n_layers)), None)
        deciding[tensor.name] = rule
        wanted = rule.type if rule else recipe.default
        where = rule.where if rule else _where_default(recipe)
        tried = (wanted, *(t for t in recipe.fallback if t.bpw >= wanted.bpw))
        fits = [t for t in tried if not tensor.n_per_row % t.block_size]
        if not fits:
            refused.append(tensor)
        taken = fits[0] if fits else wanted
        assignments[tensor.name] = Assignment(taken, where, None if taken is wanted else wanted)

    used = set(deciding.values())
    idle = [rule for rule in recipe.rules if rule not in used]
    why = {rule: _why_idle(rule, tensors, n_layers, assignments) for rule in idle}
    RecipeError.raise_any(
        [
            f"{rule.place}: rule ({rule}) takes no tensor: {why[rule]}; correct it, or say"
            " `optional: true`"
            for rule in idle
            if not rule.optional
        ]
        + list(_refusals(recipe, refused, deciding))
    )
    warnings = [
        f"{rule.where}: optional rule ({rule}) takes no tensor: {why[rule]}" for rule in idle
    ]
    return Assigned(assignments, (*warnings, *_replacements(recipe, tensors, assignments)))


def count_layers(tensors: Sequence[ModelTensor]) -> int:
    """Return the number of layers of a model: the highest one plus one."""
    return 1 + max((-1 if t.parts.layer is None else t.parts.layer for t in tensors), default=-1)


def protection(tensor: ModelTensor) -> str | None:
    """Return why a tensor stays F32 whatever the recipe says, or None where the recipe decides.

    These are small, are used as numbers and not in matrix products, or decide what the rest
    computes; llama.cpp reads them as F32. The same tensors that llama-quantize leaves alone.
    """
    if len(tensor.shape) < 2:
        return "one dimension"
    if not tensor.name.endswith(".weight"):
        return "not a weight"
    if tensor.parts.role.endswith("_norm"):
        return "norm"
    if tensor.parts.role == "ffn_gate_inp":
        return "router"
    if tensor.parts.role in ("position_embd", "token_types"):
        return "added to the embedding"
    return None


def selects(rule: Rule, name: TensorName, n_layers: int) -> bool:
    """Whether all selectors of a rule hold for a tensor of a model of n_layers."""
    return (
        (not rule.roles or name.role in rule.roles)
        and (not rule.layers or _in_layers(rule, name, n_layers))
        and (not rule.names or _fits_name(rule, name))
    )


def _in_layers(rule: Rule, name: TensorName, n_layers: int) -> bool:
    layer = name.layer
    return layer is not None and any(r.covers(layer, n_layers) for r in rule.layers)


def _fits_name(rule: Rule, name: TensorName) -> bool:
    return any(name_pattern(pattern).search(name.name) for pattern in rule.names)


def _where_default(recipe: Recipe) -> str:
    return f"{recipe.path}:{recipe.default_place.line} default"


def _why_idle(
    rule: Rule,
    tensors: Sequence[ModelTensor],
    n_layers: int,
    assignments: Mapping[str, Assignment],
) -> str:
    """Return why a rule takes no tensor: others took what it selects, or it selects nothing."""
    takers = {assignments[t.name].rule: None for t in tensors if selects(rule, t.parts, n_layers)}
    earlier = [taker for taker in takers if not taker.startswith(BUILT_IN)]
    if earlier:
        return f"all it selects went to earlier rules ({', '.join(earlier)})"
    if takers:
        reasons = ", ".join(taker.removeprefix(BUILT_IN) for taker in takers)
        return f"all it selects is F32 in every recipe ({reasons})"
    names = [t.parts for t in tensors]
    roles = {name.role for name in names}
    if rule.roles and roles.isdisjoint(rule.roles):
        hint = nearest(rule.roles[0], sorted(roles)) if len(rule.roles) == 1 else ""
        return f"the model has no {' or '.join(rule.roles)}{hint}"
    if rule.layers and not any(_in_layers(rule, name, n_layers) for name in names):
        return f"the model's layers are 0-{n_layers - 1}" if n_layers else "the model has no layers"
    if rule.names and not any(_fits_name(rule, name) for name in names):
        return "no tensor has such a name"
    return "each selector fits some tensors, but none fits all of them"


def _refusals(
    recipe: Recipe, refused: Sequence[ModelTensor], deciding: Mapping[str, Rule | None]
) -> Iterator[str]:
    """Return a message for each rule and row length that no type divides."""
    groups: dict[tuple[Rule | None, int], list[str]] = defaultdict(list)
    for tensor in refused:
        groups[deciding[tensor.name], tensor.n_per_row].append(tensor.name)
    for (rule, n_per_row), names in groups.items():
        place = rule.place if rule else recipe.default_place
        wanted = rule.type if rule else recipe.default
        tried = ", ".join(t.name for t in recipe.fallback if t.bpw >= wanted.bpw)
        missing = f"nor does the fallback ({tried})" if tried else "and the recipe has no fallback"
        yield (
            f"{place}: {wanted.name}'s block of {wanted.block_size} does not divide rows of"
            f" {n_per_row} weights, {missing}: {_some(names)}; add a fallback such as"
            " [Q8_0, F16], or give another type"
        )


def _replacements(
    recipe: Recipe, tensors: Sequence[ModelTensor], assignments: Mapping[str, Assignment]
) -> Iterator[str]:
    """Return a message for each use that was made of the fallback, with its cost."""
    groups: dict[tuple[QuantType, QuantType, int], list[str]] = defaultdict(list)
    for tensor in tensors:
        given = assignments[tensor.name]
        if given.instead_of:
            groups[given.instead_of, given.type, tensor.n_per_row].append(tensor.name)
    for (wanted, taken, n_per_row), names in groups.items():
        yield (
            f"{recipe.path}: fallback {taken.name} instead of {wanted.name}"
            f" ({taken.bpw - wanted.bpw:+.4g} bits per weight), whose block of"
            f" {wanted.block_size} does not divide rows of {n_per_row} weights: {_some(names)}"
        )


def _some(names: Sequence[str]) -> str:
    """Return one name, and how many more there are."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
