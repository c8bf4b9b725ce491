"""A look back: some rows of an output encoded once more, and compared with what is in the file.

Which rows is chosen by chance that anybody can repeat: from a seed that derives from the file.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.conversion.layout import Layout
from dynquant.conversion.output import PartFiles
from dynquant.errors import ConvertError
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.search import Search
from dynquant.quants.table import QuantType
from dynquant.tensors import TensorSource, n_rows, row_bytes

SAMPLES = 8
"""Ranges that a conversion looks at again."""

WEIGHTS = 1 << 16
"""Weights of a range, at least one row: milliseconds of the encoder, and blocks in hundreds."""


@dataclass(frozen=True)
class Candidate:
    """A tensor that ranges are drawn from; together: rows of one matrix, which no range leaves."""

    type_name: str
    n_rows: int
    n_per_row: int
    together: int


@dataclass(frozen=True)
class Range:
    """Rows start..stop of a candidate, by its number."""

    index: int
    start: int
    stop: int


def draw(candidates: Sequence[Candidate], n: int, seed: bytes) -> list[Range]:
    """Draw ranges of rows: one of each type, then any weight of all as likely as another.

    seed: decides all; the same ranges for the same candidates anywhere
    returns: n ranges in the order of the candidates, fewer only where there are no candidates
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
        end = (start // taken.together + 1) * taken.together
        stop = min(start + max(1, WEIGHTS // taken.n_per_row), end)
        found.append(Range(index, start, stop))
    return sorted(found, key=lambda r: (r.index, r.start, r.stop))


def encoded(
    source: TensorSource,
    start: int,
    stop: int,
    qtype: QuantType,
    importance: F32 | None,
    search: Search,
) -> U8:
    """Return rows of a source as blocks, uint8 [stop - start, row size].

    Raises what reading and encoding raise: CheckpointError, NotFiniteError.
    """
    n_per_row = source.shape[-1]
    stored = np.empty((stop - start) * row_bytes(source), np.uint8)
    source.read(start, stop, stored)
    blocks = np.empty((stop - start, qtype.row_size(n_per_row)), np.uint8)
    codec.encode_stored(stored, source.stored, n_per_row, qtype, blocks, importance, search)
    return blocks


def check_sample(plan: Plan, layout: Layout, parts: PartFiles, n: int) -> None:
    """Encode n ranges of rows again, and compare them with what is in the files.

    The files are read back: from the disk, or from what the system keeps of it in memory.

    Raises ConvertError with all ranges that are not the same.
    """
    candidates: list[Candidate] = []
    for tensor in plan.tensors:
        importance = plan.importance.get(tensor.name)
        rows = n_rows(tensor.shape)
        together = rows // importance.n_matrices if importance else rows
        candidates.append(Candidate(tensor.type.name, rows, tensor.n_per_row, together))
    seed = b"".join(hashlib.sha256(file.header).digest() for file in layout.files)
    problems: dict[str, str] = {}
    for drawn in draw(candidates, n, seed):
        tensor = plan.tensors[drawn.index]
        importance = plan.importance.get(tensor.name)
        matrix = drawn.start // candidates[drawn.index].together
        try:
            blocks = encoded(
                plan.sources[tensor.name].source,
                drawn.start,
                drawn.stop,
                tensor.type,
                importance.of(matrix) if importance else None,
                Search(plan.effort),
            )
        except codec.NotFiniteError as e:
            problems[tensor.name] = (
                f"tensor {tensor.name!r}: row {drawn.start + e.row} of the model holds a number"
                " that is not finite, which it did not before; its disk or the memory is faulty"
            )
            continue
        there = np.empty_like(blocks)
        position = layout.files[tensor.shard].position(tensor) + drawn.start * blocks.shape[1]
        parts.read(tensor.shard, there.reshape(-1).data, position)
        wrong = (there != blocks).any(axis=1)
        if wrong.any():
            message = (
                f"{parts.parts[tensor.shard]}: tensor {tensor.name!r}: row"
                f" {drawn.start + int(wrong.argmax())} is not what it is encoded to a second time"
                f" ({int(wrong.sum())} of rows {drawn.start} to {drawn.stop - 1} are not); memory"
                " or disk is faulty, or the model changed meanwhile: begin anew (--restart)"
            )
            problems.setdefault(tensor.name, message)
    ConvertError.raise_any(problems.values())
