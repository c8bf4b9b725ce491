"""A recipe's `readers:`: the programs that have to read every type of the file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from dynquant.arch.base import ModelTensor
from dynquant.name_lists import grouped
from dynquant.quants.readers import READERS, fallback_read, read_by_all, similar_read
from dynquant.quants.table import QuantType
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.yaml_nodes import Place


def faults_of_types(
    readers: Sequence[str], given: Sequence[tuple[Place, QuantType]]
) -> Iterator[tuple[Place, str]]:
    """Yield a fault for each type of a recipe that one of its readers reads for no architecture."""
    for place, wanted in given:
        without = [name for name in readers if not READERS[name].ever_reads(wanted.name)]
        if without:
            yield place, _unread(without, wanted, f"use {similar_read(wanted, readers).name}")


class AskedReaders:
    """Replaces fallback types that the recipe's readers do not read, and reports other types."""

    def __init__(self, recipe: Recipe, architecture: str) -> None:
        self._recipe = recipe
        self._architecture = architecture
        self._found: dict[tuple[Place | None, QuantType], list[str]] = defaultdict(list)

    def fallback(
        self, wanted: QuantType, fitting: Sequence[QuantType], n_per_row: int
    ) -> QuantType:
        """Return the type for rows of n_per_row, if all readers read it.

        If they do not read the first that fits, it is the smaller of two: the next one of the
        recipe that they read, and the nearest type that they read.
        """
        if fitting[0] == wanted or self._read(fitting[0]):
            return fitting[0]
        readers, architecture = self._recipe.readers, self._architecture
        nearest = fallback_read(wanted, n_per_row, readers, architecture)
        found = [*(t for t in fitting if self._read(t)), *([nearest] if nearest else [])]
        return min(found, key=lambda t: t.bpw, default=fitting[0])

    def readable(self, types: Sequence[QuantType]) -> tuple[QuantType, ...]:
        """Return those of some types that all readers read."""
        return tuple(t for t in types if self._read(t))

    def given(self, tensor: ModelTensor, rule: Rule | None, wanted: QuantType) -> None:
        """Record the type that a rule or the default gives a tensor, if it is not read."""
        if not self._read(wanted):
            place = rule.place if rule else self._recipe.default_place
            self._found[place, wanted].append(tensor.name)

    def kept(self, tensor: ModelTensor, type_: QuantType) -> None:
        """Record the type that a protected tensor keeps, if it is not read."""
        if not self._read(type_):
            self._found[None, type_].append(tensor.name)

    def warnings(self) -> Iterator[str]:
        """Yield a warning for readers that do not load the architecture."""
        architecture = self._architecture
        without = [r for r in self._recipe.readers if not READERS[r].loads(architecture)]
        if architecture and without:
            do = "does" if len(without) == 1 else "do"
            yield f"{self._recipe.path}: {_listed(without)} {do} not load {architecture} models"

    def errors(self) -> Iterator[str]:
        """Yield an error for each rule and type that the readers do not read."""
        readers, architecture = self._recipe.readers, self._architecture
        for (place, type_), names in self._found.items():
            without = [r for r in readers if not READERS[r].reads(type_.name, architecture)]
            instead = similar_read(type_, readers, architecture).name
            # A user who extends a recipe cannot correct its rules.
            own = place and place.path == self._recipe.path
            remedy = (
                f"use {instead}" if own else f"add a rule that gives {instead}" if place else ""
            )
            yield (
                f"{place or self._recipe.path}: {_unread(without, type_, remedy)}:"
                f" {', '.join(grouped(names))}"
            )

    def _read(self, type_: QuantType) -> bool:
        return read_by_all(type_, self._recipe.readers, self._architecture)


def _unread(without: Sequence[str], wanted: QuantType, remedy: str) -> str:
    """Return the message for a type that is not read; remedy: "" if its tensors must keep it."""
    do = "does" if len(without) == 1 else "do"
    it = "it" if len(without) == 1 else "them"
    what = f"{_listed(without)} {do} not read {wanted.name}"
    if not remedy:
        return f"{what}, which tensors of this type keep; remove {it} from `readers`"
    return f"{what}; {remedy}, or remove {it} from `readers`"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names) if len(names) < 3 else ", ".join(names)
