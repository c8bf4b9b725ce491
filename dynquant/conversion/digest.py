"""Hashes and errors of the output, computed in the order of the files while it is written."""

from __future__ import annotations

import hashlib
import threading

import xxhash

from dynquant.conversion.jobs import Job
from dynquant.conversion.work import Work
from dynquant.quants.encoder import Encoded
from dynquant.quants.error import NO_ERROR, ErrorSums

_MOST_HELD = 64 << 20
"""Limit on the bytes of out-of-order blocks that wait to be hashed; beyond it, producers wait."""


class Digests:
    """The xxh64 and the error sums of each tensor, and the sha256 of each file.

    Callable from several threads at once.

    Blocks arrive in the order in which threads finish them, and are hashed in the order of the
    files. The thread that brings the next blocks hashes them and those that wait behind them; the
    other threads continue. xxh64 is the hash that llama-gguf-hash prints for tensors. Sums of
    doubles depend on their order as hashes do.

    reached: the number of the tensor that is being hashed; all before it have been read
    """

    def __init__(self, work: Work, sharers: int = 1) -> None:
        """Begin; sharers: outputs that are written at the same time and share the memory."""
        self._sharers = sharers
        self._layout = work.layout
        self._tensors = [xxhash.xxh64() for _ in work.tensors]
        self._files = [hashlib.sha256(file.header) for file in work.layout.files]
        self._ends = [len(file.header) for file in work.layout.files]
        self._sums = [NO_ERROR] * len(work.tensors)
        self._waiting: dict[int, tuple[Job, Encoded]] = {}
        self._held = 0
        self._next = 0
        self.reached = 0
        self._is_hashing = False
        self._is_stopped = False
        self._change = threading.Condition()

    def add(self, job: Job, encoded: Encoded) -> None:
        """Take the blocks and error sums of a job; the blocks must not change from then on."""
        with self._change:
            self._waiting[job.number] = (job, encoded)
            self._held += encoded.blocks.nbytes
            while self._is_hashing or self._next not in self._waiting:
                if self._held <= _MOST_HELD // self._sharers or self._is_stopped:
                    return
                self._change.wait()
            self._is_hashing = True
        while True:
            with self._change:
                if self._next not in self._waiting:
                    self._is_hashing = False
                    self._change.notify_all()
                    return
                first, found = self._waiting.pop(self._next)
            self._hash(first, found)
            with self._change:
                self._next += 1
                self._held -= found.blocks.nbytes
                self._change.notify_all()

    def stop(self) -> None:
        """Wake all waiting threads; no more blocks will arrive."""
        with self._change:
            self._is_stopped = True
            self._change.notify_all()

    def _hash(self, job: Job, encoded: Encoded) -> None:
        file, number = job.tensor.file, job.tensor.number
        self._files[file].update(bytes(job.position - self._ends[file]))
        blocks = encoded.blocks.reshape(-1).data
        self._files[file].update(blocks)
        self._ends[file] = job.position + len(blocks)
        self._tensors[number].update(blocks)
        self._sums[number] = self._sums[number].joined(encoded.sums)
        self.reached = number

    def sums(self) -> list[ErrorSums]:
        """Return the sums of each tensor's errors, after all rows have arrived."""
        return self._sums

    def tensors(self) -> list[str]:
        """Return the xxh64 of each tensor, in hexadecimal, after all rows have arrived."""
        return [digest.hexdigest() for digest in self._tensors]

    def files(self) -> list[str]:
        """Return the sha256 of each file, in hexadecimal, after all rows have arrived."""
        for number, file in enumerate(self._layout.files):
            self._files[number].update(bytes(file.file_bytes - self._ends[number]))
            self._ends[number] = file.file_bytes
        return [digest.hexdigest() for digest in self._files]
