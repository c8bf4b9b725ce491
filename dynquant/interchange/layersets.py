"""Short notations for sets of layers: a recipe's `layers`, and a regular expression."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import lru_cache

# Usual patterns have steps of two to about eight layers; with longer steps, numbers are as short
# because the pattern covers few layers.
_MAX_STEP = 12

# Fewer layers than this are shorter as numbers than as a pattern.
_MIN_REPEATS = 3


@dataclass(frozen=True)
class Span:
    """Layers first..last, both included."""

    first: int
    last: int

    def layers(self, n_layers: int) -> range:  # noqa: ARG002  -- same signature as in Every
        """Return its layers; they may exceed the n_layers that patterns count."""
        return range(self.first, self.last + 1)

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Every:
    """Every step-th layer from `first` to `last`, or to the model's last layer (None)."""

    step: int
    first: int
    last: int | None

    def layers(self, n_layers: int) -> range:
        """Return its layers in a model of n_layers."""
        return range(self.first, n_layers if self.last is None else self.last + 1, self.step)

    def __str__(self) -> str:
        inside = "" if self.last is None else f"in: {self.first}-{self.last}, "
        begin = f", from: {self.first}" if self.first else ""
        return f"{{{inside}every: {self.step}{begin}}}"


Item = Span | Every
"""An item of a list of layers."""


def numbers(layers: Collection[int]) -> str:
    """Return numbers as ranges, `3-8, 10`."""
    return ", ".join(map(str, _spans(frozenset(layers), _between(layers))))


def _between(layers: Collection[int]) -> frozenset[int]:
    return frozenset(range(max(layers, default=0))).difference(layers)


def length(items: Collection[Item]) -> int:
    """Return the number of characters of items in a recipe."""
    return sum(len(str(item)) + 2 for item in items)


@lru_cache(maxsize=1 << 14)
def cover(wanted: frozenset[int], barred: frozenset[int], n_layers: int) -> tuple[Item, ...]:
    """Return few items with all layers of `wanted` and none of `barred`; others do not matter.

    n_layers: without prediction layers, which patterns do not count; numbers may exceed it
    """
    spans = list(_spans(wanted, barred))
    best = _chosen(wanted, [*spans, *_repeats(wanted, barred, n_layers)], n_layers)
    return tuple(spans) if length(spans) <= length(best) else best


def _spans(wanted: frozenset[int], barred: frozenset[int]) -> Iterator[Span]:
    """Yield the longest runs between barred layers, from a wanted layer to a wanted layer."""
    run: list[int] = []
    for layer in sorted(wanted):
        if run and not barred.isdisjoint(range(run[-1] + 1, layer)):
            yield Span(run[0], run[-1])
            run = []
        run.append(layer)
    if run:
        yield Span(run[0], run[-1])


def _repeats(wanted: frozenset[int], barred: frozenset[int], n_layers: int) -> Iterator[Every]:
    """Yield the longest patterns of each step and start that include no barred layer."""
    for step in range(2, _MAX_STEP + 1):
        for begin in range(step):
            run: list[int] = []
            for layer in range(begin, n_layers, step):
                if layer in barred:
                    yield from _every(step, run, None)
                    run = []
                elif layer in wanted:
                    run.append(layer)
            yield from _every(step, run, n_layers)


def _every(step: int, run: list[int], n_layers: int | None) -> Iterator[Every]:
    if len(run) >= _MIN_REPEATS:
        yield Every(step, run[0], None if n_layers is not None else run[-1])


def _chosen(wanted: frozenset[int], items: list[Item], n_layers: int) -> tuple[Item, ...]:
    """Choose items that together include the wanted layers, the shortest per new layer first."""
    held = {item: wanted.intersection(item.layers(n_layers)) for item in items}
    left, taken = set(wanted), list[Item]()
    while left:
        useful = (item for item in items if not left.isdisjoint(held[item]))
        best = min(useful, key=lambda item: (len(str(item)) + 2) / len(left & held[item]))
        taken.append(best)
        left -= held[best]
    for item in sorted(taken, key=lambda item: -len(str(item))):
        others = frozenset[int]().union(*(held[other] for other in taken if other != item))
        alone = held[item] - others
        if not alone:
            taken.remove(item)
        elif isinstance(item, Span):
            shorter = Span(min(alone), max(alone))
            held[shorter] = wanted.intersection(shorter.layers(n_layers))
            taken[taken.index(item)] = shorter
    return tuple(sorted(taken, key=lambda item: (isinstance(item, Every), item.first)))


def digits(layers: Collection[int]) -> str:
    """Return a regular expression of classes and alternatives that matches the numbers of layers.

    Numbers of one length are combined from the left: 3-60 is `([3-9]|[1-5][0-9]|60)`.
    """
    by_length: dict[int, list[str]] = {}
    for layer in sorted(set(layers)):
        by_length.setdefault(len(str(layer)), []).append(str(layer))
    found = [one for numbers in by_length.values() for one in _alternatives(numbers)]
    return found[0] if len(found) == 1 else "(" + "|".join(found) + ")"


def _alternatives(numbers: list[str]) -> list[str]:
    """Return expressions for numbers of one length, grouped by their last digits."""
    if numbers == [""]:
        return [""]
    lasts: dict[str, list[str]] = {}
    for number in numbers:
        lasts.setdefault(number[:-1], []).append(number[-1])
    heads: dict[tuple[str, ...], list[str]] = {}
    for head, ends in lasts.items():
        heads.setdefault(tuple(ends), []).append(head)
    return [head + _class(ends) for ends, some in heads.items() for head in _alternatives(some)]


def _class(ends: tuple[str, ...]) -> str:
    if len(ends) == 1:
        return ends[0]
    numbers = [int(end) for end in ends]
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    parts = (f"{r[0]}-{r[-1]}" if len(r) > 2 else "".join(map(str, r)) for r in runs)
    return "[" + "".join(parts) + "]"
