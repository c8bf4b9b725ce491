"""Random ranges of rows that anybody can draw again, and the blocks they are encoded to."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynquant.arrays import F32
from dynquant.quants.encoder import CORE, Batch, Encoded, Encoder
from dynquant.quants.feedback import Feedback
from dynquant.quants.search import NORMAL, Search
from dynquant.quants.table import QuantType
from dynquant.tensors import TensorSource, row_bytes

WEIGHTS = 1 << 16
"""Weights of a range, at least one row: milliseconds of the encoder, and hundreds of blocks."""


@dataclass(frozen=True)
class Candidate:
    """A tensor that ranges are drawn from.

    rows_of_matrix: rows of each of its matrices; no range crosses from one to the next
    """

    type_name: str
    n_rows: int
    n_per_row: int
    rows_of_matrix: int


@dataclass(frozen=True)
class Range:
    """Rows start..stop of a candidate, by its number."""

    index: int
    start: int
    stop: int


def draw(candidates: Sequence[Candidate], n: int, seed: bytes) -> list[Range]:
    """Draw ranges of rows: one of each type first, then any weight with equal probability.

    seed:    the same seed and candidates give the same ranges on every machine
    returns: n ranges in the order of the candidates; none if there are no candidates
    """
    chance = random.Random(hashlib.sha256(seed).digest())
    by_type: dict[str, list[int]] = {}
    for i, candidate in enumerate(candidates):
        by_type.setdefault(candidate.type_name, []).append(i)
    names = sorted(by_type)
    chance.shuffle(names)
    found: list[Range] = []
    for k in range(n if names else 0):
        of_type = by_type[names[k]] if k < len(names) else range(len(candidates))
        sizes = [candidates[i].n_rows * candidates[i].n_per_row for i in of_type]
        (index,) = chance.choices(of_type, sizes)
        taken = candidates[index]
        start = chance.randrange(taken.n_rows)
        end = (start // taken.rows_of_matrix + 1) * taken.rows_of_matrix
        stop = min(start + max(1, WEIGHTS // taken.n_per_row), end)
        found.append(Range(index, start, stop))
    return sorted(found, key=lambda r: (r.index, r.start, r.stop))


def encode_rows(
    source: TensorSource,
    start: int,
    stop: int,
    qtype: QuantType,
    importance: F32 | None = None,
    search: Search = NORMAL,
    mean: F32 | None = None,
    feedback: Feedback | None = None,
    *,
    encoder: Encoder = CORE,
    measure: bool = False,
) -> Encoded:
    """Read rows start..stop of a source, which are rows of one matrix, and encode them.

    measure: whether the errors are measured, too

    Raises what reading and encoding raise: CheckpointError, NotFiniteError.
    """
    rows = np.empty((stop - start) * row_bytes(source), np.uint8)
    source.read(start, stop, rows)
    batch = Batch(rows, source.stored, source.shape[-1], qtype, importance, search, mean)
    batch = replace(batch, feedback=feedback)
    return encoder.encode(batch, measure=measure)
