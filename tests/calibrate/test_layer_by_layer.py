"""A model that runs layer by layer computes what transformers computes with the whole model.

The oracle is transformers' own from_pretrained. Needs torch: `pytest -m torch` where the extra
`calibrate` is installed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import FAMILIES, load_reference
from calibrated import RUNNABLE, UNKNOWN

from dynquant.errors import CalibrationError

torch: Any = pytest.importorskip("torch", reason="needs the extra calibrate")
transformers: Any = pytest.importorskip("transformers", reason="needs the extra calibrate")

from dynquant.calibrate.one_pass import Seen  # noqa: E402
from dynquant.calibrate.run import collect  # noqa: E402
from dynquant.calibrate.sources import Source, open_source  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

NO_ORACLE = {"gpt-oss-mxfp4", "llama4"}
"""from_pretrained needs accelerate, or has no part that ends with hidden states."""

KNOWN = [f for f in RUNNABLE if f not in NO_ORACLE]


def seen_of(source: Source, tokens: list[int], threads: int = 2) -> Seen:
    windows = np.array([tokens], np.int32)
    return collect(source, windows, threads=threads, progress=lambda _, __: None)


def whole_model(folder: Path) -> Any:
    for auto in (transformers.AutoModelForCausalLM, transformers.AutoModelForMultimodalLM):
        try:
            return auto.from_pretrained(folder, dtype=torch.float32).eval()
        except ValueError:  # not a class for this configuration
            continue
    raise AssertionError(f"transformers does not load {folder}")


@pytest.mark.parametrize("family", KNOWN)
def test_last_hidden_states_equal_those_of_the_whole_model(family: str) -> None:
    reference = load_reference(family)
    tokens = max(reference.prompts, key=len)
    source = open_source(reference.folder)
    found: list[Any] = []
    source.skeleton.decoder.register_forward_hook(lambda _, __, output: found.append(output))
    seen_of(source, tokens)
    ours = found[0].last_hidden_state
    decoder = whole_model(reference.folder).get_decoder()
    with torch.no_grad():
        expected = decoder(input_ids=torch.tensor([tokens]), use_cache=False).last_hidden_state
    assert float((ours - expected).norm() / expected.norm()) < 1e-5


@pytest.mark.parametrize("family", sorted(UNKNOWN & set(FAMILIES)))
def test_a_family_that_transformers_does_not_run_is_refused(family: str) -> None:
    with pytest.raises(CalibrationError) as e:
        open_source(load_reference(family).folder)
    (message,) = e.value.messages
    assert message.endswith("run llama-imatrix on it, and give its file as --imatrix")


@pytest.mark.parametrize("family", ["qwen3", "deepseek-v3"])
def test_sums_are_those_of_the_inputs_of_the_modules(family: str) -> None:
    reference = load_reference(family)
    tokens = max(reference.prompts, key=len)
    whole = whole_model(reference.folder)
    inputs: dict[str, Any] = {}
    for name, module in whole.named_modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: inputs.update({name: x[0]}))
    with torch.no_grad():
        whole.get_decoder()(input_ids=torch.tensor([tokens]), use_cache=False)
    seen = seen_of(open_source(reference.folder), tokens)
    linear = {feed: sums for feed, sums in seen.totals.items() if feed.kind == "linear"}
    assert len(linear) > 10
    for feed, (sums,) in linear.items():
        x = inputs[feed.module].flatten(0, -2).double().numpy()
        assert sums.count == len(tokens)
        np.testing.assert_allclose(sums.linear, x.sum(0), rtol=1e-4, atol=1e-4 * np.abs(x).max())
        np.testing.assert_allclose(sums.squares, (x**2).sum(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", ["qwen3moe", "gpt-oss", "deepseek-v3", "gemma4moe"])
def test_each_expert_sees_the_tokens_that_chose_it(family: str) -> None:
    reference = load_reference(family)
    tokens = max(reference.prompts, key=len)
    whole = whole_model(reference.folder)
    chosen: dict[str, Any] = {}
    for name, module in whole.named_modules():
        if hasattr(module, "is_concatenated"):
            module.register_forward_pre_hook(lambda _, x, name=name: chosen.update({name: x}))
    with torch.no_grad():
        whole.get_decoder()(input_ids=torch.tensor([tokens]), use_cache=False)
    seen = seen_of(open_source(reference.folder), tokens)
    mixtures = [feed for feed in seen.totals if feed.kind == "gate_up"]
    assert {feed.module for feed in mixtures} == chosen.keys() != set()
    for feed in mixtures:
        hidden, indices = chosen[feed.module][:2]
        hidden, indices = hidden.reshape(-1, hidden.shape[-1]).double().numpy(), indices.numpy()
        for expert, sums in enumerate(seen.totals[feed]):
            x = hidden[(indices == expert).any(axis=-1)]
            assert sums.count == len(x)
            np.testing.assert_allclose(sums.squares, (x**2).sum(0), rtol=1e-4, atol=1e-6)


def test_threads_change_no_bit() -> None:
    source = load_reference("deepseek-v3").folder
    windows = np.array([np.random.default_rng(i).integers(0, 400, 600) for i in range(9)], np.int32)
    one, two = (
        collect(open_source(source), windows, threads=n, progress=lambda _, __: None)
        for n in (1, 3)
    )
    assert one.totals.keys() == two.totals.keys()
    for feed, sums in one.totals.items():
        for a, b in zip(sums, two.totals[feed], strict=True):
            assert a.count == b.count
            assert a.squares.tobytes() == b.squares.tobytes()
            assert a.linear.tobytes() == b.linear.tobytes()
