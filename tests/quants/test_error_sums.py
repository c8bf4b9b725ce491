"""Errors of a conversion equal those of numpy in double precision on every ISA."""

from __future__ import annotations

from dataclasses import astuple
from pathlib import Path

import gguf
import numpy as np
import pytest
from handmade import DOWN, computed_tensor, model, recipe, small_plan, stored_tensor, weights
from imatrices import write_counted
from oracles import degenerate_rows, gguf_decode, log_normal_importance, matrices
from subsets import FAST_TYPES, slow_except

from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32
from dynquant.conversion import write
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError
from dynquant.importance.imatrix import read_imatrix
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants import ALL, ErrorSums, TensorError, codec, encode, isas
from dynquant.quants.codec import error_sums
from dynquant.quants.table import FLOATS
from dynquant.tensors import Computed

TYPES = list(ALL)
X = dict(matrices(5, 768))["student-t"]


def expected(x: F32, y: F32, importance: F32 | None) -> ErrorSums:
    """Return the five sums in double precision."""
    w = np.ones(x.shape[1]) if importance is None else importance.astype(np.float64)
    a, b = x.astype(np.float64), y.astype(np.float64)
    sums = [float((w * p).sum()) for p in ((a - b) ** 2, a * a, a * b, b * b)]
    return ErrorSums(*sums, float(np.abs(a - b).max()))


def figures(x: F32, y: F32, importance: F32 | None) -> TensorError:
    """Return the three figures by their definitions."""
    e = expected(x, y, importance)
    angle = 1 - e.product**2 / (e.original * e.decoded)
    return TensorError(e.difference / e.original, angle, e.largest)


def on_each_isa(
    monkeypatch: pytest.MonkeyPatch, x: F32, stored: str, name: str, w: F32 | None
) -> ErrorSums:
    """Return the sums of x in two types; they must be the same on all ISAs."""
    rows, blocks = encode(x, stored), encode(x, name, w)
    found: set[tuple[bytes, ...]] = set()
    for isa in isas():
        monkeypatch.setenv("DYNQUANT_ISA", isa)
        sums = error_sums(rows, ALL[stored], x.shape[1], ALL[name], blocks, w)
        found.add(tuple(np.float64(s).tobytes() for s in sums))
    assert len(found) == 1
    return sums


@pytest.mark.parametrize("with_importance", [True, False])
@pytest.mark.parametrize("stored", FLOATS)
@pytest.mark.parametrize("name", slow_except(FAST_TYPES, TYPES))
def test_sums_are_those_of_numpy_on_every_isa(
    monkeypatch: pytest.MonkeyPatch, name: str, stored: str, with_importance: bool
) -> None:
    w = log_normal_importance(X.shape[1]) if with_importance else None
    found = on_each_isa(monkeypatch, X, stored, name, w)
    x, y = gguf_decode(encode(X, stored), ALL[stored]), gguf_decode(encode(X, name, w), ALL[name])
    np.testing.assert_allclose(found, expected(x, y, w), rtol=2e-6)
    wanted = figures(x, y, w)
    # The definition of 1 - cos2 loses about 1e-15 of one to cancellation.
    np.testing.assert_allclose(astuple(found.figures()), astuple(wanted), rtol=1e-5, atol=1e-14)


@pytest.mark.parametrize("stored", [n for n, t in ALL.items() if not t.needs_importance])
def test_original_may_be_stored_in_any_type(monkeypatch: pytest.MonkeyPatch, stored: str) -> None:
    found = on_each_isa(monkeypatch, X, stored, "Q4_K", None)
    x, y = gguf_decode(encode(X, stored), ALL[stored]), gguf_decode(encode(X, "Q4_K"), ALL["Q4_K"])
    np.testing.assert_allclose(found, expected(x, y, None), rtol=2e-6)


@pytest.mark.parametrize("name", ["F16", "BF16", "Q8_0", "Q4_K", "IQ4_XS"])
def test_sums_are_accurate_for_very_large_and_small_weights(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for case, x in degenerate_rows():
        w = np.exp(10 * np.random.default_rng(1).standard_normal(512)).astype(np.float32)
        found = on_each_isa(monkeypatch, x, "F32", name, w)
        wanted = expected(x, gguf_decode(encode(x, name, w), ALL[name]), w)
        # Differences are rounded where x is subnormal; sums much smaller than x are not tested.
        least = [1e-12 * wanted.original] * 4 + [1e-45]
        for a, b, atol in zip(found, wanted, least, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol, err_msg=case)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (1, 1023), (1, 1025), (70, 31), (2, 4096)])
def test_rows_of_any_length_are_summed_completely(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int]
) -> None:
    x, w = weights(*shape), log_normal_importance(shape[1])
    found = on_each_isa(monkeypatch, x, "F32", "BF16", w)
    wanted = expected(x, gguf_decode(encode(x, "BF16"), ALL["BF16"]), w)
    np.testing.assert_allclose(found, wanted, rtol=2e-6)


def test_error_of_bf16_in_f16_counts_only_values_outside_f16() -> None:
    x = gguf_decode(encode(weights(4, 64), "BF16"), ALL["BF16"])
    x[1, 7] = 2.0**-30
    found = error_sums(encode(x, "BF16"), ALL["BF16"], 64, ALL["F16"], encode(x, "F16"))
    assert (found.difference, found.largest) == (2.0**-60, 2.0**-30)


def test_figures_are_zero_for_zeros_and_one_for_lost_weights() -> None:
    assert ErrorSums().figures() == TensorError(0.0, 0.0, 0.0)
    assert ErrorSums(3.0, 3.0, 3.0, 0.0, 1.5).figures() == TensorError(1.0, 1.0, 1.5)


def test_gain_is_an_error_of_length_but_not_of_angle() -> None:
    x = weights(2, 64)
    found = error_sums(encode(x, "F32"), ALL["F32"], 64, ALL["F32"], encode(2 * x, "F32")).figures()
    assert found.weighted == pytest.approx(1)
    assert found.one_minus_cos2 == pytest.approx(0, abs=1e-15)


def test_buffers_that_do_not_fit_together_are_refused() -> None:
    rows, blocks = encode(X, "F16"), encode(X, "Q4_K")
    for wrong in (
        (rows[1:], ALL["F16"], 768, ALL["Q4_K"], blocks),
        (rows, ALL["F32"], 768, ALL["Q4_K"], blocks),
        (rows, ALL["F16"], 767, ALL["Q4_K"], blocks),
        (rows, ALL["F16"], 0, ALL["Q4_K"], blocks),
        (rows, ALL["F16"], 768, ALL["Q4_K"], blocks.ravel()[1:]),
        (rows, ALL["F16"], 768, ALL["Q4_K"], blocks, log_normal_importance(767)),
    ):
        with pytest.raises(ValueError, match="do not fit together"):
            error_sums(*wrong)


EXPERTS = "blk.1.ffn_up_exps.weight"


def weighted_plan(folder: Path) -> Plan:
    """Plan the small model with importance for one matrix and for two of three experts."""
    rng = np.random.default_rng(0)
    spread = [np.exp(rng.standard_normal(s)).astype(np.float32) for s in ((1, 512), (3, 256))]
    entries = {DOWN: (spread[0], [1]), EXPERTS: (spread[1], (1, 0, 1))}
    imatrix = read_imatrix(write_counted(folder / "i.gguf", entries))
    more = "rules: [{role: token_embd, type: F16}]"
    return make_plan(model(), recipe("Q4_K", more), imatrix=imatrix)


@pytest.mark.slow
def test_conversion_reports_the_errors_of_the_written_tensors(tmp_path: Path) -> None:
    plan = weighted_plan(tmp_path)
    found = convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=5000).errors
    written = gguf.GGUFReader(tmp_path / "x.gguf").tensors
    for tensor, out in zip(plan.tensors, written, strict=True):
        source = plan.sources[tensor.name].source
        assert isinstance(source, Computed)
        if tensor.type.name == "F32":
            assert tensor.name not in found
            continue
        y = gguf.quants.dequantize(out.data, out.tensor_type).astype(np.float32)
        importance = plan.importance.get(tensor.name)
        shape = (3 if tensor.name == EXPERTS else 1, -1, tensor.n_per_row)
        original, decoded, sums = source.values.reshape(shape), y.reshape(shape), ErrorSums()
        for m in range(len(original)):
            w = importance.of(m) if importance else None
            sums = sums.joined(expected(original[m], decoded[m], w))
        np.testing.assert_allclose(astuple(found[tensor.name]), astuple(sums.figures()), rtol=1e-5)


@pytest.mark.slow
def test_errors_do_not_depend_on_threads_or_on_the_isa(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[object] = set()
    for isa in isas():
        monkeypatch.setenv("DYNQUANT_ISA", isa)
        for threads in (1, 2, 7):
            out = tmp_path / "x.gguf"
            plan = weighted_plan(tmp_path)
            done = convert_plan(plan, out, threads=threads, chunk_bytes=5000, force=True)
            found.add(tuple(done.errors.items()))
    assert len(found) == 1


@pytest.mark.slow
def test_errors_are_the_same_after_a_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = weighted_plan(tmp_path)
    original, calls = write.PartFiles.write, [0]

    def interrupt(*args: object) -> None:
        calls[0] += 1
        if calls[0] == 40:
            raise ConvertError("interrupted")
        original(*args)  # type: ignore[reportArgumentType]

    measured: list[object] = []
    monkeypatch.setattr(codec, "error_sums", lambda *a: measured.append(a) or error_sums(*a))
    whole = convert_plan(plan, tmp_path / "whole.gguf", threads=1, chunk_bytes=5000)
    in_whole = len(measured)
    with monkeypatch.context() as patched:
        patched.setattr(write.PartFiles, "write", interrupt)
        with pytest.raises(ConvertError, match="interrupted"):
            convert_plan(plan, tmp_path / "x.gguf", threads=1, chunk_bytes=5000)
    in_first = len(measured) - in_whole
    resumed = convert_plan(plan, tmp_path / "x.gguf", threads=2, chunk_bytes=5000)
    assert resumed.errors == whole.errors
    # The rows measured at the time of the interrupt were not written.
    assert 0 < len(measured) - in_whole - in_first == in_whole - (in_first - 1)


@pytest.mark.slow
def test_copied_and_widened_tensors_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(codec, "error_sums", None)
    plans = (
        small_plan("F32"),
        make_plan(model(stored_tensor(tmp_path / "w", "a.weight", weights(5, 96))), recipe("BF16")),
        make_plan(model(stored_tensor(tmp_path / "v", "a.weight", weights(5, 96))), recipe("F32")),
    )
    for plan in plans:
        done = convert_plan(plan, tmp_path / "x.gguf", threads=1, force=True)
        assert not done.errors


def test_a_tensor_of_zeros_has_no_error(tmp_path: Path) -> None:
    zeros = ModelTensor("a.weight", Computed(np.zeros((4, 256), np.float32)))
    plan = make_plan(model(zeros, computed_tensor("b.weight", 4, 256)), recipe("Q4_K"))
    errors = convert_plan(plan, tmp_path / "x.gguf", threads=1).errors
    of_zeros, of_weights = errors["a.weight"], errors["b.weight"]
    assert of_zeros == TensorError(0.0, 0.0, 0.0)
    assert of_weights
    assert 0 < of_weights.one_minus_cos2 <= of_weights.weighted < 0.01
