"""The way of a step through the stages: read once, encoded for each output that needs it."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from dynquant.arrays import U8
from dynquant.conversion.engine import Counts
from dynquant.conversion.jobs import Job
from dynquant.conversion.ladder.common import Common
from dynquant.conversion.ladder.steps import Step
from dynquant.conversion.pagecache import PageCache
from dynquant.conversion.stages import EncodeStage, Scratch, Sink, SourceStage, batch_of, read_rows
from dynquant.quants import codec
from dynquant.quants.encoder import Batch, Encoded, is_copied
from dynquant.quants.table import ALL, FLOATS


class Reached:
    """The tensor that one output has reached; stands for the page cache of the sources in its sink.

    tensor: its number in that output
    """

    def __init__(self, *, is_scarce: bool) -> None:
        self.is_scarce = is_scarce
        self.tensor = 0

    def drop_before(self, tensor: int) -> None:
        """Note that all tensors before this one are done."""
        self.tensor = tensor


class ManyFiles:
    """The way of steps through the stages of all outputs.

    encoders, sinks, reached: one of each for each output
    resumed: bytes of tensors that an earlier run had written, by output
    """

    def __init__(
        self,
        common: Common,
        source: SourceStage,
        encoders: Sequence[EncodeStage],
        sinks: Sequence[Sink],
        reached: Sequence[Reached],
        cache: PageCache,
    ) -> None:
        self._common = common
        self._source = source
        self._encoders = encoders
        self._sinks = sinks
        self._reached = reached
        self._cache = cache
        self._lock = threading.Lock()
        self.resumed: Counter[int] = Counter()

    def take(
        self, work: Step, scratch: Scratch, is_stopped: Callable[[], bool], count: Counts
    ) -> None:
        """Write the rows of a step into all outputs."""
        self._source.arrive(work.tensor, scratch, is_stopped)
        rows = _Rows(scratch)
        encoded_as: dict[int, Encoded] = {}
        for file, job in work.jobs:
            started = time.monotonic()
            sink = self._sinks[file]
            found = sink.written_before(job)
            is_resumed = found is not None
            if found is None:
                kind = self._common.kinds[file][job.tensor.number]
                found = encoded_as.get(kind)
                if found is None:
                    found = encoded_as[kind] = self._encoded(file, job, rows)
                sink.write(job, found)
            else:
                with self._lock:
                    self.resumed[file] += job.n_bytes
            count(job, time.monotonic() - started, is_resumed=is_resumed)
            sink.digests.add(job, found)

    def _encoded(self, file: int, job: Job, rows: _Rows) -> Encoded:
        feedback = self._common.works[file].feedback_of(job.tensor, job.matrix)
        batch = batch_of(job, rows.of(job), feedback)
        return self._encoders[file].encode(job, rows.decoded(batch, job))

    def finish(self, scratch: Scratch, is_stopped: Callable[[], bool]) -> None:
        """Hash the rest of the source files."""
        self._source.finish(scratch, is_stopped)

    def save(self) -> None:
        """Record in each journal which rows are safe on the disk."""
        for sink in self._sinks:
            sink.save()
        if self._cache.is_scarce:
            every = enumerate(self._reached)
            self._cache.drop_before(min(self._common.number(n, r.tensor) for n, r in every))

    def stop(self) -> None:
        """Wake threads that wait to hash."""
        for sink in self._sinks:
            sink.digests.stop()


class _Rows:
    """The rows of a step, read and decoded when they are first needed."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch
        self._rows: U8 | None = None
        self._decoded: U8 | None = None

    def of(self, job: Job) -> U8:
        """Return the rows as they are stored."""
        if self._rows is None:
            self._rows = read_rows(job, self._scratch)
        return self._rows

    def decoded(self, batch: Batch, job: Job) -> Batch:
        """Return a batch with rows in F32 if the encoder would decode their blocks."""
        if batch.stored.name in FLOATS or is_copied(batch.stored, batch.type):
            return batch
        if job.tensor.on_grid or not batch.n_rows:
            return batch
        if self._decoded is None:
            rows = batch.rows.reshape(batch.n_rows, -1)
            floats = codec.decode(rows, batch.stored, batch.n_per_row)
            self._decoded = np.ascontiguousarray(floats).view(np.uint8).reshape(-1)
        return replace(batch, rows=self._decoded, stored=ALL["F32"])
