"""Hashes of the files that a conversion reads, taken while it reads them.

Each file is hashed from its beginning to its end, in the order of first use, a bounded way ahead of
the encoders: what they come for is in the page cache then, and the disk is read once. Bytes that no
tensor lies in are hashed, too. Encoders that fall behind are waited for; hashes that fall behind
are not: these read from the cache what is still there.
"""

from __future__ import annotations

import hashlib
import math
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from dynquant.checkpoint.hub import known_sha256
from dynquant.conversion.identity import readers_of, source_files, source_of
from dynquant.conversion.manifest import Source, plain
from dynquant.plan.plan import Plan
from dynquant.tensors import ShardFile

SourceHashes = Literal["auto", "read", "none"]
"""auto: what the Hub tells of its files, and what is read of others; none: no hashes but those of
the headers."""

SOURCE_HASHES: tuple[SourceHashes, ...] = get_args(SourceHashes)

AHEAD = 256 << 20
"""Bytes that hashing is ahead of the encoders at most: what a small machine's page cache holds, and
a tenth of a second or more of any disk's reading."""

_PIECE = 1 << 20
_POLL_SECONDS = 0.01


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


class SourceDigests:
    """The hashes of a plan's source files; `work` runs in one thread or in several.

    n_bytes: of all files
    """

    def __init__(self, plan: Plan, wanted: SourceHashes, first: int | None) -> None:
        """Look at the files.

        first: the number of the first tensor of which rows are to be read; None where all are done
        """
        self._files: dict[Path, _File] = {}
        start = 0
        for path in source_files(plan):
            facts = source_of(path)
            file = _File(path, start, facts["bytes"], facts["header"])
            start += file.n_bytes
            self._files[path] = file
            if wanted == "auto" and (known := known_sha256(path)):
                file.sha256, file.known_from = known, "hub"
        for t in plan.tensors:
            for reader in readers_of(plan.sources[t.name].source):
                if reader not in (readers := self._files[reader.path].readers):
                    readers.append(reader)
        self.n_bytes = start
        unknown = [] if wanted == "none" else [f for f in self._files.values() if not f.sha256]
        self._unread = {f.path for f in unknown}
        self._left = iter(unknown)
        self._floor = self._start_of(plan, first)
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def _start_of(self, plan: Plan, first: int | None) -> float:
        """Return where the encoders begin; what lies before, they do not come for."""
        if first is None:
            return math.inf
        readers = readers_of(plan.sources[plan.tensors[first].name].source)
        return min((self._files[r.path].start for r in readers), default=0)

    def work(self) -> None:
        """Hash files until none is left; the body of each thread. Raises CheckpointError."""
        piece = np.empty(_PIECE, np.uint8)
        while not self._stopped.is_set():
            with self._lock:
                file = next(self._left, None)
            if file is None:
                return
            self._hash(file, piece)

    def _hash(self, file: _File, piece: np.ndarray) -> None:
        digest = hashlib.sha256()
        reader = ShardFile(file.path)
        for position in range(0, file.n_bytes, _PIECE):
            while file.start + position > self._reached() + AHEAD:
                if self._stopped.wait(_POLL_SECONDS):
                    return
            if self._stopped.is_set():
                return
            wanted = piece[: file.n_bytes - position]
            reader.read(position, wanted)
            digest.update(wanted.data)
        file.sha256, file.known_from = digest.hexdigest(), "read"
        self._unread.remove(file.path)

    def is_reading(self, path: Path) -> bool:
        """Whether a file is still to be hashed, or being so."""
        return path in self._unread

    def _reached(self) -> float:
        """Return how far the encoders are in all files, one after the other."""
        reached = self._floor
        for file in self._files.values():
            if furthest := max((r.reached for r in file.readers), default=0):
                reached = max(reached, file.start + furthest)
        return reached

    def release(self) -> None:
        """Go on to the end without waiting: the encoders have read all that they need."""
        self._floor = math.inf

    def stop(self) -> None:
        """End the threads; what is not hashed stays so."""
        self._stopped.set()

    def sources(self) -> list[Source]:
        """Return what is known of each file, in the order of first use, when all threads ended."""
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
