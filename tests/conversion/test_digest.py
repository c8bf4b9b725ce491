"""Hashes do not depend on the order of blocks; oracle: hashlib and xxhash of the whole."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest
import xxhash
from crashes import sharded_plan
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.arrays import U8
from dynquant.conversion import digest
from dynquant.conversion.digest import Digests
from dynquant.conversion.jobs import Job, jobs
from dynquant.conversion.scope import Scope
from dynquant.conversion.work import work_of
from dynquant.quants.encoder import Encoded
from dynquant.quants.error import NO_ERROR

PLAN = sharded_plan()
WORK = work_of(PLAN)
LAYOUT = WORK.layout


def blocks_of(job: Job) -> U8:
    shape = (job.n_rows, job.tensor.row_size)
    return np.random.default_rng(job.number).integers(0, 256, shape).astype(np.uint8)


Added = tuple[Job, Encoded]


def work(chunk_bytes: int = 4096) -> list[Added]:
    return [
        (job, Encoded(blocks_of(job), NO_ERROR)) for job in jobs(Scope.whole(WORK), chunk_bytes, {})
    ]


def whole(found: Sequence[Added]) -> tuple[list[str], list[str]]:
    """Return the hashes of the files with these blocks, and of the tensors."""
    files = [bytearray(f.header.ljust(f.file_bytes, b"\0")) for f in LAYOUT.files]
    tensors = [b""] * len(PLAN.tensors)
    for job, encoded in found:
        blocks = encoded.blocks.tobytes()
        files[job.tensor.file][job.position : job.position + len(blocks)] = blocks
        tensors[job.tensor.number] += blocks
    return (
        [hashlib.sha256(f).hexdigest() for f in files],
        [xxhash.xxh64_hexdigest(t) for t in tensors],
    )


def add_all(digests: Digests, found: Sequence[Added], n_threads: int) -> None:
    """Add blocks from several threads, which take them in order, as in a conversion."""
    left = iter(found)
    lock = threading.Lock()

    def add() -> None:
        while True:
            with lock:
                one = next(left, None)
            if one is None:
                return
            digests.add(*one)

    threads = [threading.Thread(target=add) for _ in range(n_threads)]
    for t in threads:
        t.start()
    for t in threads:
        t.join(20)
        assert not t.is_alive()


@pytest.mark.slow
@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), chunk_bytes=st.integers(1, 40_000))
def test_hashes_do_not_depend_on_the_order(seed: int, chunk_bytes: int) -> None:
    found = work(chunk_bytes)
    digests = Digests(WORK)
    add_all(digests, random.Random(seed).sample(found, len(found)), 1)
    assert (digests.files(), digests.tensors()) == whole(found)


@pytest.mark.parametrize("n_threads", [1, 2, 7])
def test_hashes_do_not_depend_on_threads_that_wait(
    n_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With such a low limit, threads wait at every job.
    monkeypatch.setattr(digest, "_MOST_HELD", 3000)
    found = work()
    digests = Digests(WORK)
    add_all(digests, found, n_threads)
    assert (digests.files(), digests.tensors()) == whole(found)


@pytest.mark.slow
def test_thread_above_the_limit_waits_for_the_first_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(digest, "_MOST_HELD", 0)
    (first, second, *_) = work()
    digests = Digests(WORK)
    thread = threading.Thread(target=digests.add, args=second)
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    digests.add(*first)
    thread.join(20)
    assert not thread.is_alive()


def test_stop_releases_waiting_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digest, "_MOST_HELD", 0)
    (_, *others) = work()
    digests = Digests(WORK)
    threads = [threading.Thread(target=digests.add, args=one) for one in others[:5]]
    for t in threads:
        t.start()
    digests.stop()
    for t in threads:
        t.join(20)
        assert not t.is_alive()
