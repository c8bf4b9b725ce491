"""Memory is bounded, read errors name file and offset, and work is linear in tensors."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from counting import calls_of
from handmade import computed_tensor, model, names, recipe, stored_tensor, weights
from places import TESTS

from dynquant.conversion import pagecache
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.systems import system

PEAKS = """
import json, sys
from pathlib import Path
from handmade import model, recipe
from sparse import write_sparse
from dynquant.arch.base import ModelTensor
from dynquant.checkpoint.packed import unpack
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.conversion import digest
from dynquant.conversion.write import convert_plan
from dynquant.plan.make import make_plan
from dynquant.quants import ALL
from dynquant.tensors import ShardFile, Stored
from dynquant.transforms import stack, transposed

folder = Path(sys.argv[1])
# With the default of 64 MiB, a whole tensor could wait for a thread that is not scheduled. The test
# below covers that limit.
digest._MOST_HELD = 8 << 20

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def bf16(*shape):
    with open(folder / "w", "wb") as f:
        f.truncate(67_108_864)
    return Stored(ShardFile(folder / "w"), 0, shape, ALL["BF16"])

def fp8():
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = {"architectures": ["X"], "quantization_config": blocks}
    stored = {"w.weight": ("F8_E4M3", (8192, 8192)), "w.weight_scale_inv": ("F32", (64, 64))}
    return unpack(open_checkpoint(write_sparse(folder, config, stored))).tensors["w.weight"].rows

shapes = {
    "one matrix": lambda: bf16(16384, 2048),
    "matrices in one tensor": lambda: bf16(16, 1024, 2048),
    "experts stacked": lambda: stack([bf16(1024, 2048)] * 16),
    "FP8 with scales": fp8,
    "transposed matrices": lambda: transposed(bf16(64, 512, 1024)),
}
found = {}
for name, source in shapes.items():
    tensor = ModelTensor("blk.0.ffn_up_exps.weight", source())
    plan = make_plan(model(tensor), recipe("Q8_0"))
    before = peak()
    convert_plan(plan, folder / "x.gguf", threads=2, force=True)
    found[name] = peak() - before
print(json.dumps(found))
"""


def figures_of(script: str, folder: Path) -> dict[str, int]:
    """Run a script in a separate process and return the figures that it prints."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS / "support"), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder)],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        env=environment,
    )
    found: dict[str, int] = json.loads(done.stdout)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_no_tensor_is_held_in_memory_whole(tmp_path: Path) -> None:
    # Each shape has 67 MB stored and 36 MB written (FP8 twice as many weights). The peak is that of
    # the process, so memory that earlier shapes used does not count again.
    found = figures_of(PEAKS, tmp_path)
    assert {name: n for name, n in found.items() if n > 25_000_000} == {}


HELD = """
import json, sys, time
from pathlib import Path
from handmade import model, recipe
from dynquant.arch.base import ModelTensor
from dynquant.conversion.digest import _MOST_HELD, Digests
from dynquant.conversion.write import convert_plan
from dynquant.plan.make import make_plan
from dynquant.quants import ALL
from dynquant.quants.encoder import CoreEncoder
from dynquant.tensors import ShardFile, Stored

folder = Path(sys.argv[1])
with open(folder / "w", "wb") as f:
    f.truncate(65536 * 2048 * 2)
matrix = Stored(ShardFile(folder / "w"), 0, (65536, 2048), ALL["BF16"])
plan = make_plan(model(ModelTensor("blk.0.ffn_up.weight", matrix)), recipe("Q8_0"))

found, jobs, held = [], [], [0]
make, add, encode = Digests.__init__, Digests.add, CoreEncoder.encode

def made(digests, work):
    make(digests, work)
    found.append(digests)

def added(digests, job, encoded):
    held.append(max(held[-1], digests._held + encoded.blocks.nbytes))
    add(digests, job, encoded)

def encoded(encoder, batch, **options):
    # The thread with the first rows waits until the other thread has reached the limit, and for
    # half a second more, in which a thread without a limit would add all other rows.
    jobs.append(None)
    if len(jobs) == 1:
        while found[0]._held <= _MOST_HELD and len(jobs) < n_jobs:
            time.sleep(0.01)
        time.sleep(0.5)
    return encode(encoder, batch, **options)

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

n_jobs = 65536 * 2048 * 4 // CoreEncoder.preferred_bytes
Digests.__init__, Digests.add, CoreEncoder.encode = made, added, encoded
before = peak()
convert_plan(plan, folder / "x.gguf", threads=2)
print(json.dumps({"held": held[-1], "grown": peak() - before, "limit": _MOST_HELD}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_waiting_blocks_take_at_most_the_limit_and_one_chunk_per_thread(
    tmp_path: Path,
) -> None:
    # 143 MB are written, and all rows except the first could wait.
    found = figures_of(HELD, tmp_path)
    assert found["limit"] == 64 << 20
    assert found["limit"] < found["held"] < found["limit"] + 2 * 1_000_000
    assert found["grown"] < found["limit"] + 2 * 12_500_000


# ---- sources that fail or are read-only ----------------------------------------------------------


def stored_plan(folder: Path) -> Plan:
    return make_plan(model(stored_tensor(folder / "w", "a.weight", weights(50, 256))), recipe())


def test_short_reads_of_a_source_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = stored_plan(tmp_path)
    convert_plan(plan, tmp_path / "whole.gguf")
    whole = system().read_at
    monkeypatch.setattr(system(), "read_at", lambda fd, into, at: whole(fd, into[:100], at))
    convert_plan(plan, tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_failed_read_is_reported_with_file_and_offset_and_run_can_be_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = stored_plan(tmp_path)
    convert_plan(plan, tmp_path / "whole.gguf")
    whole = system().read_at

    def failing(fd: int, into: Any, at: int) -> int:
        if at >= 30 * 512:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(fd, into, at)

    monkeypatch.setattr(system(), "read_at", failing)
    with pytest.raises(CheckpointError) as e:
        convert_plan(plan, tmp_path / "x.gguf", threads=1, chunk_bytes=5 * 512)
    assert str(e.value) == f"{tmp_path / 'w'}: read at byte {30 * 512}: Input/output error"
    monkeypatch.setattr(system(), "read_at", whole)
    made = convert_plan(plan, tmp_path / "x.gguf")
    assert made.resumed_bytes == 30 * 272
    assert (tmp_path / "x.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def refuse_writes(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Refuse writes in a folder, even for root, who is not restricted by permissions."""
    whole = os.open

    def read_only(path: Any, flags: int, *more: Any, **options: Any) -> int:
        inside = folder in Path(os.fsdecode(path)).parents
        if inside and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path)
        return whole(path, flags, *more, **options)

    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(PermissionError):
        os.open(folder / "x", os.O_CREAT | os.O_WRONLY)


def test_read_only_source_is_sufficient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    plan = stored_plan(folder)
    (folder / "w").chmod(0o400)
    folder.chmod(0o500)
    refuse_writes(monkeypatch, folder)
    convert_plan(plan, tmp_path / "x.gguf")


def test_nothing_is_written_beside_the_source(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    convert_plan(stored_plan(folder), tmp_path / "x.gguf")
    assert names(folder) == ["w"]


# ---- models larger than memory -------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs Linux's list of files")
@pytest.mark.parametrize("memory", [100_000, 1 << 40])
def test_page_cache_is_dropped_only_for_large_models_and_finished_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    advised: list[str] = []

    def advise(fd: int) -> None:
        advised.append(Path(f"/proc/self/fd/{fd}").readlink().name)

    monkeypatch.setattr(system(), "forget", advise)
    monkeypatch.setattr(system(), "drops_pages", True)
    monkeypatch.setattr(pagecache, "memory_bytes", lambda: memory)
    tensors = [stored_tensor(tmp_path / f"w{i}", f"{i}.weight", weights(500, 256)) for i in (0, 1)]
    plan = make_plan(model(*tensors), recipe())
    slow = system().write_at

    def pwrite(fd: int, content: Any, at: int) -> int:
        time.sleep(0.002)
        return slow(fd, content, at)

    monkeypatch.setattr(system(), "write_at", pwrite)
    convert_plan(plan, tmp_path / "x.gguf", threads=1, chunk_bytes=9000, sync_seconds=0.005)
    # The second file is the last one read: its pages are kept, because the next run may need them.
    assert set(advised) == ({"w0", "x.gguf.part"} if memory == 100_000 else set())
    assert advised.count("w0") <= 1


# ---- many tensors --------------------------------------------------------------------------------


def calls_for(n: int, folder: Path) -> int:
    """Return how many calls of Python functions n tensors take, in all threads."""
    tensors = [computed_tensor(f"blk.{i}.attn_norm.weight", 32) for i in range(n)]
    return calls_of(
        lambda: convert_plan(make_plan(model(*tensors), recipe()), folder / f"{n}.gguf", threads=2)
    )


@pytest.mark.slow
def test_four_times_as_many_tensors_take_about_four_times_as_many_calls(tmp_path: Path) -> None:
    # Quadratic work would take sixteen times as many.
    few, many = calls_for(500, tmp_path), calls_for(2000, tmp_path)
    assert few > 10_000
    assert many < 5 * few
