"""The tries of the types with a scale and an offset: where the ends of the levels are placed.

    python scripts/studies/choose_tries.py Q4_K 18 [--steps 12000] [--groups 8000]

A try places the lowest and the highest level so many levels inside the range of a group's weights
(fit.h). Most tries of a square of places win for few groups. So 64 places are chosen in three
steps:

1. from a fine square, one by one, each the one that reduces the mean of the least error most;
2. the first ones, as many as effort normal takes, are moved at random, and a move is kept if the
   whole encoder's error falls: a compiled copy of the type's file reads the places from memory;
3. they are put in the order of step 1, and the other places are chosen as there.

Printed are the table for tries.h, the errors of its beginnings as a multiple of the error of the
whole square, and the encoder's error before and after step 2, for the weights that chose and for
others. Weights: gaussian and Student-t, without importance and with a log-normal one; each kind
counts the same.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sweep_efforts import CSRC, Encoder, with_value

from dynquant.arrays import F32
from dynquant.quants import QuantType, decode, quant_type

COUNTS = (4, 6, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 64)

Place = tuple[float, float]


@dataclass(frozen=True)
class Format:
    """A type; first, last and step: of the places that are tried, in levels.

    table: its name in tries.h
    """

    table: str
    n: int
    q_most: int
    is_free: bool
    first: float
    last: float
    step: float

    def places(self) -> list[Place]:
        """Return all pairs of places of the lowest and the highest level."""
        count = round((self.last - self.first) / self.step) + 1
        each = [round(self.first + self.step * k, 3) for k in range(count)]
        return [(low, high) for low in each for high in each]


FORMATS = {
    "Q2_K": Format("tries_of_4_levels", 16, 3, False, -0.4, 1.8, 0.1),
    "Q4_K": Format("tries_of_16_levels", 32, 15, False, -1.2, 1.8, 0.15),
    "Q5_K": Format("tries_of_32_levels", 32, 31, False, -2.1, 2.1, 0.21),
    "Q4_1": Format("tries_of_16_levels", 32, 15, True, -1.2, 2.1, 0.15),
    "Q5_1": Format("tries_of_32_free_levels", 32, 31, True, -3.0, 2.1, 0.25),
}


def kinds(n_groups: int, n: int, chance: np.random.Generator) -> Iterator[tuple[F32, F32]]:
    """Yield weights and importances, float32 [n_groups, n]."""
    shape = (n_groups, n)
    for x in (chance.standard_normal(shape), chance.standard_t(4, shape)):
        weights = x.astype(np.float32)
        yield weights, np.ones(shape, np.float32)
        yield weights, np.exp(chance.standard_normal(shape)).astype(np.float32)


def error_of(x: F32, w: F32, form: Format, low: float, high: float) -> F32:
    """Return the error that each group's least-squares fit of one try's codes leaves."""
    bottom = x.min(1) if form.is_free else np.minimum(x.min(1), 0)
    width = x.max(1) - bottom
    levels = form.q_most + low + high
    start, inverse = bottom + width * (low / levels), levels / width
    q = np.clip(np.rint((x - start[:, None]) * inverse[:, None]), 0, form.q_most)
    w_sum, wx, wxx = w.sum(1), (w * x).sum(1), (w * x * x).sum(1)
    wq = w * q
    q_sum, qq, qx = wq.sum(1), (wq * q).sum(1), (wq * x).sum(1)
    determinant = w_sum * qq - q_sum * q_sum
    can = determinant > 0
    s = np.where(can, (w_sum * qx - q_sum * wx) / np.where(can, determinant, 1), 0)
    b = (wx - s * q_sum) / w_sum
    if not form.is_free:
        above = b > 0
        s = np.where(above, qx / np.where(qq > 0, qq, 1), s)
        b = np.where(above, 0, b)
    return np.asarray(wxx - (s * qx + b * wx), np.float32)


def errors(
    form: Format, places: Sequence[Place], n_groups: int, chance: np.random.Generator
) -> F32:
    """Return the error of each group and place, float32 [groups, places].

    The least error of a group has the mean 1 in each kind of data.
    """
    found: list[F32] = []
    for x, w in kinds(n_groups, form.n, chance):
        one = np.stack([error_of(x, w, form, *place) for place in places], 1)
        found.append(one / one.min(1).mean())
    return np.concatenate(found)


def chosen(of: F32, count: int, among: Sequence[int], before: Sequence[int] = ()) -> list[int]:
    """Return the numbers of places, each the best of some beside those before it."""
    order = list(before)
    least = of[:, order].min(1, initial=np.inf)
    for _ in range(count - len(order)):
        means = np.minimum(least[:, None], of[:, among]).mean(0, dtype=np.float64)
        order.append(among[int(means.argmin())])
        least = np.minimum(least, of[:, order[-1]])
    return order


class Trial:
    """The encoder of a type with places that can be changed."""

    def __init__(self, form: Format, qtype: QuantType, count: int) -> None:
        self._qtype = qtype
        text = (CSRC / f"{qtype.name.lower()}.h").read_text()
        text, _ = with_value(text, "normal", "count", str(count))
        tables = (CSRC / "tries.h").read_text()
        static = f"static const struct place {form.table}["
        tables = tables.replace(static, static.removeprefix("static const "))
        self._encoder = Encoder(qtype, "normal", text, "native", {"tries.h": tables})
        self._table = (ctypes.c_float * (2 * count)).in_dll(self._encoder.library, form.table)

    def errors(
        self, places: Sequence[Place], rows: Sequence[tuple[F32, F32]]
    ) -> NDArray[np.float64]:
        """Return sum w (x - decoded)^2 of each kind of rows."""
        self._table[:] = [end for place in places for end in place]
        found: list[float] = []
        for x, w in rows:
            wrong = decode(self._encoder(x, w), self._qtype, x.shape[1]) - x
            found.append(float((w * wrong * wrong).sum(dtype=np.float64)))
        return np.array(found)


def moved(
    trial: Trial, form: Format, places: list[Place], n_steps: int, rows: Sequence[tuple[F32, F32]]
) -> list[Place]:
    """Return places that are better for the whole encoder, found by random moves of one."""
    chance = np.random.default_rng(2)
    begin = trial.errors(places, rows)
    least = 1.0
    for _ in range(n_steps):
        which, is_far = int(chance.integers(len(places))), chance.random() < 0.2
        near = np.array(places[which]) + form.step / 3 * chance.integers(-4, 5, 2)
        far = chance.uniform(form.first, form.last, 2)
        low, high = (round(float(end), 2) + 0.0 for end in (far if is_far else near))
        other = [*places[:which], (low, high), *places[which + 1 :]]
        error = float((trial.errors(other, rows) / begin).mean())
        if error < least:
            places, least = other, error
    return places


def main() -> None:
    """Print the table and the errors."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("type", choices=FORMATS)
    parser.add_argument("count", type=int, help="of the places of effort normal")
    parser.add_argument("--steps", type=int, default=12000, help="random moves")
    parser.add_argument("--groups", type=int, default=8000, help="of each kind of data, in step 1")
    given = parser.parse_args()
    form, qtype = FORMATS[given.type], quant_type(given.type)
    square = form.places()
    of = errors(form, square, given.groups, np.random.default_rng(0))
    first = [square[k] for k in chosen(of, given.count, range(len(square)))]
    trial = Trial(form, qtype, given.count)
    rows, others = ([*kinds(n, 4096, np.random.default_rng(n))] for n in (100, 60))
    better = moved(trial, form, first, given.steps, rows)
    for what, those in (("these weights", rows), ("others", others)):
        ratio = trial.errors(better, those) / trial.errors(first, those)
        print(f"{given.type}, {what}: error after step 2 / before: {ratio.round(4)}")
    every = [*better, *square]
    of = errors(form, every, given.groups, np.random.default_rng(0))
    order = chosen(of, given.count, range(given.count))
    order = chosen(of, COUNTS[-1], range(len(every)), order)
    for begin in range(0, len(order), 5):
        line = (every[k] for k in order[begin : begin + 5])
        print("    " + " ".join(f"{{{low}f, {high}f}}," for low, high in line))
    other = errors(form, every, given.groups, np.random.default_rng(1))
    for count in COUNTS:
        here, there = (float(a[:, order[:count]].min(1).mean()) for a in (of, other))
        print(f"  {count:3}: {here:.4f}, others {there:.4f}", flush=True)


if __name__ == "__main__":
    main()
