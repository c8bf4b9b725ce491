"""The journal of a conversion: which rows are on the disk, and what decides the bytes of all.

`OUT.gguf.journal` lies beside the `.part` files and is there only while they are. It begins with a
line of JSON, the identity of the conversion, and goes on with records of one size, each with a
checksum of its own, so that one that was torn by a crash is known as such and all after it are
dropped; what is added comes in their place.

    line     the identity, JSON in UTF-8, its first member the version of this format
    records  see records.py

A record is appended when the rows are safe: the files are synced first, the journal after them. So
what a record tells survives a power loss, and what is lost are the rows of the seconds since the
last sync, and those that were being encoded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, cast

from dynquant.conversion.disk import locked_file, os_errors_as, sync_file
from dynquant.conversion.jobs import Done
from dynquant.conversion.records import SIZE, Records, n_whole, packed
from dynquant.errors import ConvertError
from dynquant.untrusted import parse_json

_VERSION = {"dynquant journal": 1}
_BEGIN = b'{"dynquant journal":'

_PIECE = SIZE << 14
"""Bytes that are read at a time, whole records."""

_MAX_IDENTITY = 64 << 20
"""Bytes of an identity that is read: R1's, of 163 shards and 1,025 tensors, has 0.1 MB."""

Identity = dict[str, Any]


def journal_path(out: Path) -> Path:
    """Return the name of the journal of an output."""
    return out.with_name(out.name + ".journal")


class Journal:
    """The journal of one output, locked: nobody else writes the same one meanwhile.

    is_new: it was made, or was empty
    """

    def __init__(self, out: Path) -> None:
        """Open or make it; raise ConvertError if another run has it."""
        self.path = journal_path(out)
        with os_errors_as(self.path, "cannot be made"):
            self._fd = locked_file(self.path)
            self.is_new = os.fstat(self._fd).st_size == 0
        self._end = 0

    def read(self, *, anew: bool = False) -> tuple[Identity | None, Records]:
        """Return the identity and the rows that are done; None and nothing of an empty journal.

        anew: to be overwritten anyway

        Raises ConvertError if the file is something else than a journal, which is left alone.
        """
        with os_errors_as(self.path, "cannot be read"):
            head = _read(self._fd, 0, _PIECE)
            while b"\n" not in head and len(head) < _MAX_IDENTITY:
                if not (more := _read(self._fd, len(head), _PIECE)):
                    break
                head += more
        line, newline, _ = head.partition(b"\n")
        if not _may_be_ours(head) and not anew:
            raise ConvertError(
                f"{self.path}: is not a journal of a conversion; move it away, or begin anew"
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
        """Forget, also after a power loss, what it says: the files it tells of are to go."""
        with os_errors_as(self.path, "cannot be written"):
            self._end = 0
            self._append(b"")

    def begin(self, identity: Mapping[str, Any], done: Iterable[Done] = ()) -> None:
        """Write the journal anew: an identity, and the rows that are known to be there."""
        line = json.dumps(_VERSION | dict(identity), separators=(",", ":")).encode() + b"\n"
        with os_errors_as(self.path, "cannot be written"):
            self._end = 0
            self._append(line + b"".join(map(packed, done)))

    def add(self, done: Iterable[Done]) -> None:
        """Append rows whose blocks are safe on the disk."""
        with os_errors_as(self.path, "cannot be written"):
            self._append(b"".join(map(packed, done)))

    def _append(self, content: bytes) -> None:
        """Put content behind what is whole, in the place of what is not, and sync."""
        os.ftruncate(self._fd, self._end)
        view, position = memoryview(content), self._end
        while view:
            n = os.pwrite(self._fd, view, position)
            view, position = view[n:], position + n
        sync_file(self._fd)
        self._end = position

    def remove(self) -> None:
        """Take the journal away."""
        with os_errors_as(self.path, "cannot be removed"):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the journal, and give the lock back; what it says stays."""
        os.close(self._fd)


def _read(fd: int, position: int, n_bytes: int) -> bytes:
    """Return n_bytes at a position, or what there is of them; reads may be short."""
    found = b""
    while more := os.pread(fd, n_bytes - len(found), position + len(found)):
        found += more
    return found


def _may_be_ours(head: bytes) -> bool:
    """Whether a file that begins so is a journal, or what a crash may make of a new one."""
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
    """Return what differs between two identities, as people would say it."""
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
    text = "not there" if value is None else str(value)
    return text if len(text) <= 40 else text[:16] + "…"


def refuse_changed(path: Path, before: Identity, now: Identity) -> None:
    """Raise ConvertError, with all that changed, if a journal is of another conversion."""
    differences = changed(before, now)
    # The header, which has keys for the recipe, effort and others, changes with them.
    differences = [d for d in differences if not d.startswith("plan was ")] or differences
    if differences:
        raise ConvertError(
            *(
                f"{path}: {what}; the rows that are there are of the conversion before: make it"
                " what it was, or begin anew (--restart)"
                for what in differences
            )
        )
