"""A rule's selectors, evaluated for one model."""

from __future__ import annotations

from math import prod

from dynquant.arch.base import ModelTensor
from dynquant.recipe.facts import Facts
from dynquant.recipe.layers import LayerPattern
from dynquant.recipe.roles import MTP, members
from dynquant.recipe.rules import Comparison, Rule, Selectors, When, name_pattern


class Selection:
    """A rule for one model; `selects` and `miss` check whether a tensor matches.

    match:    the selectors of the rule; excluded: those of its `not`
    """

    def __init__(self, rule: Rule, facts: Facts) -> None:
        self.rule = rule
        self.match = Matching(rule.match, facts)
        self.excluded = tuple(Matching(selectors, facts) for selectors in rule.excluded)

    @property
    def unmet(self) -> str:
        """The first fact that does not meet a condition of the rule, or ""."""
        return self.match.unmet

    def miss(self, tensor: ModelTensor) -> str:
        """Return the key of the first selector that a tensor does not match, or ""."""
        return self.match.miss(tensor) or ("not" if self.is_excluded(tensor) else "")

    def selects(self, tensor: ModelTensor) -> bool:
        """Whether a tensor matches all selectors and is not excluded."""
        return not (self.match.miss(tensor) or (self.excluded and self.is_excluded(tensor)))

    def is_excluded(self, tensor: ModelTensor) -> bool:
        """Whether a tensor matches selectors of the rule's `not`."""
        return any(one.selects(tensor) for one in self.excluded)


class Matching:
    """Selectors for one model."""

    def __init__(self, selectors: Selectors, facts: Facts) -> None:
        self.selectors = selectors
        self.unmet = unmet(selectors.when, facts) if selectors.when else ""
        self._facts = facts
        self._roles = members(selectors.roles)
        self._layers: dict[int, bool] = {}
        self._counted = {
            item: facts.layers_with(item.of) if item.of else tuple(range(facts.n_layers))
            for item in selectors.layers
            if isinstance(item, LayerPattern)
        }

    def miss(self, tensor: ModelTensor) -> str:
        """Return the key of the first selector that a tensor does not match, or ""."""
        wanted = self.selectors
        if self.unmet:
            return "when"
        if wanted.roles and not self.has_role(tensor):
            return "role"
        if wanted.layers and not self.has_layer(tensor):
            return "layers"
        if wanted.names and not self.has_name(tensor):
            return "name"
        if wanted.shape and self.shape_miss(tensor):
            return "shape"
        return ""

    def selects(self, tensor: ModelTensor) -> bool:
        """Whether a tensor matches all selectors."""
        return not self.miss(tensor)

    def has_role(self, tensor: ModelTensor) -> bool:
        """Whether a tensor has one of the selectors' roles."""
        parts = tensor.parts
        return parts.role in self._roles or (
            MTP in self.selectors.roles and parts.layer in self._facts.prediction
        )

    def has_layer(self, tensor: ModelTensor) -> bool:
        """Whether a tensor is in one of the selectors' layers."""
        layer = tensor.parts.layer
        if layer is None:
            return False
        if layer not in self._layers:
            self._layers[layer] = any(
                item.covers(layer, self._counted[item])
                if isinstance(item, LayerPattern)
                else item.covers(layer, self._facts.n_layers)
                for item in self.selectors.layers
            )
        return self._layers[layer]

    def has_name(self, tensor: ModelTensor) -> bool:
        """Whether a tensor's name matches one of the selectors' patterns."""
        return any(name_pattern(pattern).search(tensor.name) for pattern in self.selectors.names)

    def shape_miss(self, tensor: ModelTensor) -> str:
        """Return the first property of a tensor's shape that the selectors exclude, or ""."""
        asked = self.selectors.shape
        if asked is None:
            return ""
        if asked.row_multiple_of and tensor.n_per_row % asked.row_multiple_of:
            return f"rows of {tensor.n_per_row} weights"
        if asked.min_weights and prod(tensor.shape) < asked.min_weights:
            return f"{prod(tensor.shape):,} weights"
        if asked.dimensions and len(tensor.shape) != asked.dimensions:
            return f"{len(tensor.shape)} dimensions"
        return ""


def unmet(when: When, facts: Facts) -> str:
    """Return the first fact that does not meet a condition, such as `experts is 0`, or ""."""
    numbers = {
        "experts": (when.experts, facts.n_experts),
        "gqa": (when.gqa, facts.gqa),
        "layers": (when.layers, facts.n_layers),
    }
    for key, (asked, value) in numbers.items():
        if asked and not _any_holds(asked, value):
            return f"{key} is {value}"
    truths = {
        "tied_embeddings": (when.tied_embeddings, facts.tied_embeddings),
        "importance": (when.importance, facts.importance),
    }
    for key, (asked, value) in truths.items():
        if asked is not None and asked != value:
            return f"{key} is {str(value).lower()}"
    if when.architecture and facts.architecture not in when.architecture:
        return f"architecture is {facts.architecture}"
    return ""


def _any_holds(asked: tuple[Comparison, ...], value: int) -> bool:
    return any(one.holds(value) for one in asked)
