"""Whether a GGUF is what its source gives: rows encoded again, with the file's types and effort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from dynquant.arch.load import Mla
from dynquant.checkpoint.gguf_shards import Shards, open_gguf
from dynquant.conversion.write import default_threads
from dynquant.errors import VerificationError
from dynquant.importance.imatrix import Imatrix
from dynquant.measure.sample import Candidate, Range, draw, encode_rows
from dynquant.name_lists import grouped
from dynquant.quants.codec import NotFiniteError
from dynquant.quants.search import Search
from dynquant.tensors import ShardFile
from dynquant.verification.ahead import in_order
from dynquant.verification.findings import Compared, Fault
from dynquant.verification.lints import value_of
from dynquant.verification.maker import Maker, load_source
from dynquant.verification.pairing import Pair, Pairing
from dynquant.verification.standalone import first_file

SAMPLES = 64
"""Ranges that are compared where nobody says how many."""

_WEIGHTS = 1 << 18
"""Weights of the ranges that whole tensors are cut into."""


@dataclass(frozen=True)
class _Outcome:
    """Of a range: rows that differ, the first of them, or why it could not be encoded."""

    n_wrong: int = 0
    first: int = 0
    failure: str = ""


def compare(
    path: Path,
    model: str,
    *,
    tensors: str | None = None,
    sample: int | None = None,
    imatrix: Imatrix | None = None,
    mla: Mla = "split",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Compared:
    """Encode rows of a model as a GGUF has them, and compare the bytes.

    path, model: the file, and what `load_model` takes
    tensors:  a glob of names, all whose rows are compared; None takes a sample of all
    sample:   ranges of rows to compare instead, drawn by a seed that is the file's own
    imatrix:  what the file was made with
    progress: called with bytes of blocks done and in all

    Raises VerificationError where the file cannot be compared as asked, CheckpointError and other
    kinds where file or model cannot be read.
    """
    shards = open_gguf(first_file(path))
    maker = Maker.of(shards)
    maker.refuse_imatrix(shards, imatrix)
    source = load_source(model, mla, shards)
    wanted = [
        t.name for _, t in shards.tensors() if tensors is None or fnmatchcase(t.name, tensors)
    ]
    if not wanted:
        raise VerificationError(f"{shards.path}: no tensor is named {tensors}")
    pairing = Pairing(shards, source, maker, imatrix if maker.imatrix_sha256 else None)
    pairs = [pair for name in wanted if (pair := pairing.pair(name)) is not None]
    if sample is None and tensors is None:
        sample = SAMPLES
    tally = _Tally(pairs)
    if sample is None:
        ranges, total = _whole(pairs), sum(p.tensor.n_bytes for p in pairs)
    else:
        ranges = _drawn(shards, pairs, sample)
        total = sum((r.stop - r.start) * pairs[r.index].row_size for r in ranges)
    readers = {p.file.path: ShardFile(p.file.path) for p in pairs}
    search = Search(maker.effort)

    def look(taken: Range) -> _Outcome:
        return _compared(pairs[taken.index], taken, readers, search)

    for taken, outcome in in_order(ranges, look, threads or default_threads()):
        tally.add(taken, outcome)
        if progress is not None:
            progress(tally.n_bytes, total)
    faults = [*pairing.faults]
    unsure: list[str] = []
    for index, outcome in tally.wrong.items():
        if pairs[index].is_sure:
            faults.append(_fault(pairs[index], outcome, model, maker))
        else:
            unsure.append(pairs[index].tensor.name)
    unchecked = [*maker.unchecked(), *pairing.unchecked]
    if unsure:
        unchecked.append(
            f"{', '.join(grouped(unsure))}: other bytes than this dynquant makes, which"
            f" {maker.described} may have made rightly"
        )
    what = "whole" if sample is None else f"in {tally.n_ranges} ranges of rows"
    n_compared = len(tally.seen) - len(unsure)
    return Compared(
        tuple(faults),
        tuple(pairing.left_out()) if tensors is None else (),
        (f"against {model}: {n_compared} tensors {what}, {total / 1e6:.1f} MB encoded again",),
        tuple(unchecked),
    )


class _Tally:
    """What the ranges say of each tensor, taken in order.

    wrong: of tensors that differ, by number: how many rows, and the first of them
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs
        self.wrong: dict[int, _Outcome] = {}
        self.seen: set[int] = set()
        self.n_ranges = 0
        self.n_bytes = 0

    def add(self, taken: Range, outcome: _Outcome) -> None:
        """Count a range."""
        self.seen.add(taken.index)
        self.n_ranges += 1
        self.n_bytes += (taken.stop - taken.start) * self._pairs[taken.index].row_size
        if outcome.n_wrong:
            before = self.wrong.get(taken.index)
            n_wrong = outcome.n_wrong + (before.n_wrong if before else 0)
            self.wrong[taken.index] = replace(before or outcome, n_wrong=n_wrong)


def _whole(pairs: Sequence[Pair]) -> Iterator[Range]:
    """Yield all rows, none of two matrices that differ in importance in one range."""
    for index, pair in enumerate(pairs):
        rows, together = pair.source.n_rows, pair.together
        step = max(1, _WEIGHTS // pair.source.n_per_row)
        for first in range(0, rows, together):
            for start in range(first, first + together, step):
                yield Range(index, start, min(start + step, first + together))


def _drawn(shards: Shards, pairs: Sequence[Pair], n: int) -> list[Range]:
    """Draw ranges by a seed of names, types, shapes and keys: the same for the same file."""
    seed = hashlib.sha256()
    for _, t in shards.tensors():
        seed.update(f"{t.name}\0{t.type_name}\0{t.shape}\n".encode("utf-8", "surrogateescape"))
    for key in ("general.architecture", "general.name", "dynquant.recipe_sha256"):
        seed.update(f"{value_of(shards, key)}\n".encode("utf-8", "surrogateescape"))
    candidates = [
        Candidate(p.qtype.name, p.source.n_rows, p.source.n_per_row, p.together) for p in pairs
    ]
    return draw(candidates, n, seed.digest())


def _compared(
    pair: Pair, taken: Range, readers: Mapping[Path, ShardFile], search: Search
) -> _Outcome:
    importance = pair.importance.of(taken.start // pair.together) if pair.importance else None
    source = pair.source.source
    try:
        encoded = encode_rows(source, taken.start, taken.stop, pair.qtype, importance, search)
    except NotFiniteError as e:
        row = taken.start + e.row
        return _Outcome(1, row, f"row {row} of the source holds a number that is not finite")
    blocks = encoded.blocks
    there = np.empty_like(blocks)
    at = pair.file.data_offset + pair.tensor.offset + taken.start * blocks.shape[1]
    readers[pair.file.path].read(at, there.reshape(-1))
    wrong = (there != blocks).any(axis=1)
    n_wrong = int(wrong.sum())
    return _Outcome(n_wrong, taken.start + int(wrong.argmax()) if n_wrong else 0)


def _fault(pair: Pair, outcome: _Outcome, model: str, maker: Maker) -> Fault:
    """Say where a tensor differs first."""
    row, n = outcome.first, outcome.n_wrong
    effort = "" if pair.qtype.is_float else f", effort {maker.effort}"
    more = f"; {n:,} of the rows compared differ" if n > 1 else ""
    what = outcome.failure or (
        f"row {row} of {pair.source.n_rows} is not what {model} gives as {pair.qtype.name}{effort}"
        f"{more}"
    )
    at = pair.file.data_offset + pair.tensor.offset + row * pair.row_size
    return Fault(what, pair.file.path, pair.tensor.name, at)
