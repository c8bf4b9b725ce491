"""Compare a GGUF with its source: encode rows again, with the file's types and effort."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from math import prod
from pathlib import Path

import numpy as np

from dynquant.arch.load import Mla
from dynquant.checkpoint.gguf_shards import Shards, first_file, open_gguf
from dynquant.conversion.write import default_threads
from dynquant.errors import VerificationError
from dynquant.feedback.decided import Decisions
from dynquant.figures import counted
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.measure.sample import Candidate, Range, draw, encode_rows
from dynquant.plan.objective import search_for
from dynquant.quants.codec import NotFiniteError
from dynquant.quants.search import Effort
from dynquant.tensors import ShardFile
from dynquant.verification.ahead import in_order
from dynquant.verification.findings import Comparison, Fault
from dynquant.verification.keys import NOTHING, ComparedKeys, compare_keys
from dynquant.verification.lints import value_of
from dynquant.verification.maker import Maker, load_source
from dynquant.verification.other_source import (
    MAX_EACH,
    another_model,
    covered,
    joined,
    other_bytes,
    share,
)
from dynquant.verification.pairing import Pair, Pairing

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
    moments: Moments | None = None,
    mla: Mla = "split",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Encode rows of a model with the types of a GGUF and compare the bytes.

    path: the file; threads, progress: as in `Comparer.run`; the others as in `prepare`
    """
    shards = open_gguf(first_file(path))
    comparer = prepare(
        shards, model, tensors=tensors, sample=sample, imatrix=imatrix, moments=moments, mla=mla
    )
    return comparer.run(threads=threads, progress=progress)


def prepare(
    shards: Shards,
    model: str,
    *,
    tensors: str | None = None,
    sample: int | None = None,
    imatrix: Imatrix | None = None,
    moments: Moments | None = None,
    mla: Mla = "split",
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
) -> Comparer:
    """Prepare a comparison from headers alone, so that errors are found before any row is read.

    model:   the model as `load_model` takes it
    tensors: a glob; all rows of the tensors whose names match are compared
    sample:  compare this many ranges of rows instead; the seed is computed from the file's header
    imatrix: the imatrix that the file was made with; moments: likewise
    leave_out: as in `load_model`; without any, those of the manifest beside the file
    merge_adapter: the adapters that were merged into the file; base: as in `load_model`

    Raises VerificationError if the file cannot be compared as requested, and another kind of
    DynquantError if the model cannot be read.
    """
    maker = Maker.of(shards)
    VerificationError.raise_any(
        (*maker.wrong_imatrix(shards, imatrix), *maker.wrong_moments(shards, moments))
    )
    wanted = [
        t.name for _, t in shards.tensors() if tensors is None or fnmatchcase(t.name, tensors)
    ]
    if not wanted:
        raise VerificationError(
            f"{shards.path}: no tensor name matches {tensors!r}; `dynquant inspect` lists the names"
        )
    source = load_source(model, mla, shards, leave_out, merge_adapter, base)
    VerificationError.raise_any(maker.wrong_adapters(shards, source))
    if (other := another_model(shards, model, source)) is not None:
        nothing = (f"{counted(len(wanted), 'tensor')} against {model}: it is another model",)
        return Comparer(model, maker, shards, (), (), (other,), (), nothing)
    used = imatrix if maker.imatrix_sha256 else None
    pairing = Pairing(shards, source, maker, used, moments if maker.moments else None)
    pairs = tuple(pair for name in wanted if (pair := pairing.pair(name)) is not None)
    if sample is None and tensors is None:
        sample = SAMPLES
    ranges = None if sample is None else tuple(_drawn(shards, pairs, sample))
    missing = tuple(pairing.left_out()) if tensors is None else ()
    faults = tuple(joined(pairing.faults, len(wanted), shards, model))
    unchecked = (*maker.unchecked(), *pairing.unchecked)
    keys = compare_keys(shards, source, model)
    return Comparer(
        model, maker, shards, pairs, ranges, faults, missing, unchecked, keys, pairing.moments
    )


@dataclass(frozen=True)
class Comparer:
    """A comparison that is ready to run.

    ranges:    the ranges of rows to compare; None for all rows of `pairs`
    faults:    faults that were found from the headers
    missing:   warnings about tensors that are not in the file
    unchecked: what cannot be compared, and why
    keys:      of the comparison of keys
    moments:   of the tensors that were encoded with error feedback; None without any
    """

    model: str
    maker: Maker
    shards: Shards
    pairs: tuple[Pair, ...]
    ranges: tuple[Range, ...] | None
    faults: tuple[Fault, ...]
    missing: tuple[str, ...]
    unchecked: tuple[str, ...]
    keys: ComparedKeys = NOTHING
    moments: Moments | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the rows to compare."""
        if self.ranges is None:
            return sum(pair.tensor.n_bytes for pair in self.pairs)
        return sum((r.stop - r.start) * self.pairs[r.index].row_size for r in self.ranges)

    def run(
        self,
        *,
        threads: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Comparison:
        """Encode the rows and compare them with the file.

        threads:  None uses one for each CPU
        progress: called with the bytes of blocks done and the total

        Raises CheckpointError if the file or the model cannot be read.
        """
        readers = {p.file.path: ShardFile(p.file.path) for p in self.pairs}
        tally = _Tally(self.pairs)
        total = self.n_bytes
        decisions = Decisions(self.moments) if self.moments else None

        def compare_range(taken: Range) -> _Outcome:
            return _compared(self.pairs[taken.index], taken, readers, self.maker.effort, decisions)

        ranges = _whole(self.pairs) if self.ranges is None else self.ranges
        for taken, outcome in in_order(ranges, compare_range, threads or default_threads()):
            tally.add(taken, outcome)
            if progress is not None:
                progress(tally.n_bytes, total)
        return self._comparison(tally)

    def _comparison(self, tally: _Tally) -> Comparison:
        wrong = tally.wrong.items()
        faults = [_fault(self.pairs[i], outcome, self.model, self.maker) for i, outcome in wrong]
        # A few tensors that were asked for may all be damaged; a few that were drawn hardly are.
        all_drawn = self.ranges is not None and 1 < len(faults) == len(tally.seen)
        if len(faults) > MAX_EACH or all_drawn:
            faults = [other_bytes(faults, len(tally.seen), self.shards, self.model)]
        rows = (self._extent(tally),) if self.pairs else ()
        return Comparison(
            (*self.faults, *faults),
            (*self.missing, *self.keys.warnings),
            (*rows, *self.keys.checked),
            self.unchecked,
        )

    def _extent(self, tally: _Tally) -> str:
        """Return how much was compared, and how to compare all."""
        extent = "all rows" if self.ranges is None else f"{tally.n_ranges} ranges of rows"
        weights = sum(prod(t.shape) for _, t in self.shards.tensors())
        compared = tally.n_weights
        is_part = self.ranges is not None or len(self.pairs) < sum(1 for _ in self.shards.tensors())
        hint = "; --tensors '*' compares all" if is_part and compared < weights else ""
        return (
            f"against {self.model}: {extent} of {counted(len(tally.seen), 'tensor')},"
            f" {compared:,} of {weights:,} weights ({share(compared, weights)}),"
            f" {self.n_bytes / 1e6:.1f} MB encoded again{hint}"
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
        self._rows: dict[int, list[tuple[int, int]]] = {}

    @property
    def n_weights(self) -> int:
        """Number of weights that were compared; ranges may overlap."""
        return sum(
            n * self._pairs[index].source.n_per_row for index, n in covered(self._rows).items()
        )

    def add(self, taken: Range, outcome: _Outcome) -> None:
        """Add the result of one range."""
        self.seen.add(taken.index)
        self._rows.setdefault(taken.index, []).append((taken.start, taken.stop))
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
    pair: Pair,
    taken: Range,
    readers: Mapping[Path, ShardFile],
    effort: Effort,
    decisions: Decisions | None,
) -> _Outcome:
    search = search_for(pair.tensor.name, effort)
    matrix = taken.start // pair.together
    importance = pair.importance.of(matrix) if pair.importance else None
    mean = pair.importance.mean(matrix) if pair.importance else None
    source = pair.source.source
    fed = pair.fed(search)
    feedback = decisions.of(fed, matrix) if decisions and fed else None
    try:
        encoded = encode_rows(
            source, taken.start, taken.stop, pair.qtype, importance, search, mean, feedback
        )
    except NotFiniteError as e:
        row = taken.start + e.row
        return _Outcome(1, row, f"row {row} of the source has a number that is not finite")
    blocks = encoded.blocks
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
