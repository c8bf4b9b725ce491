"""A conversion gives the same bytes for every type with any ISA, number of threads, chunk size,
interruptions, folder, clock and hash seed, and the bytes do not reveal where or when it ran.

The oracle is one plain conversion: one thread, the ISA of this CPU, whole tensors.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import TINY_BOOKS, load_reference
from crashes import at_call
from handmade import computed_tensor, model, recipe
from imatrices import write_counted
from subsets import FAST_TYPES, slow_except

from dynquant.conversion.write import convert_plan
from dynquant.importance.imatrix import read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants import ALL
from dynquant.quants.codec import isas

NAME = "blk.1.ffn_up_exps.weight"
CHUNK = 5000


def plan_of(type_name: str, folder: Path) -> Plan:
    """Plan a norm and experts of 41 rows, with importance for two of the three experts."""
    rng = np.random.default_rng(3)
    means = np.exp(2 * rng.standard_normal((3, 512))).astype(np.float32)
    imatrix = read_imatrix(write_counted(folder / "i", {NAME: (means, [1, 1, 0])}))
    tensors = (computed_tensor("a.weight", 257), computed_tensor(NAME, 3, 41, 512))
    return make_plan(model(*tensors), recipe(type_name), imatrix=imatrix)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("same")


@pytest.fixture(scope="module", params=slow_except(FAST_TYPES, ALL))
def plain(request: pytest.FixtureRequest, folder: Path) -> tuple[Plan, bytes]:
    plan = plan_of(request.param, folder)
    return plan, converted(plan, folder / f"{request.param}.gguf", threads=1, chunk_bytes=1 << 30)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def converted(plan: Plan, out: Path, **options: Any) -> bytes:
    convert_plan(plan, out, **options)
    content = out.read_bytes()
    out.unlink()
    return content


@pytest.mark.parametrize("isa", isas()[:-1])
def test_every_isa_gives_the_same_file(
    plain: tuple[Plan, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isa: str
) -> None:
    monkeypatch.setenv("DYNQUANT_ISA", isa)
    assert converted(plain[0], tmp_path / "x.gguf", threads=2) == plain[1]


@pytest.mark.parametrize(("threads", "chunk_bytes"), [(1, 1), (2, CHUNK), (7, 3000)])
def test_threads_and_chunks_give_the_same_file(
    plain: tuple[Plan, bytes], tmp_path: Path, threads: int, chunk_bytes: int
) -> None:
    out = tmp_path / "x.gguf"
    assert converted(plain[0], out, threads=threads, chunk_bytes=chunk_bytes) == plain[1]


def interrupt() -> None:
    raise KeyboardInterrupt


def test_run_interrupted_twice_with_other_chunks_and_isa_gives_the_same_file(
    plain: tuple[Plan, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.gguf"
    # The header, the identity and the norm are written first.
    for isa, threads, chunk_bytes, n_writes in ((isas()[0], 1, CHUNK, 9), (isas()[-1], 3, 2100, 7)):
        monkeypatch.setenv("DYNQUANT_ISA", isa)
        with at_call(("pwrite",), n_writes, interrupt), pytest.raises(KeyboardInterrupt):
            convert_plan(plain[0], out, threads=threads, chunk_bytes=chunk_bytes)
    assert converted(plain[0], out, threads=1) == plain[1]


@pytest.fixture(scope="module")
def books(folder: Path) -> bytes:
    return by_command(folder / "plain.gguf", {})


def by_command(out: Path, changes: dict[str, str], *more: str) -> bytes:
    """Convert in a separate process, whose working folder is not that of the output."""
    source = load_reference(TINY_BOOKS).folder
    code = (
        f"import time; time.time = lambda: {len(changes)}e9; from dynquant.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "convert", str(source), "-o", str(out)]
    environment = os.environ | changes
    subprocess.run([*command, "--recipe", "dynamic-4bit", "-q", *more], check=True, env=environment)
    return out.read_bytes()


@pytest.mark.slow
def test_output_does_not_depend_on_folder_clock_time_zone_or_hash_seed(
    books: bytes, tmp_path: Path
) -> None:
    elsewhere = {"PYTHONHASHSEED": "7", "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": "/"}
    assert by_command(tmp_path / "another name.gguf", elsewhere, "--threads", "3") == books


@pytest.mark.slow
def test_output_does_not_reveal_where_and_when_it_was_made(books: bytes, folder: Path) -> None:
    traces = [str(folder), str(load_reference(TINY_BOOKS).folder), str(Path.cwd())]
    traces += [time.strftime("%Y-%m-%d"), os.fsdecode(folder.name)]
    if len(socket.gethostname()) > 3:
        traces.append(socket.gethostname())
    assert [t for t in traces if t.encode() in books] == []
