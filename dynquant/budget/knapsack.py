"""One option for each item, with the least damage of all whose bytes fit: exactly.

This is the multiple-choice knapsack. Lagrange's relaxation replaces the limit on the bytes by a
price for each byte; at the best price its optimum is a lower bound of the damage, and nearly a
solution. An option whose own bound is above the damage of a known solution cannot be part of a
better one. The few options that remain are combined item by item, without combinations that have
both more bytes and more damage than another, or a bound above the known solution.

Only sums, products, quotients and comparisons decide, in one order, so that every machine finds the
same solution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dynquant.arrays import F64, I64

MOST_STATES = 1 << 11
"""Combinations that are kept from one item to the next. Models whose layers differ need fewer; with
hundreds of equal items, the best of these are within a thousandth of the bound."""

_SLACK = 1e-12


@dataclass(frozen=True)
class Option:
    """Bytes and damage of an item's option; both finite and not negative."""

    n_bytes: int
    damage: float


@dataclass(frozen=True)
class Solution:
    """The best options.

    chosen:  number of the option of each item
    damage:  of all items together
    bound:   no solution has less damage than this
    price:   damage that a byte is worth at this size
    is_best: no solution has less damage; False if too many combinations were left
    """

    chosen: tuple[int, ...]
    n_bytes: int
    damage: float
    bound: float
    price: float
    is_best: bool


class _Items:
    """The options of all items in flat arrays; options of an item are neighbours."""

    def __init__(self, items: Sequence[Sequence[Option]]) -> None:
        lengths = np.array([len(options) for options in items], np.int64)
        self.starts: I64 = np.concatenate(([0], np.cumsum(lengths)[:-1])).astype(np.int64)
        self.ends: I64 = self.starts + lengths
        self.n_bytes: I64 = np.array([o.n_bytes for item in items for o in item], np.int64)
        self.damage: F64 = np.array([o.damage for item in items for o in item], np.float64)
        self.item: I64 = np.repeat(np.arange(len(items)), lengths)

    def priced(self, price: float) -> F64:
        """Return each option's damage with the price of its bytes."""
        return self.damage + price * self.n_bytes

    def cheapest(self, price: float, *, small: bool) -> I64:
        """Return the best option of each item at a price; of several, the smallest or largest."""
        sign = 1 if small else -1
        order = np.lexsort((sign * self.n_bytes, self.priced(price), self.item))
        return order[self.starts]

    def bytes_of(self, options: I64) -> int:
        """Return the bytes of some options together."""
        return int(self.n_bytes[options].sum())

    def damage_of(self, options: I64) -> float:
        """Return the damage of some options together, summed in order."""
        return float(np.cumsum(self.damage[options])[-1]) if len(options) else 0.0


def solve(items: Sequence[Sequence[Option]], capacity: int) -> Solution | None:
    """Choose an option of each item; None if even the smallest are larger than the capacity.

    items:    the options of each, at least one
    capacity: bytes of all together, at most
    """
    if not items:
        return Solution((), 0, 0.0, 0.0, 0.0, True) if capacity >= 0 else None
    given = _Items(items)
    smallest = np.lexsort((given.damage, given.n_bytes, given.item))[given.starts]
    if given.bytes_of(smallest) > capacity:
        return None
    best = given.cheapest(0.0, small=True)
    price = 0.0
    if given.bytes_of(best) > capacity:
        price, best = _priced(given, smallest, capacity)
        best = _filled(given, best, capacity)
    bound = _bound(given, price, capacity)
    damage = given.damage_of(best)
    is_best = True
    if damage > bound:
        found, is_best = _combined(given, capacity, price, damage)
        if found is not None:
            best, damage = found, given.damage_of(found)
    chosen = tuple(int(o) for o in best - given.starts)
    return Solution(chosen, given.bytes_of(best), damage, min(bound, damage), price, is_best)


def _priced(given: _Items, smallest: I64, capacity: int) -> tuple[float, I64]:
    """Return the lowest price at which the best options fit, and these.

    The price rises along the lower convex hulls of the items: each step between neighbours of a
    hull is given up at its own price, the cheapest first.
    """
    steps: list[tuple[float, int, int, int]] = []  # price, item, from and to option
    best = given.cheapest(0.0, small=True)
    for i, (start, end) in enumerate(zip(given.starts, given.ends, strict=True)):
        hull = _hull(given, range(int(start), int(end)), int(smallest[i]), int(best[i]))
        for small, large in pairwise(hull):
            steps.append((_slope(given, small, large), i, large, small))
    steps.sort()
    n_bytes, price = given.bytes_of(best), 0.0
    for slope, i, large, small in steps:
        if n_bytes <= capacity:
            break
        assert best[i] == large, "steps of an item are given up from its largest option downwards"
        best[i], price = small, slope
        n_bytes += int(given.n_bytes[small] - given.n_bytes[large])
    return price, best


def _slope(given: _Items, small: int, large: int) -> float:
    return float(given.damage[small] - given.damage[large]) / float(
        given.n_bytes[large] - given.n_bytes[small]
    )


def _hull(given: _Items, options: range, smallest: int, best: int) -> list[int]:
    """Return an item's options on the lower convex hull, from the smallest to the best."""
    hull = [smallest]
    rest = sorted(options, key=lambda o: (given.n_bytes[o], given.damage[o], o))
    for o in rest:
        if given.n_bytes[o] > given.n_bytes[best]:
            break
        if given.damage[o] >= given.damage[hull[-1]] or given.n_bytes[o] == given.n_bytes[hull[-1]]:
            continue
        while len(hull) > 1 and _slope(given, hull[-1], o) >= _slope(given, hull[-2], hull[-1]):
            hull.pop()
        hull.append(o)
    return hull


def _filled(given: _Items, best: I64, capacity: int) -> I64:
    """Return the options after single changes, as long as one fits and lowers the damage."""
    best = best.copy()
    room = capacity - given.bytes_of(best)
    while True:
        gain = given.damage[best][given.item] - given.damage
        fits = given.n_bytes - given.n_bytes[best][given.item] <= room
        gain = np.where(fits, gain, 0.0)
        o = int(np.argmax(gain))
        if gain[o] <= 0:
            return best
        room -= int(given.n_bytes[o] - given.n_bytes[best[given.item[o]]])
        best[given.item[o]] = o


def _bound(given: _Items, price: float, capacity: int) -> float:
    least = np.minimum.reduceat(given.priced(price), given.starts)
    return max(0.0, float(np.cumsum(least)[-1]) - price * capacity)


def _combined(given: _Items, capacity: int, price: float, known: float) -> tuple[I64 | None, bool]:
    """Return better options than known ones, None if there are none, and whether all were tried.

    known: the damage of a solution
    """
    priced = given.priced(price)
    least = np.minimum.reduceat(priced, given.starts)
    total = float(np.cumsum(least)[-1]) - price * capacity
    ceiling = known + _SLACK * known
    stays = total + (priced - least[given.item]) <= ceiling
    after = np.concatenate((np.cumsum(least[::-1])[::-1][1:], [0.0]))  # of the items to come
    n_bytes, damage = np.zeros(1, np.int64), np.zeros(1)
    trail: list[tuple[I64, I64]] = []  # for each item: the state before, and the option
    tried_all = True
    smallest = np.minimum.reduceat(np.where(stays, given.n_bytes, 1 << 62), given.starts)
    rest = np.concatenate((np.cumsum(smallest[::-1])[::-1][1:], [0]))
    for i, (start, end) in enumerate(zip(given.starts, given.ends, strict=True)):
        options: I64 = start + np.flatnonzero(stays[start:end])
        sums = (n_bytes[:, None] + given.n_bytes[options]).ravel()
        losses = (damage[:, None] + given.damage[options]).ravel()
        bounds = losses + price * (sums - capacity) + after[i]
        kept = np.flatnonzero((sums + rest[i] <= capacity) & (bounds <= ceiling))
        order = kept[np.lexsort((losses[kept], sums[kept]))]
        lower = np.minimum.accumulate(losses[order])
        order = order[np.concatenate(([True], losses[order][1:] < lower[:-1]))[: len(order)]]
        if len(order) > MOST_STATES:
            tried_all = False
            nearest = np.argsort(bounds[order], kind="stable")[:MOST_STATES]
            order = order[np.sort(nearest)]
        if not len(order):
            return None, tried_all
        trail.append((order // len(options), options[order % len(options)]))
        n_bytes, damage = sums[order], losses[order]
    state = int(np.argmin(damage))
    if damage[state] >= known:
        return None, tried_all
    found = np.empty(len(trail), np.int64)
    for i in reversed(range(len(trail))):
        before, option = trail[i]
        found[i], state = option[state], int(before[state])
    return found, tried_all
