"""Parts of tensors are computed once, shared by threads, bounded in memory, and freed."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from places import REFERENCES

import dynquant
from dynquant import part_cache
from dynquant.arrays import F32, U8
from dynquant.conversion.engine import Progress
from dynquant.errors import CheckpointError
from dynquant.part_cache import MIN_PARTS, Parts, release_parts
from dynquant.quants import ALL, QuantType
from dynquant.tensors import Computed, ShardFile, Stored, TensorSource, n_rows
from dynquant.transforms import Transposed, read_weights

N_THREADS = 16


@pytest.fixture(autouse=True)
def empty_cache() -> None:
    release_parts()


class Counted:
    """A source that counts reads of each row, and can fail or wait."""

    def __init__(self, x: F32, before: Callable[[], None] = lambda: None) -> None:
        self.shape: tuple[int, ...] = x.shape
        self.stored: QuantType = ALL["F32"]
        self.reads = np.zeros(n_rows(x.shape), int)
        self._source = Computed(x)
        self._before = before

    def read(self, start: int, stop: int, into: U8) -> None:
        self._before()
        self.reads[start:stop] += 1
        self._source.read(start, stop, into)


def numbered(*shape: int) -> F32:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


def in_threads(n: int, work: Callable[[int], object]) -> list[BaseException | None]:
    """Run work(0) .. work(n - 1) at once; return what each raised."""
    barrier = threading.Barrier(n)
    raised: list[BaseException | None] = [None] * n

    def body(i: int) -> None:
        barrier.wait()
        try:
            work(i)
        except BaseException as e:
            raised[i] = e

    threads = [threading.Thread(target=body, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return raised


@pytest.mark.slow
def test_threads_that_need_one_matrix_read_it_once() -> None:
    x = numbered(1, 64, N_THREADS)
    source = Counted(x)
    tensor = Transposed(source)
    found: list[F32 | None] = [None] * N_THREADS

    def work(i: int) -> None:
        found[i] = read_weights(tensor, i, i + 1)

    assert in_threads(N_THREADS, work) == [None] * N_THREADS
    assert (source.reads == 1).all()
    np.testing.assert_array_equal(np.concatenate([f for f in found if f is not None]), x[0].T)


@pytest.mark.slow
def test_threads_that_take_chunks_in_order_read_every_matrix_once() -> None:
    """Far more matrices than the cache keeps; no thread is more than two matrices behind."""
    x = numbered(8 * MIN_PARTS, 5, 24)
    expected = x.swapaxes(1, 2).reshape(-1, 5)
    source = Counted(x)
    tensor = Transposed(source)
    chunks = iter(range(0, len(expected), 2))
    reading: set[int] = set()
    changed = threading.Condition()

    def work(_: int) -> None:
        while True:
            with changed:
                start = next(chunks, None)
                if start is None:
                    return
                reading.add(start)
                while start >= min(reading) + 2 * 24:
                    assert changed.wait(60)
            found = read_weights(tensor, start, start + 2)
            with changed:
                reading.remove(start)
                changed.notify_all()
            np.testing.assert_array_equal(found, expected[start : start + 2])

    assert in_threads(N_THREADS, work) == [None] * N_THREADS
    assert (source.reads == 1).all()


@pytest.mark.slow
def test_a_failed_read_is_raised_in_every_waiting_thread_and_is_tried_again_later() -> None:
    waiting = threading.Semaphore(0)
    is_broken = True

    def before() -> None:
        if is_broken:
            # Fail only when the other threads are in `use`.
            for _ in range(N_THREADS):
                assert waiting.acquire(timeout=60)
            raise CheckpointError("x: ends early")

    source = Counted(numbered(1, 2, N_THREADS), before)
    tensor = Transposed(source)
    cache = part_cache._CACHE
    enter = cache.enter

    def counted_enter(parts: Parts[U8], index: int, n_bytes: int) -> object:
        part = enter(parts, index, n_bytes)
        waiting.release()
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "enter", counted_enter)
        raised = in_threads(N_THREADS, lambda i: read_weights(tensor, i, i + 1))
    assert all(isinstance(e, CheckpointError) for e in raised)
    assert not source.reads.any()
    is_broken = False
    np.testing.assert_array_equal(read_weights(tensor, 3, 4), [[3, 3 + N_THREADS]])


@pytest.mark.slow
def test_after_an_interrupt_the_next_waiting_thread_computes_the_part() -> None:
    computing, interrupted = threading.Event(), threading.Event()
    parts = Parts[str]()

    def interrupt(_: int) -> str:
        computing.set()
        assert interrupted.wait(60)
        raise KeyboardInterrupt

    def compute(_: int) -> str:
        return "computed"

    found: list[str] = []

    def work(i: int) -> None:
        if i == 0:
            with parts.use(0, 1, interrupt):
                pass
        else:
            assert computing.wait(60)
            threading.Timer(0.1, interrupted.set).start()
            with parts.use(0, 1, compute) as part:
                found.append(part)

    first, second = in_threads(2, work)
    assert isinstance(first, KeyboardInterrupt) and second is None
    assert found == ["computed"]


def test_the_least_recently_used_parts_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_cache, "MAX_BYTES", 0)
    parts = Parts[int]()
    for index in (*range(MIN_PARTS), 0, MIN_PARTS):
        with parts.use(index, 1, lambda i: i) as part:
            assert part == index
    assert sorted(parts.kept) == [0, *range(2, MIN_PARTS + 1)]


def test_small_parts_are_kept_up_to_the_bound_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_cache, "MAX_BYTES", 1000)
    parts = [Parts[int](), Parts[int]()]
    for index in range(100):
        with parts[index % 2].use(index, 100, lambda i: i):
            pass
    assert sorted([*parts[0].kept, *parts[1].kept]) == list(range(90, 100))


def test_a_part_in_use_is_not_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_cache, "MAX_BYTES", 0)
    parts = Parts[int]()
    with parts.use(-1, 1, lambda i: i):
        for index in range(2 * MIN_PARTS):
            with parts.use(index, 1, lambda i: i):
                pass
        release_parts()
        assert list(parts.kept) == [-1]
    release_parts()
    assert not parts.kept


def cached() -> list[object]:
    """Values of all parts in the cache."""
    parts = [key() for key in part_cache._CACHE._recent]
    return [part.value for part in parts if part is not None]


def test_released_matrices_are_freed() -> None:
    tensor = Transposed(Computed(numbered(2, 3, 4)))
    read_weights(tensor, 0, 8)
    matrices = [weakref.ref(value) for value in cached()]
    assert len(matrices) == 2
    release_parts()
    assert [matrix() for matrix in matrices] == [None, None]
    np.testing.assert_array_equal(read_weights(tensor, 0, 1), [[0, 4, 8]])


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
def test_a_conversion_frees_its_matrices_at_the_end(tmp_path: Path, fails: bool) -> None:
    """gpt-oss stores its experts transposed; the model stays loaded."""
    model = dynquant.load_model(REFERENCES / "gpt-oss")
    most = 0

    def progress(done: Progress) -> None:
        nonlocal most
        most = max(most, len(cached()))
        if fails and done.bytes_done == done.bytes_total:
            raise OSError("disk full")

    def convert() -> None:
        dynquant.convert(model, tmp_path / "x.gguf", recipe="q8_0", progress=progress)

    if fails:
        with pytest.raises(OSError, match="disk full"):
            convert()
    else:
        convert()
    assert most > 0
    assert not cached()


@pytest.mark.slow
def test_two_conversions_of_one_model_at_once_give_the_same_bytes(tmp_path: Path) -> None:
    model = dynquant.load_model(REFERENCES / "gpt-oss")
    paths = [tmp_path / "a.gguf", tmp_path / "b.gguf"]

    def convert(i: int) -> None:
        dynquant.convert(model, paths[i], recipe="q8_0", threads=2)

    assert in_threads(2, convert) == [None, None]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert not cached()


@pytest.mark.slow
def test_matrices_and_open_files_are_freed_with_their_source(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(numbered(3, 4).tobytes())
    tensor: TensorSource | None = Transposed(Stored(ShardFile(path), 0, (3, 4), ALL["F32"]))
    read_weights(tensor, 0, 1)
    assert str(path) in open_files()
    tensor = None
    gc.collect()
    assert str(path) not in open_files()


def open_files() -> set[str]:
    found: set[str] = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the descriptor of this listing is closed
            found.add(str(descriptor.readlink()))
    return found
