"""The stages that the rows of a job pass through: source, encode and sink.

Each is callable from several threads at once; the engine runs them one after the other for each
job. A stage knows nothing of the others: it takes a job and the result of the stage before.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Protocol

import numpy as np
import xxhash

from dynquant.arrays import U8
from dynquant.conversion.jobs import Done, Job
from dynquant.conversion.journal import Journal
from dynquant.conversion.read_ahead import ReadAhead
from dynquant.conversion.source_hashes import PIECE, SourceDigests
from dynquant.conversion.work import Work
from dynquant.errors import ConvertError
from dynquant.quants.codec import NotFiniteError
from dynquant.quants.encoder import Batch, Encoded, Encoder
from dynquant.quants.feedback import Feedback
from dynquant.quants.on_grid import fit_of


class Scratch:
    """A thread's buffer, which grows to the largest size that is asked for."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def __call__(self, n_bytes: int) -> U8:
        """Return n_bytes of the buffer, with arbitrary content."""
        if len(self._bytes) < n_bytes:
            self._bytes = np.empty(n_bytes, np.uint8)
        return self._bytes[:n_bytes]


def read_rows(job: Job, scratch: Scratch) -> U8:
    """Return the rows of a job as they are stored, in the scratch buffer."""
    rows = scratch(job.n_rows * job.tensor.stored_row_size)
    job.tensor.source.read(job.start, job.stop, rows)
    return rows


def batch_of(job: Job, rows: U8, feedback: Feedback | None) -> Batch:
    """Return what is encoded of a job.

    Raises ImportanceError if the imatrix changed since it was read.
    """
    tensor = job.tensor
    return Batch(
        rows,
        tensor.source.stored,
        tensor.n_per_row,
        tensor.type,
        tensor.importance_of(job.matrix),
        tensor.search,
        tensor.mean_of(job.matrix),
        feedback,
    )


class SourceStage:
    """Reads the rows of jobs, and hashes the files that they are read from."""

    def __init__(self, work: Work, digests: SourceDigests, ahead: ReadAhead | None = None) -> None:
        """Read the rows of a work; ahead: has read rows of the jobs already, if it is given."""
        self._work = work
        self._digests = digests
        self._ahead = ahead

    def arrive(self, tensor: int, scratch: Scratch, is_stopped: Callable[[], bool]) -> None:
        """Note that the encoders have reached a tensor, and hash what is due of the files."""
        self._digests.arrive(tensor)
        self._hash(scratch, is_stopped)

    def read(self, job: Job, scratch: Scratch) -> Batch:
        """Return the rows of a job; they are in the scratch buffer, until its next use."""
        feedback = self._work.feedback_of(job.tensor, job.matrix)
        rows = read_rows(job, scratch) if self._ahead is None else self._ahead.rows(job)
        return batch_of(job, rows, feedback)

    def finish(self, scratch: Scratch, is_stopped: Callable[[], bool]) -> None:
        """Hash the rest of the files: every row has been read."""
        self._digests.release()
        self._hash(scratch, is_stopped)

    def _hash(self, scratch: Scratch, is_stopped: Callable[[], bool]) -> None:
        while not is_stopped() and self._digests.step(scratch(PIECE)):
            pass


class EncodeStage:
    """Encodes batches of rows and measures their errors.

    rounded: by tensor on a grid, the weights that its blocks give up to the rounding of scales only
    """

    def __init__(self, encoder: Encoder) -> None:
        self.rounded: Counter[str] = Counter()
        self._encoder = encoder
        self._lock = threading.Lock()

    def encode(self, job: Job, batch: Batch) -> Encoded:
        """Return the blocks of a job.

        Raises ConvertError if a weight is not finite, or does not lie on the grid that the plan
        keeps.
        """
        encoded = self._encode(job, batch)
        if job.tensor.on_grid and encoded.sums.largest > 0:
            self._check(job, batch, encoded)
        return encoded

    def _check(self, job: Job, batch: Batch, encoded: Encoded) -> None:
        fit = fit_of(batch.rows, batch.stored, batch.n_per_row, batch.type, encoded.blocks)
        if fit.beside is not None:
            raise ConvertError(
                f"tensor {job.tensor.name!r}: row {job.start + fit.beside} does not lie on the grid"
                f" of {batch.type.name}, though the rows do that the plan read; give the tensor a"
                f" type in the recipe (`type: {batch.type.name}` accepts the loss) instead of"
                " `keep: true`"
            )
        with self._lock:
            self.rounded[job.tensor.name] += fit.n_rounded

    def _encode(self, job: Job, batch: Batch) -> Encoded:
        try:
            return self._encoder.encode(batch)
        except NotFiniteError as e:
            raise ConvertError(
                f"tensor {job.tensor.name!r} (stored as {job.tensor.source.stored.name}): row"
                f" {job.start + e.row} contains a NaN or an infinity; the checkpoint is damaged or"
                " its training overflowed, use another copy of it"
            ) from e


class TakesBlocks(Protocol):
    """What becomes of blocks besides being written: see `Digests`."""

    reached: int

    def add(self, job: Job, encoded: Encoded) -> None:
        """Take the blocks of a job."""
        ...

    def stop(self) -> None:
        """Wake waiting threads; no more blocks will arrive."""
        ...


class BlockFiles(Protocol):
    """Files that blocks are written into, at their places in the output: see `PartFiles`."""

    def write(self, file: int, blocks: memoryview | bytes, position: int) -> None:
        """Write blocks at a position of an output file."""
        ...

    def read(self, file: int, into: memoryview, position: int) -> None:
        """Read blocks at a position of an output file."""
        ...

    def sync(self) -> None:
        """Sync what was written to the disk."""
        ...

    def forget(self) -> None:
        """Drop synced pages from the page cache."""
        ...


class DropsSources(Protocol):
    """The source files in the page cache: see `PageCache`."""

    is_scarce: bool

    def drop_before(self, tensor: int) -> None:
        """Drop the files that only tensors before this one read."""
        ...


class Sink:
    """Writes blocks into the files, records them in the journal, and hashes them.

    digests: takes the blocks and errors of everything that was written
    files:   where blocks are written
    cache:   the source files in the page cache
    """

    def __init__(
        self, digests: TakesBlocks, files: BlockFiles, journal: Journal, cache: DropsSources
    ) -> None:
        self.digests = digests
        self._files = files
        self._journal = journal
        self._cache = cache
        self._lock = threading.Lock()
        self._unsaved: list[Done] = []

    def written_before(self, job: Job) -> Encoded | None:
        """Return blocks that an earlier run wrote, or None if their checksum differs."""
        if job.done is None:
            return None
        blocks = np.empty(job.n_bytes, np.uint8)
        self._files.read(job.tensor.file, blocks.data, job.position)
        if xxhash.xxh3_64_intdigest(blocks.data) != job.done.checksum:
            return None
        return Encoded(blocks.reshape(job.n_rows, -1), job.done.sums)

    def write(self, job: Job, encoded: Encoded) -> None:
        """Write the blocks of a job; the journal records them at the next `save`."""
        blocks = encoded.blocks.reshape(-1)
        self._files.write(job.tensor.file, blocks.data, job.position)
        checksum = xxhash.xxh3_64_intdigest(blocks.data)
        with self._lock:
            self._unsaved.append(
                Done(job.tensor.number, job.start, job.stop, checksum, encoded.sums)
            )

    def save(self) -> None:
        """Sync the files and record in the journal which rows are safe on the disk."""
        with self._lock:
            written, self._unsaved = self._unsaved, []
        if written:
            self._files.sync()
            self._journal.add(written)
        self._cache.drop_before(self.digests.reached)
        if self._cache.is_scarce:
            self._files.forget()
