"""Tensors that a graph requires are reported if they are missing, also as the source of convert.

Oracle: llama.cpp loads a file with a missing tensor, or does not.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
from agreement import FAMILIES, load_reference
from ggufs import write
from handmade import recipe, weights
from incomplete import Tensor, copy, single_experts, tensors_in, without, without_one
from predicting import N_LAYERS, with_prediction
from published import model_of
from published_configs import MODELS
from subsets import FAST_FAMILIES, slow_except

import dynquant
from dynquant.arch.gguf_files.needs import Contents, tensor_problems
from dynquant.arch.gguf_files.required import graph_of, knows
from dynquant.arch.load import load_model
from dynquant.errors import CheckpointError
from dynquant.keys import string
from dynquant.plan.make import make_plan
from dynquant.verification.verify import verify

OPTIONAL_EVERYWHERE = {
    *("output.weight", "rope_freqs.weight", "token_types.weight"),
    *("cls.weight", "cls.bias", "cls.output.weight", "cls.output.bias"),
}
"""Tensors without which a file is another valid file: nobody can know that they are missing."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that converts a family's tiny checkpoint to F32, once."""
    folder = tmp_path_factory.mktemp("whole")

    def made(family: str) -> Path:
        out = folder / f"{family}.gguf"
        if not out.exists():
            dynquant.convert(load_reference(family).folder, out, recipe="f32", threads=1)
        return out

    return made


def faults_of(path: Path) -> str:
    return "\n".join(map(str, verify(path, threads=1).faults))


def problems_of(path: Path) -> str:
    """Return what prevents a conversion; empty if nothing does."""
    try:
        load_model(path)
    except CheckpointError as e:
        return "\n".join(e.messages)
    return ""


@pytest.mark.slow
def test_every_architecture_of_the_families_is_known() -> None:
    folders = [load_reference(family).folder for family in FAMILIES]
    names = {load_model(folder, needs_vocab=False).architecture for folder in folders}
    assert {name for name in names if not knows(name)} == set()


@pytest.mark.parametrize("family", slow_except(FAST_FAMILIES, FAMILIES))
@pytest.mark.parametrize("mla", ["split", "merged"])
def test_a_complete_model_has_every_tensor_that_its_graph_requires(family: str, mla: Any) -> None:
    merged = ("deepseek-v2", "deepseek-v2-lite", "deepseek-v3", "kimi-k2")
    if mla == "merged" and family not in merged:
        return
    model = load_model(load_reference(family).folder, mla=mla, needs_vocab=False)
    graph = graph_of(model.architecture, model.keys)
    names = {tensor.name for tensor in model.tensors}
    layers = enumerate(graph.layers[: graph.n_own])
    required = graph.whole | {f"blk.{n}.{role}" for n, roles in layers for role in roles}
    assert required - names == set()
    optional = {re.sub(r"blk\.\d+\.", "", name) for name in names - required}
    assert {o for o in optional if not o.endswith(".bias") and o not in OPTIONAL_EVERYWHERE} <= {
        *("attn_q_norm.weight", "attn_k_norm.weight"),  # GLM-4-MoE
        "attn_v.weight",  # in full layers of Gemma 4
        "attn_norm_2.weight",  # Falcon-40B, which has the keys of a Falcon-7B
        "ssm_norm.weight",  # in some models of Falcon-H1
        # Each layer of a Jamba has one of both.
        *("ffn_gate.weight", "ffn_up.weight", "ffn_down.weight", "ffn_gate_inp.weight"),
        *("ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"),
    }


@pytest.mark.parametrize("name", MODELS)
def test_published_models_have_all_tensors_that_are_needed(name: str) -> None:
    model = model_of(MODELS[name])
    keys = {**model.keys, "general.architecture": string(model.architecture)}
    contents = Contents(keys, {tensor.name: tensor.shape for tensor in model.tensors})
    assert contents.is_checked
    assert list(tensor_problems(contents)) == []
    less = {tensor: shape for tensor, shape in contents.shapes.items() if ".1." not in tensor}
    assert "layers of" in next(tensor_problems(Contents(keys, less)))


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_every_missing_tensor_without_which_llama_cpp_refuses_is_named(
    family: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    path, less = whole(family), tmp_path / "less.gguf"
    assert llamacpp.loads(path)
    assert (faults_of(path), problems_of(path)) == ("", "")
    write_without = without_one(path)
    for name, _, _ in tensors_in(path):
        if name.startswith("blk.") and not name.startswith("blk.1."):
            continue
        write_without(name, less)
        found = (f"{name} is missing" in faults_of(less), f"{name} is missing" in problems_of(less))
        if name in OPTIONAL_EVERYWHERE and llamacpp.loads(less):
            assert found == (False, False), name
        else:
            assert found == (True, True), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "role"),
    [
        ("llama-2", "attn_v"),
        ("mixtral", "ffn_gate_exps"),
        ("qwen3", "attn_q_norm"),
        ("deepseek-v3", "attn_kv_a_mqa"),
        ("gpt-oss", "attn_sinks"),
        ("kimi-k2", "exp_probs_b"),
        ("bert", "layer_output_norm"),
    ],
)
def test_a_role_that_no_layer_has_is_named(
    family: str, role: str, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    path, less = whole(family), tmp_path / "less.gguf"
    without(path, less, lambda name: f".{role}." in name)
    for found in (faults_of(less), problems_of(less)):
        assert re.search(rf"blk\.\S*\.{role}\.(weight|bias) is missing; llama.cpp's ", found)


@pytest.mark.slow
def test_a_source_with_missing_tensors_is_refused_with_all_of_them(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    gone = ("output_norm.weight", "blk.0.ffn_up.weight", "blk.1.ffn_up.weight")
    less = without(whole("llama-2"), tmp_path / "less.gguf", gone.__contains__)
    fix = "get another copy of the file, or make it again from its checkpoint"
    with pytest.raises(CheckpointError) as e:
        dynquant.convert(less, tmp_path / "o.gguf", recipe="q8_0")
    assert e.value.messages == (
        f"{less}: output_norm.weight is missing; llama.cpp's llama needs it; {fix}",
        f"{less}: blk.{{0-1}}.ffn_up.weight is missing; llama.cpp's llama needs it; {fix}",
    )
    assert not list(tmp_path.glob("o.gguf*"))


@pytest.mark.slow
def test_missing_keys_of_a_source_are_warnings_because_users_can_set_them(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    keys = ("tokenizer.ggml.tokens", "llama.block_count")
    less = copy(whole("llama-2"), tmp_path / "less.gguf", without_keys=keys)
    plan = make_plan(load_model(less), recipe("F16"))
    assert [w for w in plan.warnings if "is missing; llama.cpp needs it" in w] == [
        f"{less}: llama.block_count is missing; llama.cpp needs it",
        f"{less}: tokenizer.ggml.tokens is missing; llama.cpp needs it",
    ]


@pytest.mark.slow
def test_an_embedding_of_another_vocabulary_is_refused(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    def cut(tensors: list[Tensor]) -> list[Tensor]:
        return [(n, v[:-1] if n == "token_embd.weight" else v, t) for n, v, t in tensors]

    found = problems_of(copy(whole("llama-2"), tmp_path / "less.gguf", cut))
    assert re.search(r"token_embd\.weight: has \d+ rows for \d+ tokens", found)


@pytest.mark.slow
def test_an_optional_tensor_that_other_layers_have_is_missing(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    less = without(whole("qwen2"), tmp_path / "less.gguf", "blk.1.attn_q.bias".__eq__)
    words = "blk.1.attn_q.bias is missing; other layers have it"
    assert words in faults_of(less)
    assert words in problems_of(less)
    none = without(whole("qwen2"), tmp_path / "none.gguf", lambda name: name.endswith(".bias"))
    assert (faults_of(none), problems_of(none)) == ("", "")


@pytest.mark.slow
def test_fused_matrices_replace_separate_ones(whole: Callable[[str], Path], tmp_path: Path) -> None:
    # Files of llama.cpp's converter may have Q, K and V in one tensor in all architectures.
    def fused(tensors: list[Tensor]) -> list[Tensor]:
        renamed = {"attn_q.weight": "attn_qkv.weight", "attn_k.weight": "", "attn_v.weight": ""}
        found: list[Tensor] = []
        for name, values, type_ in tensors:
            head, _, role = name.partition(".attn_")
            new = renamed.get(f"attn_{role}", f"attn_{role}")
            if new:
                found.append((f"{head}.{new}" if role else name, values, type_))
        return found

    path = copy(whole("llama-2"), tmp_path / "fused.gguf", fused)
    assert (faults_of(path), problems_of(path)) == ("", "")


@pytest.mark.slow
def test_prediction_layers_are_checked_if_they_are_in_the_file(tmp_path: Path) -> None:
    folder, out = with_prediction(tmp_path / "m"), tmp_path / "o.gguf"
    by = recipe("F32", "prediction_layers: keep")
    dynquant.convert(folder, out, recipe=by, threads=1)
    assert (faults_of(out), problems_of(out)) == ("", "")
    enorm = f"blk.{N_LAYERS}.nextn.enorm.weight"
    assert f"{enorm} is missing" in faults_of(without(out, tmp_path / "a.gguf", enorm.__eq__))
    layers = tuple(f"blk.{n}." for n in range(N_LAYERS))
    alone = without(out, tmp_path / "b.gguf", lambda name: name.startswith(layers))
    assert (faults_of(alone), problems_of(alone)) == ("", "")
    none = without(out, tmp_path / "c.gguf", lambda n: n.startswith(f"blk.{N_LAYERS}."))
    assert (faults_of(none), problems_of(none)) == ("", "")


def test_an_architecture_that_is_not_known_is_reported_as_unchecked(tmp_path: Path) -> None:
    def written(name: str) -> Path:
        writer = gguf.GGUFWriter(tmp_path / f"{name}.gguf", name)
        writer.add_block_count(1)
        writer.add_tokenizer_model("none")
        writer.add_tensor("token_embd.weight", weights(4, 32))
        writer.add_tensor("blk.0.attn_norm.weight", weights(32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return tmp_path / f"{name}.gguf"

    for name, within in (("rwkv7", " within layers"), ("strange", "")):
        found = verify(written(name))
        assert found.is_sound
        wanted = f"missing tensors{within}: dynquant does not know the architecture {name!r}"
        assert found.unchecked[-1] == wanted
        load_model(tmp_path / f"{name}.gguf")


@pytest.mark.slow
def test_a_missing_output_matrix_is_reported_as_unchecked_where_models_may_be_tied(
    whole: Callable[[str], Path], tmp_path: Path
) -> None:
    def unchecked(path: Path) -> list[str]:
        return [what for what in verify(path).unchecked if what.startswith("whether output.weight")]

    assert unchecked(whole("llama-2")) == []
    less = without(whole("llama-2"), tmp_path / "less.gguf", "output.weight".__eq__)
    assert len(unchecked(less)) == 1
    assert unchecked(whole("gemma")) == []  # always tied
    less = without(whole("olmo2"), tmp_path / "less.gguf", "output.weight".__eq__)
    assert "output.weight is missing; llama.cpp's olmo2 needs it" in faults_of(less)


@pytest.mark.slow
def test_a_llama_3_1_without_its_rope_factors_is_a_warning(tmp_path: Path) -> None:
    # LlamaModel.generate_extra_tensors in llama.cpp's converter writes them since July 2024.
    config = json.loads((load_reference("llama-3.1").folder / "config.json").read_text())
    config["max_position_embeddings"] = 131072
    folder = shutil.copytree(load_reference("llama-3.1").folder, tmp_path / "m")
    (folder / "config.json").write_text(json.dumps(config))
    dynquant.convert(folder, tmp_path / "a.gguf", recipe="f32", threads=1)
    less = without(tmp_path / "a.gguf", tmp_path / "less.gguf", "rope_freqs.weight".__eq__)
    words = f"{less}: rope_freqs.weight is missing; a model with these rope keys is a Llama 3.1"
    for warnings in (verify(less).warnings, make_plan(load_model(less), recipe("F16")).warnings):
        assert len([w for w in warnings if w.startswith(words)]) == 1
    whole = load_model(tmp_path / "a.gguf")
    assert (verify(tmp_path / "a.gguf").warnings, whole.deviations) == ((), ())


def test_a_file_that_is_not_a_whole_model_is_reported_as_unchecked(tmp_path: Path) -> None:
    adapter = write(
        tmp_path / "a.gguf",
        lambda w: [
            w.add_type("adapter"),
            w.add_tensor("blk.0.attn_q.weight.lora_a", weights(2, 8)),
        ],
        "llama",
    )
    found = verify(adapter)
    words = "missing tensors: the file is of type 'adapter' (general.type), not a whole model"
    assert (found.is_sound, found.unchecked[-1]) == (True, words)


# ---- a tensor for each expert --------------------------------------------------------------------


@pytest.fixture
def single(whole: Callable[[str], Path], tmp_path: Path) -> Path:
    return copy(whole("mixtral"), tmp_path / "single.gguf", single_experts)


@pytest.mark.slow
def test_single_experts_are_stacked_into_the_same_file(
    single: Path, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    by = recipe("Q8_0", "rules: [{role: experts, type: Q4_0}]\nfallback: [F16]")
    for source, out in ((single, "a.gguf"), (whole("mixtral"), "b.gguf")):
        dynquant.convert(source, tmp_path / out, recipe=by, threads=1)
    a, b = (
        {name: (values.tobytes(), type_) for name, values, type_ in tensors_in(tmp_path / out)}
        for out in ("a.gguf", "b.gguf")
    )
    assert a == b
    assert faults_of(tmp_path / "a.gguf") == ""


@pytest.mark.slow
def test_single_experts_are_compared_with_the_file_made_of_them(
    single: Path, tmp_path: Path
) -> None:
    dynquant.convert(single, tmp_path / "a.gguf", recipe="q8_0", threads=1)
    assert verify(tmp_path / "a.gguf", single, tensors="*", threads=1).faults == ()


@pytest.mark.slow
def test_verify_reports_single_experts_in_one_line(single: Path) -> None:
    (fault,) = verify(single).faults
    assert "ffn_gate.{0-" in fault.what
    assert "llama.cpp needs one for all experts of a layer: convert the file" in fault.what


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_loads_stacked_experts_only(single: Path, tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    dynquant.convert(single, tmp_path / "a.gguf", recipe="f32", threads=1)
    assert not llamacpp.loads(single)
    assert llamacpp.loads(tmp_path / "a.gguf")


@pytest.mark.slow
def test_blocks_of_single_experts_are_copied(whole: Callable[[str], Path], tmp_path: Path) -> None:
    dynquant.convert(whole("mixtral"), tmp_path / "q.gguf", recipe="q8_0", threads=1)
    blocks = copy(tmp_path / "q.gguf", tmp_path / "s.gguf", single_experts)
    dynquant.convert(blocks, tmp_path / "o.gguf", recipe="q8_0", threads=1)
    a, b = (
        [(n, v.tobytes()) for n, v, _ in tensors_in(tmp_path / p)] for p in ("q.gguf", "o.gguf")
    )
    assert sorted(a) == sorted(b)


@pytest.mark.slow
def test_a_missing_expert_is_named(single: Path, tmp_path: Path) -> None:
    less = without(single, tmp_path / "less.gguf", "blk.1.ffn_up.2.weight".__eq__)
    (message,) = problems_of(less).splitlines()
    assert re.search(r"blk\.1\.ffn_up\.2\.weight is missing; the model has \d+ experts", message)


@pytest.mark.slow
def test_single_experts_without_their_number_are_refused(single: Path, tmp_path: Path) -> None:
    less = copy(single, tmp_path / "less.gguf", without_keys=("llama.expert_count",))
    (message,) = problems_of(less).splitlines()
    assert "no llama.expert_count that states their number" in message


def test_such_names_of_an_unknown_architecture_are_kept(tmp_path: Path) -> None:
    name = "blk.0.ffn_up.3.weight"
    path = write(tmp_path / "s.gguf", lambda w: w.add_tensor(name, weights(2, 32)))
    assert [tensor.name for tensor in load_model(path).tensors] == [name]


@pytest.mark.slow
def test_experts_of_different_types_are_refused(single: Path, tmp_path: Path) -> None:
    def mixed(tensors: list[Tensor]) -> list[Tensor]:
        half = gguf.GGMLQuantizationType.F16
        return [
            (n, v.astype("float16"), half) if n == "blk.0.ffn_down.1.weight" else (n, v, t)
            for n, v, t in tensors
        ]

    (message,) = problems_of(copy(single, tmp_path / "mixed.gguf", mixed)).splitlines()
    assert "blk.0.ffn_down.{0-" in message
    assert "the experts of a layer have different types" in message


@pytest.mark.slow
def test_split_copies_single_experts_as_they_are(single: Path, tmp_path: Path) -> None:
    from dynquant.plan.copied import copied
    from dynquant.plan.shards import Split

    names = {name for name, _, _ in tensors_in(single)}
    assert {t.name for t in copied(single, Split()).tensors} == names
