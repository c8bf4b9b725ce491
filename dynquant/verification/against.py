"""Whether a GGUF is what its source gives: rows encoded again, with the file's types and effort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from dynquant.arch.load import Mla
from dynquant.checkpoint.names import grouped
from dynquant.checkpoint.split import Shards, open_gguf
from dynquant.conversion.engine import default_threads
from dynquant.conversion.sample import Candidate, Range, draw, encoded
from dynquant.errors import VerificationError
from dynquant.importance.imatrix import Imatrix
from dynquant.quants.codec import NotFiniteError
from dynquant.quants.search import Effort, Search
from dynquant.tensors import ShardFile
from dynquant.verification.findings import Compared, Fault
from dynquant.verification.lints import value_of
from dynquant.verification.maker import Maker, load_source
from dynquant.verification.pairing import Pair, Pairing
from dynquant.verification.verify import first_file

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
    ranges = _whole(pairs) if sample is None else _drawn(shards, pairs, sample)
    outcomes = _run(pairs, ranges, maker.effort, threads or default_threads(), progress)
    faults = [*pairing.faults]
    unsure: list[str] = []
    of_pair: dict[int, list[_Outcome]] = {}
    for range_, outcome in zip(ranges, outcomes, strict=True):
        of_pair.setdefault(range_.index, []).append(outcome)
    for index, here in of_pair.items():
        pair = pairs[index]
        fault = _fault(pair, here, model, maker)
        if fault is None:
            continue
        if pair.is_sure:
            faults.append(fault)
        else:
            unsure.append(pair.tensor.name)
    n_bytes = sum((r.stop - r.start) * pairs[r.index].row_size for r in ranges)
    compared = {pairs[r.index].tensor.name for r in ranges} - set(unsure)
    unchecked = [*maker.unchecked(), *pairing.unchecked]
    if unsure:
        unchecked.append(
            f"{', '.join(grouped(unsure))}: other bytes than this dynquant makes, which"
            f" {maker.described} may have made rightly"
        )
    what = "whole" if sample is None else f"in {len(ranges)} ranges of rows"
    return Compared(
        tuple(faults),
        tuple(pairing.left_out()) if tensors is None else (),
        (f"against {model}: {len(compared)} tensors {what}, {n_bytes / 1e6:.1f} MB encoded again",),
        tuple(unchecked),
    )


def _whole(pairs: Sequence[Pair]) -> list[Range]:
    found: list[Range] = []
    for index, pair in enumerate(pairs):
        rows, together = pair.source.n_rows, pair.together
        step = max(1, _WEIGHTS // pair.source.n_per_row)
        for first in range(0, rows, together):
            for start in range(first, first + together, step):
                found.append(Range(index, start, min(start + step, first + together)))
    return found


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


def _run(
    pairs: Sequence[Pair],
    ranges: Sequence[Range],
    effort: Effort,
    threads: int,
    progress: Callable[[int, int], None] | None,
) -> list[_Outcome]:
    """Compare the ranges, in threads; return what each says, in their order."""
    readers = {p.file.path: ShardFile(p.file.path) for p in pairs}
    search = Search(effort)
    sizes = [(r.stop - r.start) * pairs[r.index].row_size for r in ranges]
    total, done = sum(sizes), 0
    outcomes: list[_Outcome] = []
    with ThreadPoolExecutor(threads, "dynquant-verify") as pool:
        try:
            work = [pool.submit(_compared, pairs[r.index], r, readers, search) for r in ranges]
            for future, size in zip(work, sizes, strict=True):
                outcomes.append(future.result())
                done += size
                if progress is not None:
                    progress(done, total)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    return outcomes


def _compared(
    pair: Pair, taken: Range, readers: Mapping[Path, ShardFile], search: Search
) -> _Outcome:
    importance = pair.importance.of(taken.start // pair.together) if pair.importance else None
    source = pair.source.source
    try:
        blocks = encoded(source, taken.start, taken.stop, pair.qtype, importance, search)
    except NotFiniteError as e:
        row = taken.start + e.row
        return _Outcome(1, row, f"row {row} of the source holds a number that is not finite")
    there = np.empty_like(blocks)
    at = pair.file.data_offset + pair.tensor.offset + taken.start * blocks.shape[1]
    readers[pair.file.path].read(at, there.reshape(-1))
    wrong = (there != blocks).any(axis=1)
    n_wrong = int(wrong.sum())
    return _Outcome(n_wrong, taken.start + int(wrong.argmax()) if n_wrong else 0)


def _fault(pair: Pair, outcomes: Sequence[_Outcome], model: str, maker: Maker) -> Fault | None:
    """Say where a tensor differs first."""
    bad = [o for o in outcomes if o.n_wrong]
    if not bad:
        return None
    first = min(bad, key=lambda o: o.first)
    total = sum(o.n_wrong for o in bad)
    effort = "" if pair.qtype.is_float else f", effort {maker.effort}"
    more = f"; {total:,} of the rows compared differ" if total > 1 else ""
    what = first.failure or (
        f"row {first.first} of {pair.source.n_rows} is not what {model} gives as {pair.qtype.name}"
        f"{effort}{more}"
    )
    at = pair.file.data_offset + pair.tensor.offset + first.first * pair.row_size
    return Fault(what, pair.file.path, pair.tensor.name, at)
