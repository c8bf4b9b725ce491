"""Hashes and errors of what is written, put together in order, whatever order it comes in."""

from __future__ import annotations

import hashlib
import threading

import xxhash

from dynquant.arrays import U8
from dynquant.conversion.jobs import Job
from dynquant.conversion.layout import Layout
from dynquant.quants.error import NO_ERROR, ErrorSums

_MOST_HELD = 64 << 20
"""Bytes of blocks that wait for others before them; more, and who brings them waits, too."""


class Digests:
    """The xxh64 and the error sums of each tensor, and the sha256 of each file.

    Callable from several threads at once.

    Blocks come in the order in which threads finish them, and are hashed in the order of the files.
    Who brings the blocks that are next hashes them and those that wait behind them; others go on.
    xxh64 is what llama-gguf-hash prints of tensors. Sums of doubles are as strict about their order
    as hashes are.

    reached: the number of the tensor that is hashed; those before it have been read
    """

    def __init__(self, layout: Layout, n_tensors: int) -> None:
        self._layout = layout
        self._tensors = [xxhash.xxh64() for _ in range(n_tensors)]
        self._files = [hashlib.sha256(file.header) for file in layout.files]
        self._ends = [len(file.header) for file in layout.files]
        self._sums = [NO_ERROR] * n_tensors
        self._waiting: dict[int, tuple[Job, U8, ErrorSums]] = {}
        self._held = 0
        self._next = 0
        self.reached = 0
        self._is_hashing = False
        self._is_stopped = False
        self._change = threading.Condition()

    def add(self, job: Job, blocks: U8, sums: ErrorSums) -> None:
        """Take the blocks of a job, which nobody changes from then on, and their error sums."""
        with self._change:
            self._waiting[job.number] = (job, blocks, sums)
            self._held += len(blocks)
            while self._is_hashing or self._next not in self._waiting:
                if self._held <= _MOST_HELD or self._is_stopped:
                    return
                self._change.wait()
            self._is_hashing = True
        while True:
            with self._change:
                if self._next not in self._waiting:
                    self._is_hashing = False
                    self._change.notify_all()
                    return
                first, found, its_sums = self._waiting.pop(self._next)
            self._hash(first, found, its_sums)
            with self._change:
                self._next += 1
                self._held -= len(found)
                self._change.notify_all()

    def stop(self) -> None:
        """Let go whoever waits; what is missing does not come."""
        with self._change:
            self._is_stopped = True
            self._change.notify_all()

    def _hash(self, job: Job, blocks: U8, sums: ErrorSums) -> None:
        number = job.tensor.shard
        position = self._layout.files[number].position(job.tensor) + job.start * job.row_size
        self._files[number].update(bytes(position - self._ends[number]))
        self._files[number].update(blocks.data)
        self._ends[number] = position + len(blocks)
        self._tensors[job.index].update(blocks.data)
        self._sums[job.index] = self._sums[job.index].joined(sums)
        self.reached = job.index

    def sums(self) -> list[ErrorSums]:
        """Return the sums of each tensor's errors, when all rows have come."""
        return self._sums

    def tensors(self) -> list[str]:
        """Return the xxh64 of each tensor, in hexadecimal, when all rows have come."""
        return [digest.hexdigest() for digest in self._tensors]

    def files(self) -> list[str]:
        """Return the sha256 of each file, in hexadecimal, when all rows have come."""
        for number, file in enumerate(self._layout.files):
            self._files[number].update(bytes(file.file_bytes - self._ends[number]))
            self._ends[number] = file.file_bytes
        return [digest.hexdigest() for digest in self._files]
