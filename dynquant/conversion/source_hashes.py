"""Hashes of the files that a conversion reads, taken while it reads them.

Each file is hashed from its beginning to its end, in the order of first use, piece by piece, by the
threads that encode: a bounded way ahead of what is encoded, so that this is in the page cache then
and the disk is read once. Bytes that no tensor lies in are hashed, too. No thread waits for a hash:
where many encode, those of several files are under way, and are as far behind as sha256 is slower.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from dynquant.arrays import U8
from dynquant.checkpoint.hub import known_sha256
from dynquant.conversion.identity import source_of
from dynquant.conversion.manifest import Source, plain
from dynquant.plan.plan import Plan
from dynquant.tensors import ShardFile, parts_of

SourceHashes = Literal["auto", "read", "none"]
"""auto: what the Hub tells of its files, and what is read of others; none: no hashes but those of
the headers."""

SOURCE_HASHES: tuple[SourceHashes, ...] = get_args(SourceHashes)

AHEAD = 32 << 20
"""Bytes that hashing is ahead of the encoders at most."""

PIECE = 1 << 20
"""Bytes that are hashed at a time."""


@dataclass
class _File:
    """A file to hash; start: where it begins in all files, one after the other."""

    path: Path
    start: int
    n_bytes: int
    header: str
    sha256: str | None = None
    known_from: Literal["read", "hub"] | None = None
    readers: list[ShardFile] = field(default_factory=list[ShardFile])

    @property
    def reached(self) -> int:
        """Where the furthest read of the encoders ended."""
        return max((reader.reached for reader in self.readers), default=0)


class _Hashing:
    """A file that is being hashed, by one thread at a time."""

    def __init__(self, file: _File) -> None:
        self.file = file
        self.position = 0
        self.is_taken = False
        self._reader = ShardFile(file.path)
        self._digest = hashlib.sha256()

    def step(self, piece: U8) -> None:
        """Hash the next piece."""
        wanted = piece[: self.file.n_bytes - self.position]
        self._reader.read(self.position, wanted)
        self._digest.update(wanted.data)
        self.position += len(wanted)
        if self.position == self.file.n_bytes:
            self.file.sha256, self.file.known_from = self._digest.hexdigest(), "read"


class SourceDigests:
    """The hashes of a plan's source files; callable from several threads at once.

    n_bytes: of all files
    """

    def __init__(self, plan: Plan, wanted: SourceHashes, first: int | None) -> None:
        """Look at the files.

        first: the number of the first tensor of which rows are to be read; None where all are done
        """
        self._files: dict[Path, _File] = {}
        start = 0
        for path in plan.source_files:
            facts = source_of(path)
            file = _File(path, start, facts["bytes"], facts["header"])
            start += file.n_bytes
            self._files[path] = file
            if wanted == "auto" and (known := known_sha256(path)):
                file.sha256, file.known_from = known, "hub"
        self._order = list(self._files.values())
        numbers = {file.path: number for number, file in enumerate(self._order)}
        self._furthest: list[int] = []
        for t in plan.tensors:
            read = list(parts_of(plan.sources[t.name].source, ShardFile))
            self._furthest.append(max((numbers[reader.path] for reader in read), default=0))
            for reader in read:
                if reader not in (readers := self._files[reader.path].readers):
                    readers.append(reader)
        self.n_bytes = start
        unknown = [] if wanted == "none" else [f for f in self._files.values() if not f.sha256]
        self._left = [_Hashing(file) for file in unknown]
        self._front = 0
        self._floor = self._start_of(plan, first)
        self._lock = threading.Lock()

    def _start_of(self, plan: Plan, first: int | None) -> float:
        """Return where the encoders begin; what lies before, they do not come for."""
        if first is None:
            return math.inf
        readers = parts_of(plan.sources[plan.tensors[first].name].source, ShardFile)
        return min((self._files[r.path].start for r in readers), default=0)

    def step(self, piece: U8) -> bool:
        """Hash the next piece that is due, unless there is none; return whether there was.

        piece: PIECE bytes of memory

        Raises CheckpointError if the file cannot be read.
        """
        with self._lock:
            hashing = self._next()
            if hashing is None:
                return False
            hashing.is_taken = True
        hashing.step(piece)
        with self._lock:
            hashing.is_taken = False
            if hashing.file.sha256:
                self._left.remove(hashing)
        return True

    def _next(self) -> _Hashing | None:
        """Return the first file that nobody hashes, if it is due; those after it are not, then."""
        found = next((h for h in self._left if not h.is_taken), None)
        if found is None:
            return None
        position = found.file.start + found.position
        return found if position <= max(self._floor, self._reached()) + AHEAD else None

    def _reached(self) -> int:
        """Return how far the encoders are in all files, one after the other."""
        return self._order[self._front].start + self._order[self._front].reached

    def arrive(self, tensor: int) -> None:
        """Take note that the encoders are at a tensor, whose number in the plan it is."""
        with self._lock:
            self._front = max(self._front, self._furthest[tensor])

    def release(self) -> None:
        """All that is left is due: the encoders have read all that they need."""
        self._floor = math.inf

    def is_reading(self, path: Path) -> bool:
        """Whether a file is still to be hashed, or being so."""
        return any(hashing.file.path == path for hashing in list(self._left))

    def sources(self) -> list[Source]:
        """Return what is known of each file, in the order of first use, when all are hashed."""
        return [
            Source(
                name=plain(file.path.name),
                bytes=file.n_bytes,
                header_sha256=file.header,
                sha256=file.sha256,
                sha256_from=file.known_from,
            )
            for file in self._files.values()
        ]
