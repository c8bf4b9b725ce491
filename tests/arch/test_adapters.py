"""Adapters give the answers of PEFT's merged model, merged and applied by llama.cpp.

The oracles are `merge_and_unload` of PEFT (stored by make_adapter_references.py) and llama.cpp.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import (
    ADAPTERS,
    FAMILIES,
    alone,
    changed,
    merged,
    packed_llama,
    tensors_of,
    tied_adapter,
)
from agreement import F32_TOLERANCE, config_of, load_reference, max_difference
from agreement import FAMILIES as ALL
from packers import FORMATS, bf16_values
from places import REFERENCES
from safetensors.numpy import load_file
from subsets import slow_except

import dynquant
from dynquant.arch.adapters.applied import WITHOUT_OUTPUT
from dynquant.arch.base import Architecture
from dynquant.arch.load import describe

llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)

VISIBLE = 1000 * F32_TOLERANCE
"""The least effect of each adapter on a log-probability, in nats."""

TIED = "granite"
"""A family whose output matrix is the embedding."""


def described(family: str) -> Architecture:
    return describe(config_of(family), family)


FAST = ["llama-2", "qwen3moe"]


@pytest.mark.oracle
@pytest.mark.parametrize("family", slow_except(FAST, FAMILIES))
def test_merged_adapter_has_the_answers_of_the_merged_model(family: str, tmp_path: Path) -> None:
    reference, wanted = load_reference(family), np.load(ADAPTERS / f"{family}.npy")
    out = merged(family, tmp_path / "x.gguf", ADAPTERS / family)
    found = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(wanted, found) < F32_TOLERANCE
    assert max_difference(wanted, reference.log_probabilities) > VISIBLE


@pytest.mark.oracle
@pytest.mark.parametrize("family", slow_except(FAST, FAMILIES))
def test_applied_adapter_has_the_answers_of_the_merged_model(family: str, tmp_path: Path) -> None:
    reference, wanted = load_reference(family), np.load(ADAPTERS / f"{family}.npy")
    base = merged(family, tmp_path / "base.gguf")
    adapter = alone(family, tmp_path / "adapter.gguf")
    found = llamacpp.log_probabilities(base, reference.prompts, adapter=adapter)
    assert max_difference(wanted, found) < F32_TOLERANCE
    assert max_difference(wanted, llamacpp.log_probabilities(base, reference.prompts)) > VISIBLE


@pytest.mark.oracle
@pytest.mark.parametrize(("recipe", "bound"), [("f16", 0.05), ("bf16", 0.3), ("q8_0", 0.3)])
def test_adapters_of_other_types_are_applied(recipe: str, bound: float, tmp_path: Path) -> None:
    reference, wanted = load_reference("llama-2"), np.load(ADAPTERS / "llama-2.npy")
    base = merged("llama-2", tmp_path / "base.gguf")
    adapter = alone("llama-2", tmp_path / "adapter.gguf", recipe=recipe)
    found = llamacpp.log_probabilities(base, reference.prompts, adapter=adapter)
    assert max_difference(wanted, found) < bound


def to_gguf(name: str, weight: np.ndarray) -> tuple[str, np.ndarray]:
    """Return a weight of layer 0 of llama-2 as its GGUF has it."""
    roles = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    roles |= {f"{n}_proj": f"ffn_{n}" for n in ("gate", "up", "down")}
    module = name.split(".")[-2]
    if module in ("q_proj", "k_proj"):  # the two halves of each of 2 heads become pairs
        weight = weight.reshape(2, 2, 8, 32).swapaxes(1, 2).reshape(32, 32)
    return f"blk.0.{roles[module]}.weight", weight


def test_merged_weights_are_those_of_merge_and_unload_within_float32(tmp_path: Path) -> None:
    ours = tensors_of(merged("llama-2", tmp_path / "x.gguf", ADAPTERS / "llama-2"))
    base = tensors_of(merged("llama-2", tmp_path / "base.gguf"))
    wanted = {
        n: t for n, t in load_file(ADAPTERS / "llama-2.safetensors").items() if n[:4] != "bf16"
    }
    assert len(wanted) == 7
    for stored, weight in wanted.items():
        name, theirs = to_gguf(stored, weight)
        # The product has at most 4 terms, and is added once.
        bound = 6 * np.finfo(np.float32).eps * np.abs(theirs - base[name]).max()
        bound = bound + np.finfo(np.float32).eps * np.abs(theirs)
        assert (np.abs(ours[name] - theirs) <= bound).all(), name
        assert np.abs(base[name] - theirs).max() > 0.1


def test_merged_weights_are_those_merged_in_bfloat16_within_its_rounding(tmp_path: Path) -> None:
    ours = tensors_of(merged("llama-2", tmp_path / "x.gguf", ADAPTERS / "llama-2"))
    base = tensors_of(merged("llama-2", tmp_path / "base.gguf"))
    stored = load_file(ADAPTERS / "llama-2.safetensors")
    in_half = {n: bits for n, bits in stored.items() if n.startswith("bf16.")}
    assert len(in_half) == 7
    for key, bits in in_half.items():
        name, theirs = to_gguf(key, bf16_values(bits))
        # The base, the change and the sum are rounded to 8 bits each.
        change = np.abs(ours[name] - base[name])
        bound = 2.0**-8 * (np.abs(base[name]) + change + np.abs(ours[name]))
        assert (np.abs(ours[name] - theirs) <= bound).all(), name


def test_two_adapters_are_merged_one_after_the_other(tmp_path: Path) -> None:
    def only(word: str) -> Any:
        def change(tensors: dict[str, np.ndarray]) -> None:
            for name in [n for n in tensors if word not in n]:
                del tensors[name]

        return change

    first = changed("qwen3", tmp_path / "first", only("self_attn"))
    second = changed("qwen3", tmp_path / "second", only("mlp"))
    both = merged("qwen3", tmp_path / "a.gguf", first, second)
    whole = merged("qwen3", tmp_path / "b.gguf", ADAPTERS / "qwen3")
    theirs = tensors_of(whole)
    for name, tensor in tensors_of(both).items():
        np.testing.assert_array_equal(tensor, theirs[name])


def adapter_of_up(folder: Path, n_out: int, n_in: int) -> tuple[Path, np.ndarray]:
    """Write an adapter of the first up projection; return it and the change, float64."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((3, n_in)).astype(np.float32)
    b = rng.standard_normal((n_out, 3)).astype(np.float32)
    prefix = "base_model.model.model.layers.0.mlp.up_proj"

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors.clear()
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}

    settings = {"r": 3, "lora_alpha": 6, "use_rslora": False, "rank_pattern": {}}
    folder = changed("qwen3", folder, change, **settings)
    return folder, 2.0 * (b.astype(np.float64) @ a.astype(np.float64))


@pytest.mark.parametrize("form", ["fp8 128x128 F32", "gptq 4", "nvfp4", "nvfp4 of modelopt"])
def test_change_is_added_to_the_weights_of_a_packed_base(form: str, tmp_path: Path) -> None:
    packed, values = packed_llama(tmp_path / "m", FORMATS[form])
    up = values["model.layers.0.mlp.up_proj.weight"]
    adapter, change = adapter_of_up(tmp_path / "a", *up.shape)
    dynquant.convert(packed, tmp_path / "x.gguf", recipe="f32", merge_adapter=[adapter])
    after = tensors_of(tmp_path / "x.gguf")
    np.testing.assert_allclose(after["blk.0.ffn_up.weight"], up + change, rtol=1e-6, atol=1e-5)
    other = values["model.layers.1.mlp.up_proj.weight"].astype(np.float32)
    np.testing.assert_array_equal(after["blk.1.ffn_up.weight"], other)


def test_merged_weights_of_a_packed_base_are_not_kept_as_blocks(tmp_path: Path) -> None:
    packed, values = packed_llama(tmp_path / "m", FORMATS["nvfp4"])
    shape = values["model.layers.0.mlp.up_proj.weight"].shape
    adapter, _ = adapter_of_up(tmp_path / "a", *shape)
    model = dynquant.load_model(packed, merge_adapter=adapter)
    kept = {t.name for t in model.tensors if t.kept}
    assert "blk.0.ffn_up.weight" not in kept
    assert {"blk.0.ffn_gate.weight", "blk.1.ffn_up.weight"} <= kept


@pytest.mark.parametrize(
    ("module", "changed_one", "other"),
    [
        ("lm_head", "output.weight", "token_embd.weight"),
        ("model.embed_tokens", "token_embd.weight", "output.weight"),
    ],
)
def test_adapter_of_one_of_two_tied_matrices_unties_them(
    module: str, changed_one: str, other: str, tmp_path: Path
) -> None:
    before = tensors_of(merged(TIED, tmp_path / "base.gguf"))
    adapter = tied_adapter(tmp_path / "adapter", TIED, module)
    after = tensors_of(merged(TIED, tmp_path / "x.gguf", adapter))
    embedding = before["token_embd.weight"]
    assert "output.weight" not in before
    np.testing.assert_array_equal(after[other], embedding)
    np.testing.assert_array_equal(after[changed_one], embedding + np.float32(2))


TIED_FAMILIES = tuple(
    name
    for name in ALL
    if (architecture := described(name)).tied is not None
    and architecture.name not in WITHOUT_OUTPUT
    and any(row.stored == architecture.tied[0] for row in architecture.rows)
)


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("family", TIED_FAMILIES)
def test_llamacpp_computes_with_an_untied_output_matrix(family: str, tmp_path: Path) -> None:
    reference, token = load_reference(family), 77
    adapter = tied_adapter(tmp_path / "adapter", family, "lm_head", token)
    out = merged(family, tmp_path / "x.gguf", adapter)
    change = llamacpp.log_probabilities(out, reference.prompts) - reference.log_probabilities
    # Without the other tokens' probability, the logits of all but one token are as before.
    others = np.delete(change, token, axis=1)
    assert np.ptp(others, axis=1).max() < 2 * F32_TOLERANCE
    assert np.abs(change[:, token] - others.mean(axis=1)).max() > VISIBLE / 10


def test_experts_without_an_adapter_have_zeros(tmp_path: Path) -> None:
    found = tensors_of(alone("qwen3moe", tmp_path / "x.gguf"))
    for role in ("gate", "up", "down"):
        for factor in "ab":
            stack = found[f"blk.0.ffn_{role}_exps.weight.lora_{factor}"]
            zero = [not expert.any() for expert in stack]
            assert zero == [n not in (1, 3) for n in range(len(stack))]


def test_only_config_json_of_the_base_is_needed(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    config = REFERENCES / "llama-2" / "config.json"
    (tmp_path / "base" / "config.json").write_bytes(config.read_bytes())
    out = tmp_path / "x.gguf"
    dynquant.convert(ADAPTERS / "llama-2", out, base=tmp_path / "base", recipe="f32")
    whole = alone("llama-2", tmp_path / "y.gguf")
    assert out.read_bytes() == whole.read_bytes()
