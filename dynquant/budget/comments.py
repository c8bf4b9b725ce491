"""The comments of a solved recipe: what was asked for, what types cost and buy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import fsum

from dynquant.arch.base import TensorName
from dynquant.budget.groups import Group
from dynquant.budget.knapsack import Solution
from dynquant.distribution import our_version
from dynquant.figures import size_text
from dynquant.quants.table import QuantType
from dynquant.recipe.rules import Recipe
from dynquant.recipe.target import Target


def target_text(target: Target) -> str:
    """Return what was asked for: `131 GB`, `2.1 bpw` or `fit 24 GB`."""
    if target.size is not None:
        return size_text(target.size)
    if target.bpw is not None:
        return f"{target.bpw:g} bpw"
    assert target.fit is not None, "a target is one of three"
    return f"fit {size_text(target.fit)}"


def short_text(target: Target) -> str:
    """Return what was asked for as a part of a name: `131GB`, `2.1bpw`."""
    return target_text(target).split(" (")[0].replace(" ", "")


class Notes:
    """The comments of a solved recipe: what its types cost and buy."""

    def __init__(
        self,
        architecture: str,
        recipe: Recipe,
        groups: Sequence[Group],
        damage: Sequence[Mapping[str, float]],
        types: Mapping[str, QuantType],
    ) -> None:
        self._bytes: dict[str, int] = {}
        self._damage: dict[str, float] = {}
        for group, its in zip(groups, damage, strict=True):
            chosen = types[group.names[0]]
            for t in group.tensors:
                self._bytes[t.name] = Group((t,), ()).n_bytes(chosen)
                self._damage[t.name] = its[chosen.name] / len(group.tensors)
        self._total = fsum(self._damage.values())
        self._shared = list(_sharing(groups))
        self._recipe = recipe
        self._architecture = architecture

    def head(self, target: Target, solution: Solution) -> list[str]:
        """Return the comment at the beginning."""
        proof = (
            "no choice is expected to lose less"
            if solution.is_best
            else (
                "no choice is expected to lose more than"
                f" {_percent(1 - solution.bound / solution.damage)} less"
            )
        )
        return [
            f"Types of a {self._architecture} model for {target_text(target)}, by dynquant"
            f" {our_version()} from the recipe {self._recipe.name}.",
            f"Expected loss: {self._total:.3g} nats of KL divergence, about; {proof}.",
            f"One more megabyte is expected to take {solution.price * 1e6:.2g} nats off.",
            *self._shared,
            "Comments: the bytes of a rule's tensors, and their part of the expected loss.",
        ]

    def of(self, names: Sequence[str]) -> str:
        """Return the comment of a rule."""
        n_bytes = sum(self._bytes[n] for n in names)
        damage = fsum(self._damage[n] for n in names)
        share = damage / self._total if self._total else 0.0
        return f"{size_text(n_bytes)}, {_percent(share)} of the loss"


def _sharing(groups: Sequence[Group]) -> Iterator[str]:
    """Yield a line with the roles that share a type."""
    sets = (
        " and ".join(dict.fromkeys(TensorName.parse(n).role for n in group.names))
        for group in groups
        if len(group.names) > 1
    )
    if found := list(dict.fromkeys(sets)):
        yield f"The same type in each layer: {'; '.join(found)} (`share` in `target`)."


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %" if part < 0.0995 else f"{100 * part:.0f} %"
