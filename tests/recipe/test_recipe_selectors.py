"""Selectors of rules: groups, patterns of layers, shapes, facts of the model."""

from __future__ import annotations

from typing import Any

import pytest
from gguf import MODEL_ARCH, MODEL_TENSORS, TENSOR_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st
from unread import unread

from dynquant.arch.base import Model, ModelTensor, Prediction
from dynquant.keys import i32s, string, u32
from dynquant.recipe.facts import Facts, facts_of
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.roles import GROUPS, ROLES

SEEDED = settings(deadline=None, derandomize=True)


def deepseek(n_layers: int = 10, dense: int = 3) -> list[ModelTensor]:
    """Return the tensors of a small DeepSeek: the first layers dense, the others with experts."""
    names = ["token_embd", "output"]
    for i in range(n_layers):
        ffn = [""] if i < dense else ["_exps", "_shexp"]
        parts = [f"ffn_{part}{kind}" for kind in ffn for part in ("gate", "up", "down")]
        names += [f"blk.{i}.{role}" for role in ("attn_q_a", "attn_kv_b", "attn_output", *parts)]
    return [unread(f"{name}.weight", 8, 256) for name in names]


def selected(selector: str, tensors: list[ModelTensor], facts: Facts | None = None) -> set[str]:
    text = f"default: Q4_K\nrules: [{{{selector}, type: Q8_0, optional: true}}]"
    given = assign(parse_recipe(text, "r.yaml", "r"), tensors, facts).assignments
    return {name for name, a in given.items() if a.type.name == "Q8_0"}


def layers_of(names: set[str]) -> list[int]:
    return sorted({int(name.split(".")[1]) for name in names if name.startswith("blk.")})


@pytest.mark.parametrize(
    ("group", "roles"),
    [
        ("attention", {"attn_q_a", "attn_kv_b", "attn_output"}),
        ("mla", {"attn_q_a", "attn_kv_b"}),
        ("experts", {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"}),
        ("shared_experts", {"ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"}),
        ("dense_ffn", {"ffn_gate", "ffn_up", "ffn_down"}),
        ("embedding", {"token_embd"}),
        ("output", {"output"}),
    ],
)
def test_group_selects_its_roles(group: str, roles: set[str]) -> None:
    tensors = deepseek()
    expected = {t.name for t in tensors if t.parts.role in roles}
    assert selected(f"role: {group}", tensors) == expected


def test_ffn_selects_dense_routed_and_shared_experts() -> None:
    tensors = deepseek()
    expected = {t.name for t in tensors if t.parts.role.startswith("ffn_")}
    assert selected("role: ffn", tensors) == expected


def test_groups_consist_of_gguf_roles_and_are_disjoint() -> None:
    assert set().union(*GROUPS.values()) <= ROLES
    assert not (GROUPS.keys() & ROLES) - {"output"}
    apart = ("attention", "experts", "shared_experts", "dense_ffn", "router", "norms", "ssm")
    for a in apart:
        for b in apart:
            assert a == b or not GROUPS[a] & GROUPS[b], (a, b)


@pytest.mark.parametrize(
    "family", [MODEL_ARCH.DEEPSEEK2, MODEL_ARCH.QWEN3MOE, MODEL_ARCH.GLM4_MOE, MODEL_ARCH.LLAMA]
)
def test_every_matrix_of_a_family_is_in_a_group(family: MODEL_ARCH) -> None:
    names = [TENSOR_NAMES[kind] for kind in MODEL_TENSORS[family]]
    roles = {n.removeprefix("blk.{bid}.") for n in names if "nextn" not in n and "rope" not in n}
    left = roles - set().union(*GROUPS.values()) - {"attn_rot_embd"}
    assert left == set()


@pytest.mark.slow
@SEEDED
@given(st.integers(1, 100))
def test_parts_of_the_depth_can_express_use_more_bits_of_llama_quantize(n: int) -> None:
    # use_more_bits in llama-quant.cpp, with its integer divisions
    expected = [i for i in range(n) if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2]
    tensors = [unread(f"blk.{i}.attn_v.weight", 8, 256) for i in range(n)]
    found = selected("layers: [0%-12.5%, 87.5%-100%, {every: 3, from: 12.5%+2}]", tensors)
    assert layers_of(found) == expected


@pytest.mark.slow
@SEEDED
@given(st.integers(1, 60), st.lists(st.integers(0, 100), min_size=2, max_size=2, unique=True))
def test_adjacent_parts_cover_every_layer_once(n: int, cuts: list[int]) -> None:
    low, high = sorted(cuts)
    parts = [f"{a}%-{b}%" for a, b in ((0, low), (low, high), (high, 100)) if a < b]
    tensors = [unread(f"blk.{i}.attn_v.weight", 8, 256) for i in range(n)]
    found = [layers_of(selected(f"layers: {part}", tensors)) for part in parts]
    assert sorted(layer for part in found for layer in part) == list(range(n))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("{first: 3}", [0, 1, 2]),
        ("{last: 2}", [8, 9]),
        ("{every: 4}", [0, 4, 8]),
        ("{every: 4, from: 3}", [3, 7]),
        ("{first: 25%}", [0, 1]),
        ("{first: 2, of: experts}", [3, 4]),
        ("{last: 1, of: dense_ffn}", [2]),
        ("{every: 3, of: experts}", [3, 6, 9]),
        ("{every: 3, from: 1, of: ffn_down_exps}", [4, 7]),
        ("{in: [0, -1], of: experts}", [3, 9]),
        ("{in: 1-6, every: 2}", [2, 4, 6]),
        ("{in: 0%-50%, of: experts}", [3, 4, 5]),
        ("{first: 5, last: 6}", [4]),
        ("[{first: 1}, {last: 1}, 5]", [0, 5, 9]),
        ("{first: 99}", list(range(10))),
        ("{first: 2, of: ssm}", []),
    ],
)
def test_patterns_of_layers(layers: str, expected: list[int]) -> None:
    assert layers_of(selected(f"role: attn_output, layers: {layers}", deepseek())) == expected


def test_shape_selects_by_rows_and_weights() -> None:
    shapes = {"a": (8, 256), "b": (8, 128), "c": (4, 8, 256), "d": (2, 256)}
    tensors = [unread(f"blk.0.{n}.weight", *s) for n, s in shapes.items()]

    def found(shape: str) -> set[str]:
        text = f"default: Q8_0\nrules: [{{shape: {shape}, type: Q5_0, optional: true}}]"
        given = assign(parse_recipe(text, "r.yaml", "r"), tensors).assignments
        return {name.split(".")[2] for name, a in given.items() if a.type.name == "Q5_0"}

    assert found("{row_multiple_of: 256}") == {"a", "c", "d"}
    assert found("{min_weights: 2048}") == {"a", "c"}
    assert found("{dimensions: 3}") == {"c"}
    assert found("{row_multiple_of: 256, min_weights: 2048, dimensions: 2}") == {"a"}


def model(*extra: str, **keys: Any) -> Model:
    """Return a llama of two layers; keys: keys of the architecture, without its name."""
    names = ["token_embd.weight", *extra, *(f"blk.{i}.attn_v.weight" for i in range(2))]
    tensors = tuple(unread(name, 8, 256) for name in names)
    given = {f"llama.{k}": u32(v) if isinstance(v, int) else i32s(v) for k, v in keys.items()}
    return Model("llama", {"general.architecture": string("llama"), **given}, tensors, {})


HEADS = {"attention.head_count": 32, "attention.head_count_kv": 8}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ("{experts: 8}", True),
        ("{experts: [4, 8]}", True),
        ("{experts: '>= 9'}", False),
        ("{experts: '!= 8'}", False),
        ("{gqa: 4}", True),
        ("{gqa: '< 4'}", False),
        ("{gqa: '> 3', experts: '<= 8'}", True),
        ("{gqa: 4, experts: 9}", False),
        ("{layers: 2}", True),
        ("{layers: '> 2'}", False),
        ("{tied_embeddings: true}", True),
        ("{tied_embeddings: false}", False),
        ("{importance: true}", True),
        ("{importance: false}", False),
        ("{architecture: [qwen3, llama]}", True),
        ("{architecture: qwen3}", False),
    ],
)
def test_conditions_depend_on_facts_of_the_model(when: str, expected: bool) -> None:
    found = model(expert_count=8, **HEADS)
    facts = facts_of(found, importance=True)
    names = selected(f"role: attn_v, when: {when}", list(found.tensors), facts)
    assert bool(names) == expected


def test_rule_whose_condition_is_false_may_apply_to_no_tensor() -> None:
    text = "default: Q4_K\nrules: [{role: ffn_down_exps, when: {experts: '> 1'}, type: Q8_0}]"
    found = model(**HEADS)
    assert assign(parse_recipe(text, "r.yaml", "r"), found.tensors, facts_of(found)).warnings == ()


@pytest.mark.parametrize(
    ("keys", "gqa"),
    [
        (HEADS, 4),
        ({"attention.head_count": 32, "attention.head_count_kv": (0, 8, 0)}, 4),
        ({"attention.head_count": 32}, 0),
        ({}, 0),
    ],
)
def test_gqa_is_the_number_of_query_heads_per_key_head(keys: dict[str, Any], gqa: int) -> None:
    assert facts_of(model(**keys)).gqa == gqa


def test_embedding_is_tied_unless_there_is_an_output_matrix() -> None:
    assert facts_of(model()).tied_embeddings
    assert not facts_of(model("output.weight")).tied_embeddings


def test_mtp_selects_every_tensor_of_the_prediction_layers() -> None:
    tensors = (*deepseek(4), unread("blk.4.nextn.eh_proj.weight", 8, 256))
    tensors += (unread("blk.4.attn_q_a.weight", 8, 256),)
    found = Model("deepseek2", {}, tensors, {}, Prediction(range(4, 5), {}))
    names = selected("role: mtp", list(tensors), facts_of(found))
    assert names == {"blk.4.nextn.eh_proj.weight", "blk.4.attn_q_a.weight"}
    assert facts_of(found).n_layers == 4


def test_prediction_layers_of_a_gguf_are_taken_from_its_keys() -> None:
    found = model(block_count=2, nextn_predict_layers=1)
    assert facts_of(found).prediction == range(1, 2)
    assert selected("role: mtp", list(found.tensors), facts_of(found)) == {"blk.1.attn_v.weight"}
