"""A plan describes the whole file, and reports together all reasons why it cannot be written."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from gguf import GGUFValueType
from handmade import KEYS, N_PER_ROW, computed_tensor, model, recipe, shown, small_plan
from places import TINY_BOOKS

from dynquant.arch.load import load_model
from dynquant.errors import DynquantError, PlanError, RecipeError
from dynquant.keys import KeyValue, f32, i32s, string, u32
from dynquant.plan.make import make_plan
from dynquant.quants.search import EFFORTS, Effort
from dynquant.quants.table import ALL
from dynquant.recipe.loader import load_recipe
from dynquant.report.documents import plan_json

MIXED = "rules: [{role: ffn_down, layers: 1, type: Q4_0}]"


def test_offsets_are_aligned_and_follow_each_other_without_gaps() -> None:
    end = 0
    for t in small_plan().tensors:
        assert t.offset == end
        end += (t.n_bytes + 31) // 32 * 32


def test_a_tensor_has_the_bytes_of_its_rows_in_its_type() -> None:
    sizes = {t.name: t.n_bytes for t in small_plan(more=MIXED).tensors}
    assert sizes["token_embd.weight"] == 37 * (N_PER_ROW // 32 * 34)
    assert sizes["blk.1.ffn_down.weight"] == 67 * (2 * N_PER_ROW // 32 * 18)
    assert sizes["output_norm.weight"] == (N_PER_ROW + 1) * 4


def test_plan_records_the_rule_of_each_tensor() -> None:
    rules = {t.name: t.rule for t in small_plan(more=MIXED).tensors}
    assert rules["blk.1.ffn_down.weight"] == "recipes/hand.yaml:2"
    assert rules["blk.0.ffn_down.weight"] == "recipes/hand.yaml:1 default"


def test_fallback_records_the_type_that_it_replaces() -> None:
    tensor = computed_tensor("blk.0.ffn_up.weight", 3, 96)
    made = make_plan(model(tensor), recipe("Q4_K", "fallback: Q8_0")).tensors[0]
    assert (made.type.name, made.instead_of) == ("Q8_0", ALL["Q4_K"])


def test_keys_of_the_quantization_are_between_those_of_model_and_tokenizer() -> None:
    assert list(small_plan().keys) == [
        *list(KEYS)[:4],
        "general.file_type",
        "general.quantization_version",
        "dynquant.version",
        "dynquant.recipe",
        "dynquant.recipe_sha256",
        "dynquant.effort",
        "dynquant.encoder_revision",
        *list(KEYS)[4:],
    ]


def test_the_recipe_is_recorded_by_name_and_hash() -> None:
    used = recipe("Q4_0")
    keys = make_plan(model(), used).keys
    assert keys["dynquant.recipe"].value == "hand"
    sha256 = hashlib.sha256(used.text.encode()).hexdigest()
    assert keys["dynquant.recipe_sha256"].value == sha256


@pytest.mark.parametrize(
    ("default", "more", "number"),
    [  # llama.h, enum llama_ftype
        ("F32", "", 0),
        ("F16", "", 1),
        ("BF16", "", 32),
        ("Q4_0", "", 2),
        ("Q8_0", "", 7),
        ("Q4_K", "", 15),
        ("Q5_K", "", 17),
        ("Q6_K", "", 18),
        ("IQ4_NL", "", 25),
        ("F16", "rules: [{role: token_embd, type: Q8_0}]", 7),
        ("Q6_K", "rules: [{role: ffn_down, type: Q4_K}]", 15),
    ],
)
def test_file_type_is_that_of_the_quants_with_most_weights(
    default: str, more: str, number: int
) -> None:
    assert small_plan(default, more).keys["general.file_type"] == u32(number)


@pytest.mark.parametrize(
    ("name", "number"), [("Q3_K_L", 13), ("Q4_K_S", 14), ("Q5_K_M", 17), ("Q6_K", 18)]
)
def test_file_type_of_a_mix_is_that_of_llama_quantize(name: str, number: int) -> None:
    plan = make_plan(load_model(TINY_BOOKS), load_recipe(name))
    assert plan.keys["general.file_type"] == u32(number)


@pytest.mark.parametrize("effort", EFFORTS)
def test_the_effort_is_recorded_in_keys_json_and_table(effort: Effort) -> None:
    plan = make_plan(model(), recipe(), effort=effort)
    assert plan.keys["dynquant.effort"] == string(effort)
    assert plan_json(plan)["effort"] == effort
    assert shown(plan).startswith(f"llama by recipe hand, effort {effort}: 6 tensors")


def test_an_unknown_effort_is_refused_with_the_known_ones() -> None:
    with pytest.raises(PlanError, match="'most' is not an effort; use one of fast, normal, best"):
        make_plan(model(), recipe(), effort="most")


def test_bits_per_weight_is_bytes_over_weights() -> None:
    plan = small_plan()
    assert plan.n_weights == 37 * 256 + 2 * 257 + 2 * 67 * 512 + 3 * 41 * 256
    assert plan.bits_per_weight == 8 * sum(t.n_bytes for t in plan.tensors) / plan.n_weights


def test_plan_json_has_the_fields_that_scripts_rely_on() -> None:
    plan = small_plan(more=MIXED)
    document = plan_json(plan)
    assert document["architecture"] == "llama"
    assert document["recipe"] == "hand"
    assert document["effort"] == "normal"
    assert document["tensor_bytes"] == plan.tensor_bytes
    assert document["bits_per_weight"] == plan.bits_per_weight
    assert document["type_counts"] == {"Q8_0": 3, "F32": 2, "Q4_0": 1}
    assert document["tensors"][4] == {
        "name": "blk.1.ffn_up_exps.weight",
        "shape": [3, 41, 256],
        "type": "Q8_0",
        "bytes": 3 * 41 * 272,
        "offset": plan.tensors[4].offset,
        "rule": "recipes/hand.yaml:1 default",
        "instead_of": None,
        "importance": None,
        "feedback": None,
    }
    assert document["imatrix"] is None


def refused(*tensors: tuple[str, tuple[int, ...]], **set_keys: str) -> tuple[str, ...]:
    made = [computed_tensor(name, *shape) for name, shape in tensors]
    with pytest.raises(PlanError) as e:
        make_plan(model(*made), recipe("F32"), set_keys=set_keys)
    return e.value.messages


def test_a_name_of_64_bytes_is_refused() -> None:
    fits, long = "x" * 56 + ".weight", "é" * 28 + "y.weight"
    assert (len(fits), len(long.encode())) == (63, 64)
    (message,) = refused((fits, (2, 32)), (long, (2, 32)))
    assert repr(long) in message


def test_five_dimensions_are_refused() -> None:
    (message,) = refused(("a.weight", (1, 1, 1, 1, 32)))
    assert "'a.weight'" in message
    assert "5 dimensions" in message


def test_duplicate_tensor_name_is_refused() -> None:
    (message,) = refused(("a.weight", (2, 32)), ("a.weight", (2, 32)))
    assert "'a.weight'" in message


def test_a_tensor_without_weights_is_refused() -> None:
    (message,) = refused(("a.weight", (0, 32)))
    assert "'a.weight'" in message


def test_a_model_without_tensors_is_refused() -> None:
    empty = model()
    with pytest.raises(PlanError, match="no tensors"):
        make_plan(type(empty)("llama", empty.keys, (), {}), recipe("F32"))


def test_all_problems_of_plan_and_recipe_are_reported_together() -> None:
    tensors = [computed_tensor("a.weight", 1, 1, 1, 1, 32), computed_tensor("x" * 70, 2, 32)]
    with pytest.raises(DynquantError) as e:
        make_plan(
            model(*tensors),
            recipe("F32", "rules: [{role: ffn_down, type: Q8_0}]"),
            set_keys={"llama.block_count": "two", "dynquant.version": "1"},
        )
    assert len(e.value.messages) == 5


def test_recipe_that_does_not_fit_the_model_is_a_recipe_error() -> None:
    with pytest.raises(RecipeError):
        small_plan(more="rules: [{role: attn_v, type: Q4_0}]")


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("llama.block_count", "7", u32(7)),
        ("llama.rope.freq_base", "500000", f32(500000.0)),
        ("general.name", "42", KeyValue("42", GGUFValueType.STRING)),
        ("general.name", "", KeyValue("", GGUFValueType.STRING)),
        ("general.name", "a=b", KeyValue("a=b", GGUFValueType.STRING)),
        ("x.new", "7", u32(7)),
        ("x.new", "-7", KeyValue(-7, GGUFValueType.INT32)),
        ("x.new", "4294967296", KeyValue(2**32, GGUFValueType.UINT64)),
        ("x.new", "-4294967296", KeyValue(-(2**32), GGUFValueType.INT64)),
        ("x.new", "1.5", f32(1.5)),
        ("x.new", "1e-5", f32(1e-5)),
        ("x.new", "true", KeyValue(True, GGUFValueType.BOOL)),
        ("x.new", "nan", KeyValue("nan", GGUFValueType.STRING)),
        ("x.new", "1.2.3", KeyValue("1.2.3", GGUFValueType.STRING)),
    ],
)
def test_existing_key_keeps_its_type_and_type_of_a_new_key_follows_from_its_value(
    key: str, text: str, value: KeyValue
) -> None:
    assert make_plan(model(), recipe(), set_keys={key: text}).keys[key] == value


def test_typed_value_is_set_unchanged() -> None:
    plan = make_plan(model(), recipe(), set_keys={"llama.sizes": i32s([1, 2])})
    assert plan.keys["llama.sizes"] == i32s([1, 2])


def test_new_key_follows_the_others_of_its_group() -> None:
    names = list(make_plan(model(), recipe(), set_keys={"llama.new": "1"}).keys)
    assert names.index("llama.new") == names.index("llama.rope.freq_base") + 1


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("llama.block_count", "-1"),
        ("llama.block_count", "4294967296"),
        ("llama.block_count", "1.5"),
        ("llama.rope.freq_base", "fast"),
        ("llama.rope.freq_base", "1e39"),
        ("tokenizer.ggml.tokens", "a"),
        ("general.architecture", "qwen2"),
        ("general.alignment", "64"),
        ("dynquant.recipe", "mine"),
        ("split.count", "2"),
        (" ", "1"),
        ("x.new", "18446744073709551616"),
    ],
)
def test_invalid_setting_is_refused_with_its_key(key: str, text: str) -> None:
    with pytest.raises(PlanError) as e:
        make_plan(model(), recipe(), set_keys={key: text})
    (message,) = e.value.messages
    assert key in message


def test_array_without_a_type_is_refused() -> None:
    with pytest.raises(PlanError, match=r"'x\.list' has values that are not array"):
        make_plan(model(), recipe(), set_keys={"x.list": KeyValue((), GGUFValueType.ARRAY)})


def test_a_plan_reads_no_weights(tmp_path: Path) -> None:
    from handmade import stored_tensor, weights

    tensor = stored_tensor(tmp_path / "w", "a.weight", weights(2, 32))
    (tmp_path / "w").unlink()
    assert make_plan(model(tensor), recipe()).tensors[0].n_bytes == 2 * 34
