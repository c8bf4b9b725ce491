"""Merges imatrix files of one model: sums and counts are added."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from dynquant.arrays import F32
from dynquant.distribution import our_version
from dynquant.errors import ImportanceError, Problems
from dynquant.importance.entry import Entry
from dynquant.importance.imatrix import Imatrix, read_imatrix, write_imatrix
from dynquant.keys import Keys, string, strings
from dynquant.name_lists import grouped

_SAME = tuple(f"dynquant.imatrix.{key}" for key in ("model", "token_weights", "device"))
_LISTS = tuple(f"dynquant.imatrix.text_{key}" for key in ("sha256", "form"))


def merge_imatrices(paths: Sequence[Path], out: Path) -> tuple[str, ...]:
    """Write the imatrix of all texts that the given files were made from; return warnings.

    A tensor that is missing in some files has the sums of the others. Signed sums are written for
    tensors of which all files have them.

    Raises ImportanceError with all files that cannot be read, and for files of different models.
    """
    problems = Problems()
    if len(paths) < 2:
        raise ImportanceError("one file is nothing to merge; give two or more")
    found = [problems.attempt(lambda path=path: read_imatrix(path)) for path in paths]
    problems.raise_any(ImportanceError)
    files = [file for file in found if file is not None]
    ImportanceError.raise_any(_unfit(files))
    entries: dict[str, tuple[F32, Sequence[int]]] = {}
    linear: dict[str, F32] = {}
    for name in dict.fromkeys(name for file in files for name in file.entries):
        same = [file.entries[name] for file in files if name in file.entries]
        shape = same[0].n_rows, same[0].n_per_row
        entries[name] = _total([e.sums(0, e.n_values) for e in same]).reshape(shape), _counts(same)
        signed = [e.linear_sums(0, e.n_values) for e in same]
        if all(s is not None for s in signed):
            linear[name] = _total([s for s in signed if s is not None]).reshape(shape)
    part = out.with_name(f"{out.name}.part")
    if part.resolve() in {path.resolve() for path in paths}:
        raise ImportanceError(f"{part}: is a file that this command reads; name another output")
    try:
        write_imatrix(
            part,
            entries,
            datasets=[name for file in files for name in file.datasets],
            chunk_count=sum(file.chunk_count or 0 for file in files),
            chunk_size=files[0].chunk_size or 0,
            linear=linear,
            more_keys=_keys(files),
        )
        part.replace(out)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ImportanceError(f"{out}: cannot be written: {e.strerror}") from e
    return (*_partial(files, entries.keys()), *_unsigned(files, linear))


def _keys(files: Sequence[Imatrix]) -> Keys:
    """Return what dynquant recorded in all files: what is the same, and the lists of texts."""
    found = {"dynquant.version": string(our_version())}
    for name in _SAME:
        said = {file.made.get(name) for file in files}
        if len(said) == 1 and (text := said.pop()):
            found[name] = string(text)
    for name in _LISTS:
        if all(name in file.made for file in files):
            found[name] = strings([v for file in files for v in file.made[name].split(", ")])
    return found


def _total(parts: Sequence[F32]) -> F32:
    """Return the sum of arrays, added in double precision."""
    total = np.zeros(parts[0].shape, np.float64)
    for part in parts:
        total += part
    return total.astype(np.float32)


def _counts(entries: Sequence[Entry]) -> list[int]:
    return [sum(counts) for counts in zip(*(entry.counts for entry in entries), strict=True)]


def _unfit(files: Sequence[Imatrix]) -> Iterator[str]:
    """Yield messages for files that cannot be added."""
    for file in files:
        if file.chunk_size is None:
            yield (
                f"{file.path}: is of llama.cpp's older format, which has no counts of tokens; write"
                " it as a GGUF first (llama-imatrix --in-file)"
            )
    first = files[0]
    by_hash: dict[str, Imatrix] = {}
    for file in files:
        other = by_hash.setdefault(file.sha256, file)
        if other is not file:
            yield f"{file.path}: is the same file as {other.path}; its text would count twice"
    for file in files[1:]:
        if not (common := first.entries.keys() & file.entries.keys()):
            yield f"{file.path}: is of another model than {first.path}: no tensor is in both"
        other = [
            name
            for name in sorted(common)
            if _shape(first.entries[name]) != _shape(file.entries[name])
        ]
        if other:
            yield (
                f"{file.path}: is of another model than {first.path}: other sizes of"
                f" {', '.join(grouped(other))}"
            )
        if None not in (first.chunk_size, file.chunk_size) and file.chunk_size != first.chunk_size:
            yield (
                f"{file.path}: has chunks of {file.chunk_size} tokens, {first.path} of"
                f" {first.chunk_size}; make both with the same context"
            )


def _shape(entry: Entry) -> tuple[int, int]:
    return entry.n_rows, entry.n_per_row


def _unsigned(files: Sequence[Imatrix], linear: Mapping[str, F32]) -> Iterator[str]:
    """Yield a warning if signed sums are lost, because some files have none."""
    names = {name for file in files for name, e in file.entries.items() if e.linear is not None}
    if lost := sorted(names - linear.keys()):
        without = ", ".join(
            str(file.path)
            for file in files
            if any(name in file.entries and file.entries[name].linear is None for name in lost)
        )
        yield f"{without}: has no signed sums; the result has none of {', '.join(grouped(lost))}"


def _partial(files: Sequence[Imatrix], names: Iterable[str]) -> Iterator[str]:
    """Yield a warning for each file without some of the tensors."""
    for file in files:
        if missing := sorted(set(names) - file.entries.keys()):
            yield f"{file.path}: has no data of {', '.join(grouped(missing))}"
