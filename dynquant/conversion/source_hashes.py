"""Hashes of the source files, computed while a conversion reads them.

The threads that encode hash each file piece by piece from its beginning to its end, in the order of
first use. Hashing runs a bounded distance ahead of encoding, so that the encoders find the bytes in
the page cache and the disk is read once. Bytes outside of any tensor are hashed, too. No thread
waits for a hash: with many threads, several files are hashed at once, and hashing falls behind
encoding where the hash is slower.

The SHA-256 of a file is taken from the Hub or computed on request. Otherwise BLAKE3 identifies the
content: on one core it takes a third of the time, and `b3sum` computes it, too.
"""

from __future__ import annotations

import hashlib
import math
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, get_args

from blake3 import blake3

from dynquant.arrays import U8
from dynquant.checkpoint.source_file import published_sha256, source_facts
from dynquant.conversion.manifest import Source
from dynquant.conversion.work import SourceFile, TensorWork, Work
from dynquant.errors import CheckpointError
from dynquant.json_documents import plain
from dynquant.stored_files import StoredFile
from dynquant.tensors import ShardFile

SourceHashes = Literal["auto", "read", "none"]
"""auto: take the SHA-256 that the Hub publishes for its files, compute the BLAKE3 of the others,
except of files that are read by ranges; read: compute the SHA-256 of all, and compare with those
that are published; none: hash headers only."""

SOURCE_HASHES: tuple[SourceHashes, ...] = get_args(SourceHashes)

AHEAD = 32 << 20
"""Limit on the bytes that hashing runs ahead of the encoders."""

PIECE = 1 << 20
"""Bytes hashed at a time."""


@dataclass
class _File:
    """A file to hash.

    start: its position if all files were one, in the order of first use
    published: the sha256 that its publisher states, if it is known
    access: how a file of another machine is read; None for files of this machine
    """

    stored: StoredFile
    start: int
    n_bytes: int
    header: str
    readers: tuple[ShardFile, ...]
    published: str | None
    access: Literal["ranges", "copy"] | None
    sha256: str | None = None
    known_from: Literal["read", "hub"] | None = None
    blake3: str | None = None

    @property
    def is_hashed(self) -> bool:
        """Whether a hash of the content is known."""
        return bool(self.sha256 or self.blake3)

    @property
    def computed(self) -> str | None:
        """The hash that was computed from the bytes, with its kind: `sha256:…` or `blake3:…`."""
        if self.blake3:
            return f"blake3:{self.blake3}"
        return f"sha256:{self.sha256}" if self.known_from == "read" else None

    def take(self, computed: str) -> None:
        """Take a hash as `computed` returns it."""
        kind, _, digits = computed.partition(":")
        if kind == "blake3":
            self.blake3 = digits
        else:
            self.sha256, self.known_from = digits, "read"

    @property
    def reached(self) -> int:
        """Where the furthest read of the encoders ended."""
        return max((reader.reached for reader in self.readers), default=0)


class _Hashing:
    """A file that is being hashed, by one thread at a time."""

    def __init__(self, file: _File, kind: Literal["sha256", "blake3"]) -> None:
        self.file = file
        self.position = 0
        self.is_taken = False
        self._kind = kind
        self._reader = ShardFile(file.stored)
        self._digest = blake3() if kind == "blake3" else hashlib.sha256()

    def step(self, piece: U8) -> None:
        """Hash the next piece."""
        wanted = piece[: self.file.n_bytes - self.position]
        self._reader.read(self.position, wanted)
        self._digest.update(wanted.data)
        self.position += len(wanted)
        if self.position == self.file.n_bytes:
            found, stated = self._digest.hexdigest(), self.file.published
            if self._kind == "sha256" and stated is not None and found != stated:
                raise CheckpointError(
                    f"{self.file.stored.path}: its sha256 is {found}, but {stated} is published"
                    " for it; remove the file if it is on this machine, fetch it again, and convert"
                    " it with --restart"
                )
            self.file.take(f"{self._kind}:{found}")


def _access(source: SourceFile) -> Literal["ranges", "copy"] | None:
    if not source.stored.is_remote:
        return None
    return "copy" if source.is_copied else "ranges"


class SourceDigests:
    """The hashes of all source files; callable from several threads at once.

    n_bytes: of all files
    """

    def __init__(
        self,
        work: Work,
        wanted: SourceHashes,
        first: int | None,
        *,
        only: Collection[int] | None = None,
        known: Mapping[int, str] = MappingProxyType({}),
    ) -> None:
        """Look at the files.

        first: number of the first tensor whose rows will be read; None if no rows are left
        only:  numbers of the files to hash; None hashes all
        known: hashes that others have computed, by number, as `computed` returns them
        """
        self._files: list[_File] = []
        start = 0
        for source in work.source_files:
            facts = source_facts(source.stored)
            published = published_sha256(source.stored)
            file = _File(
                source.stored,
                start,
                facts.n_bytes,
                facts.header_sha256,
                source.readers,
                published,
                _access(source),
            )
            start += file.n_bytes
            self._files.append(file)
            if wanted == "auto" and published:
                file.sha256, file.known_from = published, "hub"
        self._furthest = [max(t.source_files, default=0) for t in work.tensors]
        self.n_bytes = start
        for number, computed in known.items():
            if wanted == "auto" or (wanted == "read" and computed.startswith("sha256:")):
                self._files[number].take(computed)
        self._left = [
            _Hashing(file, "sha256" if wanted == "read" else "blake3")
            for number, file in enumerate(self._files)
            if wanted != "none" and not file.is_hashed and (only is None or number in only)
            if wanted == "read" or file.access != "ranges"
        ]
        self._front = 0
        self._floor = math.inf if first is None else self._start_of(work.tensors[first])
        self._lock = threading.Lock()

    def _start_of(self, tensor: TensorWork) -> float:
        """Return where a tensor's first file begins; the encoders do not read before it."""
        return min((self._files[number].start for number in tensor.source_files), default=0)

    def step(self, piece: U8) -> bool:
        """Hash the next piece that is due; return whether there was one.

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
            if hashing.file.is_hashed:
                self._left.remove(hashing)
        return True

    def hash_whole(self, number: int, piece: U8) -> None:
        """Hash a file from its beginning to its end, if it is to be hashed.

        number: in `Work.source_files`. piece and errors: as in `step`
        """
        with self._lock:
            file = self._files[number]
            hashing = next((h for h in self._left if h.file is file and not h.is_taken), None)
            if hashing is None:
                return
            hashing.is_taken = True
        while not file.is_hashed:
            hashing.step(piece)
        with self._lock:
            self._left.remove(hashing)

    def _next(self) -> _Hashing | None:
        """Return the first file that no thread is hashing, if it is due; else None."""
        found = next((h for h in self._left if not h.is_taken), None)
        if found is None:
            return None
        position = found.file.start + found.position
        return found if position <= max(self._floor, self._reached()) + AHEAD else None

    def _reached(self) -> int:
        """Return how far the encoders are, as a position in all files together."""
        return self._files[self._front].start + self._files[self._front].reached

    def arrive(self, tensor: int) -> None:
        """Note that the encoders have reached a tensor, by its number in the plan."""
        with self._lock:
            self._front = max(self._front, self._furthest[tensor])

    def release(self) -> None:
        """Make all that is left due: the encoders have read all rows."""
        self._floor = math.inf

    def is_reading(self, path: Path) -> bool:
        """Whether a file is not yet hashed completely."""
        return any(hashing.file.stored.path == path for hashing in list(self._left))

    def computed(self) -> dict[int, str]:
        """Return the hashes that were computed here, with their kinds, by number of the file."""
        return {number: file.computed for number, file in enumerate(self._files) if file.computed}

    def sources(self) -> list[Source]:
        """Return each file with its hashes, in the order of first use, after all are hashed."""
        return [
            Source(
                name=plain(file.stored.path.name),
                bytes=file.n_bytes,
                header_sha256=file.header,
                sha256=file.sha256,
                sha256_from=file.known_from,
                access=file.access,
                blake3=file.blake3,
            )
            for file in self._files
        ]
