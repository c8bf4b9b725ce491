"""Compare a GGUF with its source: encode rows again, with the file's types and effort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from dynquant.arch.load import Mla
from dynquant.checkpoint.gguf_shards import Shards, open_gguf
from dynquant.conversion.sample import Candidate, Range, draw, encoded
from dynquant.conversion.write import default_threads
from dynquant.errors import VerificationError
from dynquant.importance.imatrix import Imatrix
from dynquant.name_lists import grouped
from dynquant.quants.codec import NotFiniteError
from dynquant.quants.search import Search
from dynquant.tensors import ShardFile
from dynquant.verification.ahead import in_order
from dynquant.verification.findings import Comparison, Fault
from dynquant.verification.lints import value_of
from dynquant.verification.maker import Maker, load_source
from dynquant.verification.pairing import Pair, Pairing
from dynquant.verification.standalone import first_file

SAMPLES = 64
"""Default number of ranges to compare."""

_WEIGHTS = 1 << 18
"""Weights in each range when whole tensors are compared."""


@dataclass(frozen=True)
class _Outcome:
    """The result for one range.

    n_wrong: rows that differ; first: the first of them
    failure: why the range could not be encoded
    """

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
) -> Comparison:
    """Encode rows of a model with the types of a GGUF and compare the bytes.

    path, model: the file, and the model as `load_model` takes it
    tensors:  a glob; all rows of the tensors whose names match are compared
    sample:   compare this many ranges of rows instead; the seed is computed from the file's header
    imatrix:  the imatrix that the file was made with
    progress: called with the bytes of blocks done and the total

    Raises VerificationError if the file cannot be compared as requested, and CheckpointError or
    another kind of DynquantError if the file or the model cannot be read.
    """
    shards = open_gguf(first_file(path))
    maker = Maker.of(shards)
    maker.refuse_imatrix(shards, imatrix)
    source = load_source(model, mla, shards)
    wanted = [
        t.name for _, t in shards.tensors() if tensors is None or fnmatchcase(t.name, tensors)
    ]
    if not wanted:
        raise VerificationError(
            f"{shards.path}: no tensor name matches {tensors!r}; `dynquant inspect` lists the names"
        )
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

    def compare_range(taken: Range) -> _Outcome:
        return _compared(pairs[taken.index], taken, readers, search)

    for taken, outcome in in_order(ranges, compare_range, threads or default_threads()):
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
            f"{', '.join(grouped(unsure))}: the bytes differ from what this dynquant encodes, but"
            f" may be right for {maker.described}"
        )
    extent = "all rows" if sample is None else f"{tally.n_ranges} ranges of rows"
    n_compared = len(tally.seen) - len(unsure)
    return Comparison(
        tuple(faults),
        tuple(pairing.left_out()) if tensors is None else (),
        (f"against {model}: {extent} of {n_compared} tensors, {total / 1e6:.1f} MB encoded again",),
        tuple(unchecked),
    )


class _Tally:
    """Adds up the results of ranges by tensor; ranges are added in order.

    wrong: the tensors that differ, by index: how many rows, and the first of them
    """

    def __init__(self, pairs: Sequence[Pair]) -> None:
        self._pairs = pairs
        self.wrong: dict[int, _Outcome] = {}
        self.seen: set[int] = set()
        self.n_ranges = 0
        self.n_bytes = 0

    def add(self, taken: Range, outcome: _Outcome) -> None:
        """Add the result of one range."""
        self.seen.add(taken.index)
        self.n_ranges += 1
        self.n_bytes += (taken.stop - taken.start) * self._pairs[taken.index].row_size
        if outcome.n_wrong:
            before = self.wrong.get(taken.index)
            n_wrong = outcome.n_wrong + (before.n_wrong if before else 0)
            self.wrong[taken.index] = replace(before or outcome, n_wrong=n_wrong)


def _whole(pairs: Sequence[Pair]) -> Iterator[Range]:
    """Yield ranges of all rows; no range spans two matrices with different importance."""
    for index, pair in enumerate(pairs):
        rows, together = pair.source.n_rows, pair.together
        step = max(1, _WEIGHTS // pair.source.n_per_row)
        for first in range(0, rows, together):
            for start in range(first, first + together, step):
                yield Range(index, start, min(start + step, first + together))


def _drawn(shards: Shards, pairs: Sequence[Pair], n: int) -> list[Range]:
    """Draw ranges with a seed of names, types, shapes and keys: the same for the same file."""
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
        blocks = encoded(source, taken.start, taken.stop, pair.qtype, importance, search)
    except NotFiniteError as e:
        row = taken.start + e.row
        return _Outcome(1, row, f"row {row} of the source has a number that is not finite")
    stored = np.empty_like(blocks)
    at = pair.file.data_offset + pair.tensor.offset + taken.start * blocks.shape[1]
    readers[pair.file.path].read(at, stored.reshape(-1))
    wrong = (stored != blocks).any(axis=1)
    n_wrong = int(wrong.sum())
    return _Outcome(n_wrong, taken.start + int(wrong.argmax()) if n_wrong else 0)


def _fault(pair: Pair, outcome: _Outcome, model: str, maker: Maker) -> Fault:
    """Report the first row that differs."""
    row, n = outcome.first, outcome.n_wrong
    effort = "" if pair.qtype.is_float else f", effort {maker.effort}"
    more = f"; {n:,} of the compared rows differ" if n > 1 else ""
    what = outcome.failure or (
        f"row {row} of {pair.source.n_rows} differs from {model} encoded as {pair.qtype.name}"
        f"{effort}{more}"
    )
    at = pair.file.data_offset + pair.tensor.offset + row * pair.row_size
    return Fault(what, pair.file.path, pair.tensor.name, at)
