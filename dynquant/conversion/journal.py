"""The journal of a conversion: which rows are on the disk, and what decides the bytes of all.

`OUT.gguf.journal` lies beside the `.part` files and is there only while they are. It begins with a
line of JSON, the identity of the conversion, and goes on with records of one size, each with a
checksum of its own, so that one that was torn by a crash is known as such and all after it are
dropped.

    line     the identity, JSON in UTF-8
    records  u32 number of the tensor, u64 first row, u64 last row + 1, u64 xxh3_64 of the blocks,
             five f64 sums of errors, u32 crc32 of the record so far; little-endian

A record is appended when the rows are safe: the files are synced first, the journal after them. So
what a record tells survives a power loss, and what is lost are the rows of the seconds since the
last sync, and those that were being encoded.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynquant.conversion.jobs import Done
from dynquant.conversion.output import locked_file, told
from dynquant.errors import ConvertError
from dynquant.untrusted import parse_json

N_SUMS = 5
_RECORD = struct.Struct(f"<IQQQ{N_SUMS}d")
_CHECK = struct.Struct("<I")
_SIZE = _RECORD.size + _CHECK.size

_MAX_RECORDS = 1 << 22
"""Records that are read: as many chunks of a megabyte are 4 TB. What follows is made again."""

_MAX_IDENTITY = 8 << 20
"""Bytes of an identity that is read: R1's, of 163 shards and 1,025 tensors, has 0.1 MB."""

Identity = dict[str, Any]

COMPLETE = Done(2**32 - 1, 0, 0, 0, (0.0,) * N_SUMS)
"""The record that all rows are there and synced: what is left is to give the files their names."""


def journal_path(out: Path) -> Path:
    """Return the name of the journal of an output."""
    return out.with_name(out.name + ".journal")


class Journal:
    """The journal of one output, locked: nobody else writes the same one meanwhile."""

    def __init__(self, out: Path) -> None:
        """Open or make it; raise ConvertError if another run has it."""
        self.path = journal_path(out)
        with told(self.path, "cannot be made"):
            self._fd = locked_file(self.path)

    def read(self) -> tuple[Identity | None, list[Done]]:
        """Return the identity and the rows that are done; None and nothing of a new journal."""
        with told(self.path, "cannot be read"):
            size = os.fstat(self._fd).st_size
            head = os.pread(self._fd, min(size, _MAX_IDENTITY), 0)
        line, newline, _ = head.partition(b"\n")
        if not newline:
            return None, []
        try:
            identity = parse_json(line.decode())
        except ValueError:
            return None, []
        if not isinstance(identity, dict):
            return None, []
        records: list[Done] = []
        position = len(line) + 1
        with told(self.path, "cannot be read"):
            while len(content := os.pread(self._fd, _SIZE * 65536, position)) >= _SIZE:
                if len(records) >= _MAX_RECORDS:
                    break
                for start in range(0, len(content) - _SIZE + 1, _SIZE):
                    record = content[start : start + _RECORD.size]
                    (check,) = _CHECK.unpack_from(content, start + _RECORD.size)
                    if zlib.crc32(record) != check:
                        return identity, records  # type: ignore[reportUnknownVariableType]
                    tensor, first, stop, checksum, *sums = _RECORD.unpack(record)
                    records.append(Done(tensor, first, stop, checksum, tuple(sums)))
                position += len(content) // _SIZE * _SIZE
        return identity, records  # type: ignore[reportUnknownVariableType]

    def begin(self, identity: Mapping[str, Any], done: Iterable[Done] = ()) -> None:
        """Write the journal anew: an identity, and the rows that are known to be there."""
        line = json.dumps(identity, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        with told(self.path, "cannot be written"):
            os.ftruncate(self._fd, 0)
            self._append(line + b"".join(map(_packed, done)))

    def add(self, done: Iterable[Done]) -> None:
        """Append rows whose blocks are safe on the disk."""
        with told(self.path, "cannot be written"):
            self._append(b"".join(map(_packed, done)))

    def _append(self, content: bytes) -> None:
        end = os.fstat(self._fd).st_size
        view = memoryview(content)
        while view:
            n = os.pwrite(self._fd, view, end)
            view, end = view[n:], end + n
        os.fsync(self._fd)

    def remove(self) -> None:
        """Take the journal away; the output is whole."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal, and give the lock back; what it says stays."""
        os.close(self._fd)


def _packed(done: Done) -> bytes:
    sums = (*done.sums, *[0.0] * (N_SUMS - len(done.sums)))
    record = _RECORD.pack(done.tensor, done.start, done.stop, done.checksum, *sums)
    return record + _CHECK.pack(zlib.crc32(record))


def changed(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return what differs between two identities, as people would say it."""
    found: list[str] = []
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key), now.get(key)
        name = f"{where}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            found += changed(old, new, f"{name}: ")  # type: ignore[reportUnknownArgumentType]
        elif old != new:
            found.append(f"{name} was {_shown(old)} and is {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    text = "not there" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


def refuse_changed(path: Path, before: Identity, now: Identity) -> None:
    """Raise ConvertError, with all that changed, if a journal is of another conversion."""
    differences = changed(before, now)
    if differences:
        raise ConvertError(
            *(
                f"{path}: {what}; the rows that are there are of the conversion before: make it"
                " what it was, or begin anew (--restart)"
                for what in differences
            )
        )
