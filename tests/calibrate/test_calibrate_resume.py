"""An interrupted run resumes after the last stored layer, with the same result.

Needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference

from dynquant.errors import CalibrationError

torch: Any = pytest.importorskip("torch", reason="needs the extra calibrate")

from dynquant.calibrate.one_pass import Seen  # noqa: E402
from dynquant.calibrate.run import collect  # noqa: E402
from dynquant.calibrate.sources import open_source  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]


class InterruptError(Exception):
    """Ends a run before a layer."""


def windows(n: int = 9) -> Any:
    return np.array([np.random.default_rng(i).integers(0, 400, 300) for i in range(n)], np.int32)


def run(family: str, state: Path, stop_before: int = -1, **options: Any) -> tuple[Seen, list[int]]:
    layers: list[int] = []

    def progress(done: int, total: int) -> None:
        layers.append(done)
        if done == stop_before:
            raise InterruptError

    source = open_source(load_reference(family).folder)
    options = {"windows": windows(), "save_seconds": 0.0, **options}
    seen = collect(source, threads=2, progress=progress, state=state, **options)
    return seen, layers


def assert_same(a: Seen, b: Seen) -> None:
    assert a.totals.keys() == b.totals.keys()
    for feed, sums in a.totals.items():
        for x, y in zip(sums, b.totals[feed], strict=True):
            assert (x.count, x.squares.tobytes()) == (y.count, y.squares.tobytes())
            assert x.linear.tobytes() == y.linear.tobytes()


@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3", "gpt2", "gptneox", "gemma3", "jamba"])
def test_a_run_resumes_after_the_last_layer(family: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    whole, layers = run(family, state)
    assert not state.exists()
    with pytest.raises(InterruptError):
        run(family, state, stop_before=layers[-2])
    assert state.exists()
    resumed, again = run(family, state)
    assert again == layers[-2:]
    assert_same(whole, resumed)
    assert not state.exists()


def test_a_model_that_changes_what_layers_share_starts_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(InterruptError):
        run("gemma3n", state, stop_before=2)
    assert not state.exists()


def test_a_state_of_other_tokens_is_not_used(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(InterruptError):
        run("qwen3", state, stop_before=2)
    _, layers = run("qwen3", state, windows=windows(2))
    assert layers[0] == 0


def test_states_are_stored_at_a_distance_in_time(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with pytest.raises(InterruptError):
        run("qwen3", state, stop_before=2, save_seconds=1000.0)
    assert not state.exists()


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.write_bytes(b"nothing")
    with pytest.raises(CalibrationError, match=r"state: is damaged; remove it to start again"):
        run("qwen3", state)


@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3", "gemma3n"])
def test_passes_change_no_bit(family: str, tmp_path: Path) -> None:
    one, layers = run(family, tmp_path / "a", windows=windows(19))
    several, more = run(family, tmp_path / "b", windows=windows(19), passes=4)
    assert more == list(range(4 * (len(layers) - 1) + 1))
    assert_same(one, several)


@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3"])
def test_a_run_resumes_in_a_later_pass(family: str, tmp_path: Path) -> None:
    state, options = tmp_path / "state", {"windows": windows(19), "passes": 2}
    whole, layers = run(family, state, **options)
    with pytest.raises(InterruptError):
        run(family, state, stop_before=layers[-2], **options)
    resumed, again = run(family, state, **options)
    assert len(again) == 2
    assert_same(whole, resumed)


def test_a_run_resumes_with_fewer_passes(tmp_path: Path) -> None:
    state, options = tmp_path / "state", {"windows": windows(19)}
    whole, _ = run("qwen3", tmp_path / "other", **options)
    with pytest.raises(InterruptError):
        run("qwen3", state, stop_before=3, passes=4, **options)
    resumed, _ = run("qwen3", state, **options)
    assert_same(whole, resumed)


def test_a_model_that_changes_what_layers_share_resumes_at_a_pass(tmp_path: Path) -> None:
    state, options = tmp_path / "state", {"windows": windows(19), "passes": 2}
    whole, layers = run("gemma3n", state, **options)
    with pytest.raises(InterruptError):
        run("gemma3n", state, stop_before=layers[-2], **options)
    resumed, again = run("gemma3n", state, **options)
    assert len(again) == len(layers) // 2 + 1
    assert_same(whole, resumed)
