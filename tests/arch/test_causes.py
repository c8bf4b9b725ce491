"""A folder with one cause of many problems is refused with one line, or read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from checkpoints import config_of, tensors_of, write_checkpoint
from packers import stored_in, write_stored

from dynquant.arch.base import Model
from dynquant.arch.families import families
from dynquant.arch.load import load_model
from dynquant.arch.model_types import CLASSES
from dynquant.errors import DynquantError
from dynquant.keys import Keys, string
from dynquant.transforms import read_weights

BASE = "LlamaForCausalLM"
Q = "model.layers.0.self_attn.q_proj"


@pytest.fixture(autouse=True)
def vocab(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the tokenizer, which is tested elsewhere, by one key."""

    def read_vocab(folder: Path, config: object, **_: object) -> Keys:
        return {"tokenizer.ggml.model": string("none")}

    monkeypatch.setattr("dynquant.arch.load.read_vocab", read_vocab)


def refusal(folder: Path) -> str:
    with pytest.raises(DynquantError) as e:
        load_model(folder)
    assert "\n" not in str(e.value)
    return str(e.value)


def with_extra(folder: Path, more: dict[str, np.ndarray], **changes: Any) -> Path:
    config = config_of(BASE, **changes)
    return write_checkpoint(folder, config, tensors_of(config) | more)


def weights_of(model: Model) -> dict[str, np.ndarray]:
    return {t.name: read_weights(t.source, 0, t.n_rows).reshape(t.shape) for t in model.tensors}


# ---- what the weights are ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"),
        ("weight.absmax", "weight.nested_absmax", "weight.quant_state.bitsandbytes__fp4"),
        ("SCB", "weight_format"),
    ],
)
def test_weights_of_bitsandbytes_without_settings_are_one_problem(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    more = {f"{Q}.{name}": np.zeros(3, np.uint8) for name in names}
    config = config_of(BASE)
    stored = tensors_of(config) | more | {f"{Q}.weight": np.zeros((128, 1), np.uint8)}
    message = refusal(write_checkpoint(tmp_path, config, stored))
    assert f"{tmp_path}: the weights are quantized by bitsandbytes ({Q}." in message
    assert "config.json has no quantization_config; use its base model" in message


@pytest.mark.parametrize(
    "renamed",
    [
        {f"{Q}.weight": f"{Q}.base_layer.weight"},
        {f"{Q}.weight": f"{Q}.original_module.weight"},
        {f"{Q}.weight": f"{Q}.modules_to_save.default.weight"},
        {"a": f"{Q}.lora_A.default.weight", "b": f"{Q}.lora_B.default.weight"},
        {"a": f"{Q}.lora_a", "b": f"{Q}.lora_b"},
        {"a": f"{Q}.lora_magnitude_vector.default.weight"},
    ],
)
def test_an_adapter_that_is_not_merged_is_one_problem(
    tmp_path: Path, renamed: dict[str, str]
) -> None:
    config = config_of(BASE)
    tensors = tensors_of(config) | dict.fromkeys("ab", np.zeros((2, 2), np.float32))
    stored = {renamed.get(n, n): x for n, x in tensors.items() if n in renamed or len(n) > 1}
    message = refusal(write_checkpoint(tmp_path, config, stored))
    assert message.startswith(f"{tmp_path}: the weights contain an adapter that is not merged")
    assert message.endswith("merge it with PEFT's `merge_and_unload()` and save the model again")


@pytest.mark.parametrize("also", ["quantization_config", "nothing"])
def test_a_folder_of_mlx_is_one_problem(tmp_path: Path, also: str) -> None:
    settings = {"group_size": 64, "bits": 4, "mode": "affine"}
    config = config_of(BASE) | {"quantization": settings, also: settings}
    packed = {n: x.astype(np.uint32) for n, x in tensors_of(config).items()}
    message = refusal(write_checkpoint(tmp_path, config, packed))
    assert f"{tmp_path / 'config.json'}: the weights are quantized by MLX" in message
    assert "mlx_lm.convert --dequantize" in message


def test_layers_beyond_those_of_the_config_are_one_problem(tmp_path: Path) -> None:
    config = config_of(BASE, num_hidden_layers=4)
    folder = write_checkpoint(tmp_path, config | {"num_hidden_layers": 1}, tensors_of(config))
    message = refusal(folder)
    assert " and all others of layers 1 to 3 are beyond the 1 layers of config.json" in message


# ---- double precision ----------------------------------------------------------------------------


def test_doubles_are_rounded_once_to_f32(tmp_path: Path) -> None:
    config = config_of("Qwen3ForCausalLM")
    tensors = {n: x.astype(np.float64) * (1 + 2.0**-30) / 3 for n, x in tensors_of(config).items()}
    assert {x.dtype for x in tensors.values()} == {np.dtype("float64")}
    found = weights_of(load_model(write_checkpoint(tmp_path, config, tensors)))
    embedding = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(found["token_embd.weight"], embedding)
    norm = tensors["model.norm.weight"].astype(np.float32)
    np.testing.assert_array_equal(found["output_norm.weight"], norm)


def test_rows_of_doubles_are_read_in_any_range(tmp_path: Path) -> None:
    config = config_of(BASE)
    tensors = {n: x.astype(np.float64) for n, x in tensors_of(config).items()}
    model = load_model(write_checkpoint(tmp_path, config, tensors))
    source = next(t.source for t in model.tensors if t.name == "token_embd.weight")
    expected = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(read_weights(source, 5, 9), expected[5:9])


def test_a_double_beyond_f32_becomes_infinite_so_that_encoders_refuse_it(tmp_path: Path) -> None:
    config = config_of(BASE)
    tensors = {n: x.astype(np.float64) for n, x in tensors_of(config).items()}
    tensors["model.norm.weight"][3] = 1e39
    found = weights_of(load_model(write_checkpoint(tmp_path, config, tensors)))
    assert np.isinf(found["output_norm.weight"]).nonzero()[0].tolist() == [3]


# ---- the class -----------------------------------------------------------------------------------


def loaded(folder: Path, drop: tuple[str, ...] = (), **changes: Any) -> Model:
    config = config_of("Qwen3ForCausalLM")
    tensors = {n: x for n, x in tensors_of(config).items() if n not in drop}
    changed = {k: v for k, v in (config | changes).items() if v is not None}
    return load_model(write_checkpoint(folder, changed, tensors))


@pytest.mark.parametrize("listed", [None, []])
def test_model_type_gives_the_class_if_architectures_is_missing(
    tmp_path: Path, listed: list[str] | None
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    found = loaded(tmp_path / "a", architectures=listed, model_type="qwen3")
    whole = loaded(tmp_path / "b")
    assert (found.architecture, found.deviations) == ("qwen3", whole.deviations)
    assert [t.name for t in found.tensors] == [t.name for t in whole.tensors]


def test_each_model_type_is_a_supported_class() -> None:
    assert set(CLASSES.values()) <= set(families())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": None}, "has no architectures and no model_type; add the model's class"),
        (
            {"architectures": [], "model_type": "foo"},
            "has no architectures, and model_type 'foo' is not the name of a known one; add",
        ),
        (
            {"architectures": ["FooForCausalLM"]},
            "architecture 'FooForCausalLM' is not supported; if llama.cpp's convert_hf_to_gguf.py"
            " supports it, convert with that and give the resulting GGUF",
        ),
    ],
)
def test_an_unknown_class_is_refused_with_what_to_do_and_no_list(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    config = config_of(BASE)
    changed = {k: v for k, v in (config | changes).items() if v is not None}
    message = refusal(write_checkpoint(tmp_path, changed, tensors_of(config)))
    assert words in message
    assert message.count("ForCausalLM") == 1


def test_similar_classes_come_after_what_to_do(tmp_path: Path) -> None:
    config = config_of(BASE)
    changed = config | {"architectures": ["Qwen9ForCausalLM"]}
    message = refusal(write_checkpoint(tmp_path, changed, tensors_of(config)))
    _, _, near = message.partition("give the resulting GGUF (similar classes that are supported: ")
    assert "Qwen3ForCausalLM" in near


@pytest.mark.parametrize("name", ["text_config", "language_config"])
@pytest.mark.parametrize(
    ("inner", "class_"),
    [
        ({"model_type": "llama"}, "LlamaForCausalLM"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"model_type": "foo", "architectures": ["Qwen3ForCausalLM"]}, "Qwen3ForCausalLM"),
        ({"model_type": "qwen3", "architectures": ["FooModel"]}, "Qwen3ForCausalLM"),
    ],
)
def test_an_unknown_class_around_a_known_text_model_names_it(
    tmp_path: Path, name: str, inner: dict[str, Any], class_: str
) -> None:
    config = config_of(BASE)
    changed = {"architectures": ["UnknownVLForConditionalGeneration"], name: config | inner}
    message = refusal(write_checkpoint(tmp_path, changed, tensors_of(config)))
    assert "'UnknownVLForConditionalGeneration' is not supported; if llama.cpp's" in message
    assert message.endswith(
        f" (its text model is a {class_}, which is supported if it is saved separately)"
    )


@pytest.mark.parametrize(
    "inner", [{"model_type": "foo"}, {"model_type": ["llama"]}, {}, [], "x", {"architectures": []}]
)
def test_an_unknown_text_model_is_not_named(tmp_path: Path, inner: object) -> None:
    changed = {"architectures": ["UnknownVLForConditionalGeneration"], "text_config": inner}
    message = refusal(write_checkpoint(tmp_path, changed, tensors_of(config_of(BASE))))
    assert "text model" not in message


def test_a_base_class_is_an_embedding_model_and_says_so(tmp_path: Path) -> None:
    model = loaded(tmp_path, ("lm_head.weight",), architectures=["Qwen3Model"])
    assert model.architecture == "qwen3"
    assert "output.weight" not in {t.name for t in model.tensors}
    (warning,) = (w for w in model.deviations if "without an output matrix" in w)
    assert "Qwen3Model is a language model without an output matrix, as for embeddings" in warning
    assert "text that llama.cpp generates with the file has no meaning" in warning


def test_text_of_a_tied_base_class_is_not_doubted(tmp_path: Path) -> None:
    drop = ("lm_head.weight",)
    model = loaded(tmp_path, drop, architectures=["Qwen3Model"], tie_word_embeddings=True)
    assert "no meaning" not in " ".join(model.deviations)


@pytest.mark.parametrize(
    ("family", "class_"),
    [
        ("gpt-oss", "GptOssModel"),
        ("olmo2", "Olmo2Model"),
        ("olmo3", "Olmo3Model"),
        ("olmoe", "OlmoeModel"),
        ("phimoe", "PhimoeModel"),
        ("qwen2moe", "Qwen2MoeModel"),
    ],
)
def test_a_base_class_whose_graph_needs_a_head_has_the_embedding_in_its_place(
    tmp_path: Path, family: str, class_: str
) -> None:
    source = load_reference(family).folder
    shutil.copytree(source, tmp_path / family, ignore=shutil.ignore_patterns("*.safetensors*"))
    config = json.loads((source / "config.json").read_text("utf-8")) | {"architectures": [class_]}
    stored = {n: t for n, t in stored_in(source).items() if not n.startswith("lm_head.")}
    assert len(stored) < len(stored_in(source))
    model = load_model(write_stored(tmp_path / family, config, stored))
    found, whole = weights_of(model), weights_of(load_model(source))
    assert found.keys() == whole.keys()
    np.testing.assert_array_equal(found["output.weight"], found["token_embd.weight"])
    assert not found.get("output.bias", np.zeros(1)).any()
    (warning,) = (w for w in model.deviations if "without an output matrix" in w)
    assert f"{class_} is a language model without an output matrix, as for embeddings" in warning
    assert "llama.cpp needs that matrix, so the file has the embedding in its place" in warning


# ---- rerankers -----------------------------------------------------------------------------------


def qwen3(folder: Path, readme: str = "", **changes: Any) -> Path:
    folder.mkdir()
    (folder / "README.md").write_text(readme)
    config = config_of("Qwen3ForCausalLM")
    return write_checkpoint(folder, config | changes, tensors_of(config))


@pytest.mark.parametrize(
    ("name", "readme", "changes"),
    [
        ("m", "---\nlicense: x\n---\n# Qwen3-Reranker-0.6B\n", {}),
        ("m", "---\nbase_model: Qwen/Qwen3-Reranker-4B\n---\n", {}),
        ("Qwen3-Reranker-8B", "", {}),
        ("m", "", {"_name_or_path": "Qwen/Qwen3-Reranker-8B"}),
    ],
)
def test_a_qwen3_reranker_is_refused_and_does_not_become_a_language_model(
    tmp_path: Path, name: str, readme: str, changes: dict[str, Any]
) -> None:
    folder = qwen3(tmp_path / name, readme, **changes)
    message = refusal(folder)
    assert message.startswith(f"{folder}: is a Qwen3-Reranker, whose scores dynquant does not")
    assert message.endswith("which makes a reranker of it, and give the resulting GGUF")


def test_a_model_that_only_mentions_the_reranker_is_read(tmp_path: Path) -> None:
    readme = "# Qwen3-Embedding-0.6B\n\n| Reranking | Qwen3-Reranker-0.6B |\n- Qwen3-Reranker-4B\n"
    assert load_model(qwen3(tmp_path / "m", readme)).architecture == "qwen3"


# ---- sentence-transformers -----------------------------------------------------------------------


def sentence_transformer(folder: Path, inner: str = "0_Transformer") -> Path:
    """Write a model whose transformer is in a folder below modules.json."""
    (folder / "0_Transformer").mkdir(parents=True)
    (folder / "1_Pooling").mkdir()
    config = config_of(BASE)
    write_checkpoint(folder / "0_Transformer", config, tensors_of(config))
    kinds = {"Transformer": inner, "Pooling": "1_Pooling"}
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return folder


@pytest.mark.parametrize("given", [".", "0_Transformer"])
def test_a_transformer_in_a_folder_below_is_read_with_its_pooling(
    tmp_path: Path, given: str
) -> None:
    model = load_model(sentence_transformer(tmp_path / "MyEmbedder") / given)
    assert model.keys["llama.pooling_type"].value == 1
    assert "MyEmbedder".lower() in str(model.keys["general.name"].value).lower()


def test_a_transformer_outside_the_folder_is_refused(tmp_path: Path) -> None:
    assert "is not in this folder" in refusal(sentence_transformer(tmp_path / "m", "../../x"))
