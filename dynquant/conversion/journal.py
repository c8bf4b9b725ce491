"""The journal of a conversion: the inputs that determine the output, and the rows on the disk.

`OUT.gguf.journal` lies beside the `.part` files and exists only as long as they do. It begins with
a line of JSON, the identity of the conversion. Records of one size follow, each with a checksum, so
that a record torn by a crash is recognized; it and all after it are dropped and overwritten.

    line     the identity, JSON in UTF-8, its first member the version of this format
    records  see records.py

A record is appended when its rows are safe: the files are synced first, then the journal. So a
record is true even after a power loss; rows since the last sync and rows that were being encoded
are lost.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from dynquant.conversion.disk import locked_file, os_errors_as, sync_file
from dynquant.conversion.jobs import Done
from dynquant.conversion.records import SIZE, Records, n_whole, packed
from dynquant.errors import ConvertError
from dynquant.systems import system
from dynquant.untrusted import parse_json

_VERSION = {"dynquant journal": 1}
_BEGIN = b'{"dynquant journal":'

_PIECE = SIZE << 14
"""Bytes read at a time: whole records."""

_MAX_IDENTITY = 64 << 20
"""Limit on the bytes of an identity: R1's, with 163 shards and 1,025 tensors, has 0.1 MB."""

Identity = dict[str, Any]


def journal_path(out: Path) -> Path:
    """Return the path of an output's journal."""
    return Path(f"{out}.journal")


class Journal:
    """A journal, locked against other runs.

    is_new: it was created, or was empty
    """

    def __init__(self, path: Path) -> None:
        """Open or create it; raise ConvertError if another run uses it."""
        self.path = path
        with os_errors_as(self.path, "cannot be created"):
            self._fd = locked_file(self.path)
            self.is_new = os.fstat(self._fd).st_size == 0
        self._is_open = True
        self._end = 0

    def read(self, *, discard: bool = False) -> tuple[Identity | None, Records]:
        """Return the identity and the rows that are done; None and no rows for an empty journal.

        discard: the content will be overwritten in any case

        Raises ConvertError if the file is not a journal; it is left unchanged.
        """
        with os_errors_as(self.path, "cannot be read"):
            head = _read(self._fd, 0, _PIECE)
            while b"\n" not in head and len(head) < _MAX_IDENTITY:
                if not (more := _read(self._fd, len(head), _PIECE)):
                    break
                head += more
        line, newline, _ = head.partition(b"\n")
        if not _may_be_ours(head) and not discard:
            raise ConvertError(
                f"{self.path}: is not a journal of a conversion; move it away, or start over"
                " (--restart)"
            )
        identity = _identity_in(line) if newline else None
        if identity is None:
            return None, Records()
        begin = self._end = len(line) + 1
        with os_errors_as(self.path, "cannot be read"):
            while content := _read(self._fd, self._end, _PIECE):
                n = n_whole(content)
                self._end += SIZE * n
                if SIZE * n < len(content):
                    break
            return identity, Records(_read(self._fd, begin, self._end - begin))

    def clear(self) -> None:
        """Erase the journal durably, because the files that it describes will be removed."""
        with os_errors_as(self.path, "cannot be written"):
            self._end = 0
            self._append(b"")

    def begin(self, identity: Mapping[str, Any], done: Iterable[Done] = ()) -> None:
        """Overwrite the journal with an identity and the rows that are done."""
        line = json.dumps(_VERSION | dict(identity), separators=(",", ":")).encode() + b"\n"
        with os_errors_as(self.path, "cannot be written"):
            self._end = 0
            self._append(line + b"".join(map(packed, done)))

    def add(self, done: Iterable[Done]) -> None:
        """Append records of rows whose blocks are safe on the disk."""
        with os_errors_as(self.path, "cannot be written"):
            self._append(b"".join(map(packed, done)))

    def _append(self, content: bytes) -> None:
        """Write content after the last whole record, and sync."""
        os.ftruncate(self._fd, self._end)
        view, position = memoryview(content), self._end
        while view:
            n = system().write_at(self._fd, view, position)
            view, position = view[n:], position + n
        sync_file(self._fd)
        self._end = position

    def remove(self) -> None:
        """Remove the journal."""
        with os_errors_as(self.path, "cannot be removed"):
            if not system().renames_open:
                self.close()
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal and release the lock; the file stays."""
        if self._is_open:
            self._is_open = False
            os.close(self._fd)


def _read(fd: int, position: int, n_bytes: int) -> bytes:
    """Return n_bytes at a position, or fewer at the end of the file."""
    found = bytearray(n_bytes)
    done = 0
    while n := system().read_at(fd, memoryview(found)[done:], position + done):
        done += n
    return bytes(found[:done])


def _may_be_ours(head: bytes) -> bool:
    """Whether a file with this beginning is a journal, or a new one after a crash."""
    begun = head[: len(_BEGIN)]
    return _BEGIN.startswith(begun) or not any(head[:4096])


def _identity_in(line: bytes) -> Identity | None:
    try:
        found = parse_json(line.decode())
    except ValueError:
        return None
    if not isinstance(found, dict):
        return None
    identity = cast(Identity, found)
    return {k: v for k, v in identity.items() if _VERSION.get(k) != v}


def changed(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return the differences between two identities, as messages."""
    found: list[str] = []
    for key in dict.fromkeys((*before, *now)):
        old, new = before.get(key), now.get(key)
        name = f"{where}{key}"
        if isinstance(old, dict) and isinstance(new, dict):
            parts = cast(Identity, old), cast(Identity, new)
            found += changed(*parts, f"{name}: ")
        elif old != new:
            found.append(f"{name} was {_shown(old)} and is {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    text = "absent" if value is None else str(value)
    text = re.sub(r"\b([0-9a-f]{12})[0-9a-f]{20,}\b", r"\1…", text)
    return text if len(text) <= 60 else text[:40] + "…"


def refuse_changed(path: Path, before: Identity, now: Identity) -> None:
    """Raise ConvertError with all differences if a journal belongs to another conversion."""
    differences = changed(before, now)
    # The header holds keys for the recipe, the effort and others, and changes with them.
    differences = [d for d in differences if not d.startswith("plan was ")] or differences
    if differences:
        raise ConvertError(
            *(
                f"{path}: {what}; the output holds rows of the earlier conversion: use the same"
                " inputs, or start over (--restart)"
                for what in differences
            )
        )
