"""The imatrix file of llama.cpp: the mean squared activation of each input channel of each tensor.

For every matrix product of a calibration run, the squares of its inputs are summed for each input
channel. A GGUF holds two F32 tensors for each weight tensor:

    <tensor>.in_sum2   [n_rows, n_per_row]  sums; a row for each expert, or one for all
    <tensor>.counts    [n_rows, 1]          tokens that were summed
    <tensor>.in_sum    [n_rows, n_per_row]  sums of the inputs themselves, with their signs; only in
                                            files of dynquant, and ignored by llama.cpp
    keys: general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size

Source: tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp in llama.cpp. The older format is in
legacy.py.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import numpy as np
from gguf import GGUFWriter

from dynquant.arrays import F32, U8
from dynquant.checkpoint.gguf import GGUFFile, GGUFTensor, read_gguf
from dynquant.errors import CheckpointError, ImportanceError
from dynquant.importance.entry import Entry, Found
from dynquant.importance.legacy import read_legacy
from dynquant.importance.moments import is_moments
from dynquant.keys import Keys, string, strings, u32
from dynquant.name_lists import grouped
from dynquant.tensors import ShardFile
from dynquant.untrusted import open_regular, shown

SUMS, COUNTS, LINEAR = ".in_sum2", ".counts", ".in_sum"
MAX_BYTES = 1 << 34
"""Bytes of a file: 16 GiB, about ten times the imatrix of a model of 10^12 weights."""

MAX_ROWS = 1 << 16
"""Rows of a tensor's sums: one for each expert; llama.cpp has at most 512."""

_PIECE = 1 << 18  # values that are checked at a time: a megabyte


@dataclass(frozen=True)
class Imatrix:
    """An imatrix file, checked: every value is finite and not negative.

    datasets:    names of the calibration texts, as in the file
    chunk_count: number of chunks of calibration text; None if the file does not state it
    chunk_size:  tokens of a chunk; None if the file does not state it, as in the older format
    is_older:    it has the older format, whose counts are not those of tokens
    made:        what dynquant recorded about how it made the file, by key, as text
    """

    path: Path
    entries: Mapping[str, Entry] = field(repr=False)
    datasets: tuple[str, ...]
    chunk_count: int | None
    sha256: str
    chunk_size: int | None = None
    is_older: bool = False
    made: Mapping[str, str] = field(default_factory=dict[str, str])


def read_imatrix(path: Path) -> Imatrix:
    """Read an imatrix in either of llama.cpp's formats.

    Raises ImportanceError with the file and the byte offset of the problem, or with the names of
    all tensors that have a value which cannot be a mean square.
    """
    try:
        with open_regular(path) as file:
            if is_moments(file):
                raise ImportanceError(
                    f"{path}: is a file of second moments, not an imatrix; give it as --moments,"
                    " and the imatrix beside it as --imatrix"
                )
            size = file.seek(0, 2)
            if size > MAX_BYTES:
                raise ImportanceError(f"{path}: {size} bytes; at most {MAX_BYTES} are read")
            file.seek(0)
            file.seek(0)
            is_gguf = file.read(4) == b"GGUF"
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            header = read_gguf(path) if is_gguf else None
            found = _of_gguf(header) if header else read_legacy(path, file)
        entries, datasets, chunk_count = found
        ImportanceError.raise_any(_unsound(path, entries))
    except CheckpointError as e:
        raise ImportanceError(*e.messages) from e
    except OSError as e:
        raise ImportanceError(f"{path}: cannot be read: {e.strerror}") from e
    chunk_size = _natural(header, "imatrix.chunk_size") if header else None
    return Imatrix(
        path,
        {e.name: e for e in entries},
        datasets,
        chunk_count,
        sha256,
        chunk_size,
        is_older=header is None,
        made=_made(header) if header else {},
    )


def _made(file: GGUFFile) -> dict[str, str]:
    """Return the keys of dynquant as text."""
    found = {n: k.value for n, k in file.keys.items() if n.startswith("dynquant.")}
    return {n: ", ".join(map(str, v)) if isinstance(v, tuple) else str(v) for n, v in found.items()}


def _of_gguf(file: GGUFFile) -> Found:
    """Pair sums and counts; other tensors are ignored, because another program wrote them."""
    sums = {t.name.removesuffix(SUMS): t for t in file.tensors if t.name.endswith(SUMS)}
    counts = {t.name.removesuffix(COUNTS): t for t in file.tensors if t.name.endswith(COUNTS)}
    kind = file.keys.get("general.type")
    if (kind is not None and kind.value != "imatrix") or not (sums or counts):
        has = (
            f"general.type is {shown(kind.value)}"
            if kind is not None
            else f"no tensor has a name that ends in {SUMS}"
        )
        raise ImportanceError(f"{file.path}: a GGUF, but not an imatrix: {has}")
    ImportanceError.raise_any(
        [
            *_unpaired(file.path, sums.keys() - counts.keys(), SUMS, COUNTS),
            *_unpaired(file.path, counts.keys() - sums.keys(), COUNTS, SUMS),
        ]
        or _misfits(file, sums, counts)
    )
    shard = ShardFile(file.path)
    linear = {
        t.name.removesuffix(LINEAR): _place(file, t)
        for t in file.tensors
        if t.name.endswith(LINEAR) and _is_like(t, sums.get(t.name.removesuffix(LINEAR)))
    }
    entries = [
        Entry(
            name,
            shard,
            _place(file, t),
            t.shape[-1],
            _counts(file, shard, counts[name]),
            linear.get(name),
        )
        for name, t in sums.items()
    ]
    return entries, _datasets(file), _natural(file, "imatrix.chunk_count")


def _is_like(tensor: GGUFTensor, sums: GGUFTensor | None) -> bool:
    """Return whether a tensor has the type and shape of the sums of squares."""
    return sums is not None and (tensor.type_name, tensor.shape) == (sums.type_name, sums.shape)


def _place(file: GGUFFile, t: GGUFTensor) -> int:
    return file.data_offset + t.offset


def _unpaired(path: Path, names: Iterable[str], found: str, missing: str) -> Iterator[str]:
    for name in grouped(sorted(names)):
        yield f"{path}: {name + found!r} has no matching {missing}; the file is damaged"


def _misfits(
    file: GGUFFile, sums: Mapping[str, GGUFTensor], counts: Mapping[str, GGUFTensor]
) -> Iterator[str]:
    for name in sums:
        for t in (sums[name], counts[name]):
            at = f"{file.path}: byte {_place(file, t)}: {t.name!r}"
            if not name or not name.isprintable():
                yield f"{at} is not a printable name"
            elif t.type_name != "F32" or not t.shape:
                yield f"{at} is {t.type_name} {list(t.shape)}; an imatrix has rows of F32"
            elif t is counts[name] and prod(t.shape) > MAX_ROWS:
                yield f"{at} has {prod(t.shape)} rows; at most {MAX_ROWS} experts are supported"
            elif t is counts[name] and prod(t.shape) != prod(sums[name].shape[:-1]):
                yield f"{at} {list(t.shape)} is not a count for each row of {sums[name].name!r}"


def _datasets(file: GGUFFile) -> tuple[str, ...]:
    found = file.keys.get("imatrix.datasets")
    names = found.value if found is not None else ()
    if not isinstance(names, tuple) or not all(isinstance(n, str) for n in names):
        raise ImportanceError(f"{file.path}: imatrix.datasets is not a list of names")
    return tuple(str(n) for n in names)


def _natural(file: GGUFFile, name: str) -> int | None:
    """Return a key that is a count; None if the file does not have it."""
    found = file.keys.get(name)
    if found is None:
        return None
    if type(found.value) is not int or not 0 <= found.value < 1 << 32:
        raise ImportanceError(f"{file.path}: {name} is {shown(found.value)}, not a count")
    return found.value


def _counts(file: GGUFFile, shard: ShardFile, t: GGUFTensor) -> tuple[int, ...]:
    """Return counts as integers; llama.cpp stores them as floats and rounds them likewise."""
    at = _place(file, t)
    stored: U8 = np.empty(t.n_bytes, np.uint8)
    shard.read(at, stored)
    found = stored.view("<f4")
    bad = np.flatnonzero(~(np.isfinite(found) & (found >= 0)))
    if len(bad):
        raise ImportanceError(
            f"{file.path}: byte {at + 4 * int(bad[0])}: {t.name} has the count {found[bad[0]]}"
        )
    return tuple(int(n) for n in np.rint(found.astype(np.float64)))


def _unsound(path: Path, entries: Iterable[Entry]) -> Iterator[str]:
    """Yield messages for entries with values that cannot be mean squares."""
    kinds: dict[str, list[tuple[str, int]]] = {}
    for entry in entries:
        for start in range(0, entry.n_values, _PIECE):
            sums = entry.sums(start, min(start + _PIECE, entry.n_values))
            signed = entry.linear_sums(start, start + len(sums))
            for kind, bad in (
                ("not finite", ~np.isfinite(sums)),
                ("negative", sums < 0),
                *([("not finite", ~np.isfinite(signed))] if signed is not None else ()),
            ):
                found = kinds.setdefault(kind, [])
                if bad.any() and (not found or found[-1][0] != entry.name):
                    found.append((entry.name, entry.offset + 4 * (start + int(bad.argmax()))))
    for kind, found in kinds.items():
        if found:
            names = ", ".join(grouped(name for name, _ in found))
            yield (
                f"{path}: byte {found[0][1]}: values that are {kind}, in {names}; compute the"
                " imatrix again"
            )


def write_imatrix(
    path: Path,
    entries: Mapping[str, tuple[F32, Sequence[int]]],
    *,
    datasets: Sequence[str],
    chunk_count: int,
    chunk_size: int,
    linear: Mapping[str, F32] | None = None,
    more_keys: Keys | None = None,
) -> None:
    """Write an imatrix as a GGUF that llama-quantize reads.

    entries:    by tensor name, sums of squares float32 [n_rows, n_per_row] and a count for each
                row: one row, or one for each expert
    chunk_size: tokens in a chunk
    linear:     by tensor name, sums of the inputs themselves, float32 [n_rows, n_per_row]
    more_keys:  keys to add
    """
    writer = GGUFWriter(path, "imatrix")
    # GGUFWriter adds an architecture, which an imatrix does not have.
    writer.kv_data[0].clear()
    keys = {
        "general.type": string("imatrix"),
        **({"imatrix.datasets": strings(datasets)} if datasets else {}),  # no empty arrays in GGUF
        "imatrix.chunk_count": u32(chunk_count),
        "imatrix.chunk_size": u32(chunk_size),
    }
    for name, key in (keys | (more_keys or {})).items():
        writer.add_key_value(name, key.value, key.type, key.sub_type)
    for name, (sums, counts) in sorted(entries.items()):
        if sums.ndim != 2 or sums.dtype != np.float32 or len(counts) != len(sums):
            raise ImportanceError(
                f"{name}: sums must be float32 [n_rows, n_per_row] with a count for each row, not"
                f" {sums.dtype} {list(sums.shape)} with {len(counts)}"
            )
        writer.add_tensor(name + SUMS, np.ascontiguousarray(sums))
        writer.add_tensor(name + COUNTS, np.array(counts, np.float32).reshape(-1, 1))
        if linear is not None and name in linear:
            writer.add_tensor(name + LINEAR, np.ascontiguousarray(linear[name]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
