"""Second moments of a model's inputs are those of the activations that transformers computes.

Needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from agreement import load_reference

import dynquant
from dynquant.importance.moments import N_SIGNS, full_matrix, read_moments

torch: Any = pytest.importorskip("torch", reason="needs the extra calibrate")
transformers: Any = pytest.importorskip("transformers", reason="needs the extra calibrate")

from dynquant.calibrate.feeds import feeds  # noqa: E402
from dynquant.calibrate.moments import Collector, Detail, held_out, inputs_of  # noqa: E402
from dynquant.calibrate.run import collect  # noqa: E402
from dynquant.calibrate.skeleton import blocks  # noqa: E402
from dynquant.calibrate.sources import open_source  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

WINDOWS = np.array([np.random.default_rng(i).integers(0, 400, 300) for i in range(9)], np.int32)
HELD = 7


class InterruptError(Exception):
    """Ends a run before a layer."""


def run(
    family: str,
    out: Path,
    *,
    detail: Detail = "layers",
    threads: int = 2,
    state: Path | None = None,
    stop_before: int = -1,
) -> None:
    source = open_source(load_reference(family).folder)
    places = feeds(source, dict(blocks(source.skeleton.model)))
    inputs = inputs_of(source, places, detail)
    tensors = source.model.tensors
    moments = Collector(out, inputs, places, tensors, WINDOWS.shape, {"model": family})

    def progress(done: int, total: int) -> None:
        if done == stop_before:
            raise InterruptError

    collect(
        source,
        WINDOWS,
        threads=threads,
        progress=progress,
        moments=moments,
        state=state,
        save_seconds=0.0,
    )


def activations(family: str) -> dict[str, Any]:
    """Return the inputs of the modules of the whole model, float64 [n_windows, n, n_channels]."""
    folder = load_reference(family).folder
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs: dict[str, Any] = {}
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear) or hasattr(module, "is_concatenated"):
            module.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x}))
    with torch.no_grad():
        whole(input_ids=torch.from_numpy(WINDOWS.astype(np.int64)), use_cache=False)
    return inputs


def correlations(x: Any) -> Any:
    norms = np.linalg.norm(x, axis=0)
    x = x / np.where(norms, norms, 1)
    return x.T @ x


@pytest.mark.parametrize(
    ("tensor", "module"),
    [
        ("blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj"),
        ("blk.1.ffn_down.weight", "model.layers.1.mlp.down_proj"),
        ("output.weight", "lm_head"),
    ],
)
def test_moments_are_those_of_the_inputs(tensor: str, module: str, tmp_path: Path) -> None:
    out = tmp_path / "m.moments.safetensors"
    run("llama-3.1", out)
    found = read_moments(out).arrays(tensor)
    x = activations("llama-3.1")[module][0].double().numpy()
    n = x.shape[-1]
    fit = np.delete(x, HELD, axis=0).reshape(-1, n)
    np.testing.assert_allclose(
        full_matrix(found["correlations"][0], n), correlations(fit), atol=2**-11 + 1e-5
    )
    assert found["counts"].tolist() == [WINDOWS.size]
    np.testing.assert_allclose(found["squares"][0], (x**2).mean(axis=(0, 1)), rtol=1e-4, atol=1e-7)
    errors = np.random.default_rng(0).normal(size=(400, n))
    estimate = np.square(errors @ found["held_out"][0].T).sum()
    exact = np.square(errors @ x[HELD].T).sum() / len(x[HELD])
    assert abs(estimate / exact - 1) < 3 * np.sqrt(2 / N_SIGNS)


@pytest.mark.parametrize("detail", ["layers", "experts"])
def test_experts_have_moments_together_or_each(detail: Detail, tmp_path: Path) -> None:
    out = tmp_path / "m.moments.safetensors"
    run("qwen3moe", out, detail=detail)
    found = read_moments(out)
    name = next(name for name in found.inputs if name.endswith("ffn_up_exps.weight"))
    layer = int(name.split(".")[1])
    own = found.arrays(name)
    hidden, chosen = (
        x.numpy() for x in activations("qwen3moe")[f"model.layers.{layer}.mlp.experts"][:2]
    )
    fit = np.arange(len(hidden)) // WINDOWS.shape[1] != HELD
    n_experts, n = own["squares"].shape
    assert len(own["correlations"]) == (1 if detail == "layers" else n_experts)
    for expert, stored in enumerate(own["correlations"]):
        mine = fit & ((chosen == expert).any(axis=-1) | (detail == "layers"))
        expected = correlations(hidden[mine].astype(np.float64))
        np.fill_diagonal(expected, 1)
        np.testing.assert_allclose(full_matrix(stored, n), expected, atol=2**-11 + 1e-5)
    assert own["counts"].tolist() == [(chosen == e).any(axis=-1).sum() for e in range(n_experts)]


def test_matrices_with_the_same_input_share_its_moments(tmp_path: Path) -> None:
    out = tmp_path / "m.moments.safetensors"
    run("qwen3moe", out)
    inputs = read_moments(out).inputs
    for first, *others in (
        ("blk.0.attn_q", "blk.0.attn_k", "blk.0.attn_v"),
        ("blk.0.ffn_gate_exps", "blk.0.ffn_up_exps"),
    ):
        for other in others:
            assert inputs[f"{first}.weight"] is inputs[f"{other}.weight"]
    assert "blk.0.ffn_gate_inp.weight" not in inputs


@pytest.mark.parametrize("detail", ["layers", "experts"])
def test_threads_and_an_interrupt_change_no_byte(detail: Detail, tmp_path: Path) -> None:
    one, three, resumed = (tmp_path / f"{n}.moments.safetensors" for n in (1, 3, "resumed"))
    run("deepseek-v3", one, detail=detail, threads=1)
    run("deepseek-v3", three, detail=detail, threads=3)
    state = tmp_path / "state"
    with pytest.raises(InterruptError):
        run("deepseek-v3", resumed, detail=detail, state=state, stop_before=2)
    assert state.exists()
    run("deepseek-v3", resumed, detail=detail, state=state)
    assert one.read_bytes() == three.read_bytes() == resumed.read_bytes()


@pytest.mark.parametrize(("n", "expected"), [(1, []), (2, [1]), (7, [6]), (8, [7]), (17, [7, 15])])
def test_every_eighth_window_is_held_out(n: int, expected: list[int]) -> None:
    assert np.flatnonzero(held_out(n)).tolist() == expected


@pytest.mark.parametrize(
    ("family", "tensor", "module"),
    [
        ("qwen3next", "blk.0.ssm_out.weight", "model.layers.0.linear_attn.out_proj"),
        ("falcon-h1", "blk.0.attn_v.weight", "model.layers.0.self_attn.v_proj"),
    ],
)
def test_channels_have_the_order_and_the_size_that_the_weights_of_the_gguf_want(
    family: str, tensor: str, module: str, tmp_path: Path
) -> None:
    out, file = tmp_path / "m.moments.safetensors", tmp_path / "f32.gguf"
    run(family, out)
    own = read_moments(out).arrays(tensor)
    dynquant.convert(load_reference(family).folder, file, recipe="f32", threads=1)
    (weights,) = [t.data for t in gguf.GGUFReader(file).tensors if t.name == tensor]
    weights = np.array(weights, np.float64)
    scale = np.sqrt(own["squares"][0].astype(np.float64))
    moments = full_matrix(own["correlations"][0], len(scale)) * scale * scale[:, None]
    stored = whole_outputs(family, module)
    # Squares are of all windows, correlations of those that are not held out.
    assert np.trace(weights @ moments @ weights.T) == pytest.approx(stored, rel=0.01)
    permuted = moments[::-1, ::-1]
    assert np.trace(weights @ permuted @ weights.T) != pytest.approx(stored, rel=0.01)


def whole_outputs(family: str, module: str) -> float:
    """Return the mean squared length of a module's outputs in the whole model."""
    folder = load_reference(family).folder
    whole = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    found: list[Any] = []
    whole.get_submodule(module).register_forward_hook(lambda _, __, y: found.append(y))
    with torch.no_grad():
        whole(input_ids=torch.from_numpy(WINDOWS.astype(np.int64)), use_cache=False)
    return float(found[0].double().square().sum(dim=-1).mean())
