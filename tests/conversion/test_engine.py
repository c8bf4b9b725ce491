"""Bytes depend only on the plan, and a failed run leaves nothing that looks finished."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
from handmade import (
    DOWN,
    computed_tensor,
    model,
    names,
    recipe,
    small_plan,
    small_tensors,
    stored_tensor,
    weights,
)
from places import shared
from subsets import FAST_TYPES, slow_except
from weighted import EXPERTS, spread, weighted_plan

from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32, U8
from dynquant.checkpoint.gguf import read_gguf
from dynquant.conversion.engine import Progress
from dynquant.conversion.layout import lay_out
from dynquant.conversion.write import convert_plan
from dynquant.errors import CheckpointError, ConvertError, ImportanceError
from dynquant.importance.experts import ALONE
from dynquant.importance.imatrix import read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.objective import search_for
from dynquant.plan.plan import Plan
from dynquant.quants import ALL, QuantType, encode
from dynquant.quants.search import EFFORTS, Effort
from dynquant.systems import system
from dynquant.tensors import Computed, TensorSource

MIXED = "rules: [{role: ffn_down, type: Q4_0}, {role: token_embd, type: F16}]"


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    out = tmp_path_factory.mktemp("one") / "x.gguf"
    convert_plan(small_plan(more=MIXED), out, threads=1)
    return out.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("threads", [2, 7])
def test_bytes_do_not_depend_on_threads(expected: bytes, tmp_path: Path, threads: int) -> None:
    convert_plan(small_plan(more=MIXED), tmp_path / "x.gguf", threads=threads, chunk_bytes=4096)
    assert (tmp_path / "x.gguf").read_bytes() == expected


@pytest.mark.parametrize("chunk_bytes", [1, 3000, 10_000, 1 << 30])
def test_bytes_do_not_depend_on_the_chunk(
    expected: bytes, tmp_path: Path, chunk_bytes: int
) -> None:
    convert_plan(small_plan(more=MIXED), tmp_path / "x.gguf", threads=2, chunk_bytes=chunk_bytes)
    assert (tmp_path / "x.gguf").read_bytes() == expected


@pytest.mark.slow
def test_gguf_reads_back_the_encoded_blocks_of_each_tensor(tmp_path: Path) -> None:
    plan = small_plan(more=MIXED)
    convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=4096)
    for found, planned in zip(
        gguf.GGUFReader(tmp_path / "x.gguf").tensors, plan.tensors, strict=True
    ):
        source = plan.sources[planned.name].source
        assert isinstance(source, Computed)
        rows = source.values.reshape(-1, planned.n_per_row)
        wanted = gguf.quants.dequantize(encode(rows, planned.type), planned.type.ggml_type)
        decoded = gguf.quants.dequantize(found.data, found.tensor_type)
        assert np.array_equal(decoded.reshape(-1), wanted.reshape(-1))


@pytest.mark.parametrize(
    "name", slow_except(FAST_TYPES, [n for n, t in ALL.items() if not t.needs_importance])
)
def test_our_reader_finds_the_blocks_of_every_type(tmp_path: Path, name: str) -> None:
    plan = small_plan(name)
    convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=4096)
    file = read_gguf(tmp_path / "x.gguf")
    content = (tmp_path / "x.gguf").read_bytes()
    for found, planned in zip(file.tensors, plan.tensors, strict=True):
        assert (found.type_name, found.n_bytes) == (planned.type.name, planned.n_bytes)
        source = plan.sources[planned.name].source
        assert isinstance(source, Computed)
        gain = search_for(planned.name, "normal").gain
        blocks = encode(source.values.reshape(-1, planned.n_per_row), planned.type, gain=gain)
        start = file.data_offset + found.offset
        assert content[start : start + found.n_bytes] == blocks.tobytes()


def test_float32_tensors_are_written_bit_for_bit(tmp_path: Path) -> None:
    convert_plan(small_plan("F32"), tmp_path / "x.gguf", threads=2)
    for found, tensor in zip(
        gguf.GGUFReader(tmp_path / "x.gguf").tensors, model().tensors, strict=True
    ):
        assert isinstance(tensor.source, Computed)
        assert np.array_equal(found.data, tensor.source.values)


def test_bfloat16_from_a_file_becomes_the_same_float32(tmp_path: Path) -> None:
    x = weights(5, 96)
    plan = make_plan(model(stored_tensor(tmp_path / "w", "a.weight", x)), recipe("F32"))
    convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=100)
    wanted = (x.view(np.uint32) & 0xFFFF0000).view(np.float32)
    assert np.array_equal(gguf.GGUFReader(tmp_path / "x.gguf").tensors[0].data, wanted)


def decoded(path: Path) -> dict[str, F32]:
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors
    }


def test_each_expert_is_encoded_with_its_importance(tmp_path: Path) -> None:
    plan = weighted_plan(tmp_path, (1, 0, 1), ALONE)
    convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=16 * 1024)
    (found,) = [t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors if t.name == EXPERTS]
    source = plan.sources[EXPERTS].source
    assert isinstance(source, Computed)
    rows = spread(3, 256, seed=1)
    made = [
        encode(source.values[expert], "Q4_0", importance)
        for expert, importance in enumerate((rows[0], None, rows[2]))
    ]
    assert np.array_equal(found.data, np.stack(made))


@pytest.mark.slow
def test_importance_lowers_the_weighted_error_of_its_tensors_only(tmp_path: Path) -> None:
    plan = weighted_plan(tmp_path)
    convert_plan(plan, tmp_path / "with.gguf", threads=2)
    convert_plan(make_plan(model(), recipe("Q4_0")), tmp_path / "without.gguf", threads=2)
    with_, without = decoded(tmp_path / "with.gguf"), decoded(tmp_path / "without.gguf")
    for name in (DOWN, EXPERTS):
        source, importance = plan.sources[name].source, plan.importance[name]
        assert isinstance(source, Computed)
        w = np.stack([importance.of(m) for m in range(importance.n_matrices)])
        w = w.reshape(*source.shape[:-2], 1, -1)
        errors = [float((w * (source.values - x[name]) ** 2).sum()) for x in (with_, without)]
        assert errors[0] < 0.9 * errors[1]
    for name in set(with_) - {DOWN, EXPERTS}:
        assert np.array_equal(with_[name], without[name])


@pytest.mark.slow
@pytest.mark.parametrize(("threads", "chunk_bytes"), [(1, 1), (2, 3000), (7, 50_000), (1, 1 << 30)])
def test_bytes_with_importance_do_not_depend_on_threads_or_chunks(
    tmp_path: Path, threads: int, chunk_bytes: int
) -> None:
    plan = weighted_plan(tmp_path)
    convert_plan(plan, tmp_path / "a.gguf", threads=1)
    convert_plan(plan, tmp_path / "b.gguf", threads=threads, chunk_bytes=chunk_bytes)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def made(folder: Path, effort: Effort, threads: int = 2, default: str = "Q4_K") -> dict[str, bytes]:
    """Return the bytes of each tensor of the small model."""
    out = folder / f"{effort}{threads}.gguf"
    convert_plan(make_plan(model(), recipe(default), effort=effort), out, threads=threads)
    return {t.name: t.data.tobytes() for t in gguf.GGUFReader(out).tensors}


@pytest.mark.slow
@pytest.mark.parametrize("default", ["Q4_K", "Q6_K"])
def test_the_effort_reaches_the_encoder(tmp_path: Path, default: str) -> None:
    source = small_tensors()[2].source
    assert isinstance(source, Computed)
    found = {effort: made(tmp_path, effort, default=default)[DOWN] for effort in EFFORTS}
    assert found == {e: encode(source.values, default, effort=e).tobytes() for e in EFFORTS}
    assert found["fast"] != found["best"]


@pytest.mark.slow
@pytest.mark.parametrize("effort", EFFORTS)
def test_bytes_do_not_depend_on_threads_at_any_effort(tmp_path: Path, effort: Effort) -> None:
    assert made(tmp_path, effort, 1) == made(tmp_path, effort, 7)


@pytest.mark.shared
def test_channels_with_zero_importance_in_gemma_are_encoded_to_finite_weights(
    tmp_path: Path,
) -> None:
    name = "blk.1.ffn_up.weight"
    imatrix = read_imatrix(shared("imatrix/gemma-3-4b.imatrix.dat"))
    source = Computed(weights(32, 2560))
    plan = make_plan(model(ModelTensor(name, source)), recipe("Q4_K"), imatrix=imatrix)
    convert_plan(plan, tmp_path / "x.gguf", threads=2)
    w = imatrix.entries[name].means()
    found = decoded(tmp_path / "x.gguf")[name]
    assert (w == 0).any()
    assert np.all(np.isfinite(found))
    neutral = gguf.quants.dequantize(encode(source.values, "Q4_K"), gguf.GGMLQuantizationType.Q4_K)
    errors = [float((w * (source.values - x) ** 2).sum()) for x in (found, neutral)]
    assert errors[0] < 0.9 * errors[1]


def test_imatrix_truncated_during_a_run_stops_it(tmp_path: Path) -> None:
    plan = weighted_plan(tmp_path)
    os.truncate(tmp_path / "i.gguf", 1000)
    with pytest.raises(ImportanceError, match=r"i\.gguf: ends at byte \d+"):
        convert_plan(plan, tmp_path / "x.gguf", threads=2)
    assert names(tmp_path) == ["i.gguf", "x.gguf.journal", "x.gguf.part"]


def test_the_imatrix_is_not_overwritten_even_with_force(tmp_path: Path) -> None:
    with pytest.raises(ConvertError, match=r"i\.gguf: is the imatrix; name another output"):
        convert_plan(weighted_plan(tmp_path), tmp_path / "i.gguf", threads=1, force=True)


def test_padding_is_zero_over_an_old_part(tmp_path: Path) -> None:
    (tmp_path / "x.gguf.part").write_bytes(b"\xff" * 1_000_000)
    plan = small_plan()
    convert_plan(plan, tmp_path / "x.gguf", threads=2)
    content = (tmp_path / "x.gguf").read_bytes()
    (layout,) = lay_out(plan).files
    for t in plan.tensors:
        end = layout.position(t) + t.n_bytes
        assert not any(content[end : end + -end % 32])
    assert len(content) == layout.file_bytes


def test_short_writes_are_continued(
    expected: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = system().write_at
    monkeypatch.setattr(system(), "write_at", lambda fd, b, at: whole(fd, b[:1000], at))
    convert_plan(small_plan(more=MIXED), tmp_path / "x.gguf", threads=2)
    assert (tmp_path / "x.gguf").read_bytes() == expected


def test_finished_run_leaves_only_the_output(tmp_path: Path) -> None:
    convert_plan(small_plan(), tmp_path / "x.gguf", threads=2)
    assert names(tmp_path) == ["x.gguf"]


def test_progress_comes_from_the_calling_thread_and_ends_at_the_total(tmp_path: Path) -> None:
    plan = small_plan()
    seen: list[tuple[int, Progress]] = []
    convert_plan(
        plan,
        tmp_path / "x.gguf",
        threads=3,
        progress=lambda p: seen.append((threading.get_ident(), p)),
    )
    assert {ident for ident, _ in seen} == {threading.get_ident()}
    done = [p.bytes_done for _, p in seen]
    assert done == sorted(done)
    assert done[0] == 0
    total = (plan.tensor_bytes, plan.tensor_bytes, plan.n_weights, plan.n_weights)
    last = seen[-1][1]
    assert (last.bytes_done, last.bytes_total, last.weights_done, last.weights_total) == total


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type_name", ["Q8_0", "F32"])
def test_nonfinite_weight_is_reported_with_tensor_and_row(
    tmp_path: Path, bad: float, type_name: str
) -> None:
    x = weights(50, 96)
    x[17, 5] = bad
    tensors = (computed_tensor("a.weight", 60, 96), ModelTensor("b.weight", Computed(x)))
    plan = make_plan(model(*tensors), recipe(type_name))
    with pytest.raises(ConvertError) as e:
        convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=4 * 96 * 4)
    assert e.value.messages[0].startswith("tensor 'b.weight' (stored as F32): row 17 contains")
    assert names(tmp_path) == ["x.gguf.journal", "x.gguf.part"]


@dataclass(frozen=True)
class Failing:
    """A source that cannot be read at or after some row."""

    shape: tuple[int, ...]
    row: int
    calls: list[int]
    stored: QuantType = ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        self.calls.append(start)
        if stop > self.row:
            raise CheckpointError(f"broken at row {self.row}")
        into[:] = 0


def failing_plan(calls: list[int]) -> Plan:
    source: TensorSource = Failing((10_000, 32), 20, calls)
    return make_plan(model(ModelTensor("a.weight", source)), recipe())


def test_the_first_failure_stops_all_threads_and_is_raised_once(tmp_path: Path) -> None:
    calls: list[int] = []
    before = threading.active_count()
    with pytest.raises(CheckpointError, match="broken at row 20"):
        convert_plan(failing_plan(calls), tmp_path / "x.gguf", threads=4, chunk_bytes=1)
    assert threading.active_count() == before
    assert len(calls) < 1000


def test_an_error_in_the_callback_stops_the_run(tmp_path: Path) -> None:
    def give_up(_: Progress) -> None:
        raise KeyError("the caller's own")

    before = threading.active_count()
    with pytest.raises(KeyError):
        convert_plan(small_plan(), tmp_path / "x.gguf", threads=2, progress=give_up)
    assert threading.active_count() == before
    assert names(tmp_path) == ["x.gguf.journal", "x.gguf.part"]


def test_next_run_replaces_the_part_of_a_failed_run(expected: bytes, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        convert_plan(failing_plan([]), tmp_path / "x.gguf", threads=2)
    convert_plan(small_plan(more=MIXED), tmp_path / "x.gguf", threads=2)
    assert names(tmp_path) == ["x.gguf"]
    assert (tmp_path / "x.gguf").read_bytes() == expected


def test_force_replaces_an_output_only_when_the_new_one_is_complete(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(CheckpointError):
        convert_plan(failing_plan([]), tmp_path / "x.gguf", threads=1, force=True)
    assert (tmp_path / "x.gguf").read_text() == "mine"
    convert_plan(small_plan(), tmp_path / "x.gguf", threads=1, force=True)
    assert (tmp_path / "x.gguf").read_bytes()[:4] == b"GGUF"
