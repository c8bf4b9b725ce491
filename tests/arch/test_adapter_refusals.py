"""Adapters that cannot be merged or converted are refused, with the cause and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapters import ADAPTERS, Tensors, changed, tied_adapter
from inprocess import run
from places import REFERENCES

import dynquant
from dynquant.errors import AdapterError, CheckpointError

Q = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"


def refusal(adapter: Path, base: str = "qwen3") -> str:
    """Return the message of both ways to use an adapter, which must be the same."""
    with pytest.raises(AdapterError) as merging:
        dynquant.load_model(REFERENCES / base, merge_adapter=adapter)
    with pytest.raises(AdapterError) as converting:
        dynquant.load_model(adapter, base=REFERENCES / base)
    assert str(merging.value) == str(converting.value)
    return str(merging.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; only LORA is supported"),
        ({"use_dora": True}, "use_dora is set: DoRA also scales whole columns"),
        ({"bias": "all"}, "bias is 'all': trained biases are not supported"),
        ({"lora_bias": True}, "lora_bias is set"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is set: whole modules were trained"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices is set"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is set"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying is set"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa', which changes the base"),
        ({"kasa_config": {"a": 1}}, "'kasa_config' is {'a': 1}, a setting that is not known"),
        ({"r": 0}, "r is 0, not a rank"),
        ({"r": True}, "r is True, not a rank"),
        ({"lora_alpha": 0}, "lora_alpha is 0; it must be a number, and not 0"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; it must be a number"),
        ({"use_rslora": 1}, "use_rslora is 1, not true or false"),
        ({"rank_pattern": [8]}, "rank_pattern is [8], not an object"),
        ({"rank_pattern": {"(a+)+b": 8}}, "rank_pattern: '(a+)+b' is not a name of modules"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern: 'q_proj' has 'x'"),
    ],
)
def test_settings_that_are_not_supported_are_named(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    found = refusal(changed("qwen3", tmp_path / "a", **settings))
    assert found.startswith(f"{tmp_path}/a/adapter_config.json: {message}")


def test_all_settings_are_reported_at_once(tmp_path: Path) -> None:
    found = refusal(changed("qwen3", tmp_path / "a", r=-1, use_dora=True, bias="all"))
    assert [line.split(": ")[1].split(" ")[0] for line in found.splitlines()] == [
        "use_dora",
        "bias",
        "r",
    ]


def renamed(before: str, after: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        for name in [n for n in tensors if before in n]:
            tensors[name.replace(before, after)] = tensors.pop(name)

    return change


def with_one(name: str, *shape: int) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name] = np.ones(shape, np.float32)

    return change


def without(name: str) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        del tensors[name]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(f"{Q}.lora_A.weight"), "layers.0.self_attn.q_proj: has lora_B without lora_A"),
        (with_one(f"{Q}.lora_A.weight", 4, 32), "which do not belong together"),
        (
            lambda t: (
                with_one(f"{Q}.lora_A.weight", 9, 32)(t),
                with_one(f"{Q}.lora_B.weight", 144, 9)(t),
            ),
            "q_proj: has rank 9, but adapter_config.json says 3",
        ),
        (with_one(f"{Q}.lora_A.weight", 3, 32, 1, 1), "the module is not linear"),
        (with_one(f"{Q}.lora_magnitude_vector", 144), "belongs to DoRA"),
        (with_one(f"{Q}.lora_B.bias", 144), "is a bias of the adapter"),
        (with_one("base_model.model.lm_head.modules_to_save.weight", 4, 4), "trained as a whole"),
        (with_one("base_model.model.lm_head.weight", 4, 4), "is a whole tensor"),
        (with_one(f"{Q}.hada_w1_a", 4, 4), "belongs to another method"),
        (with_one("model.layers.0.self_attn.q_proj.lora_a", 4, 4), "is in the form of MLX"),
        (with_one(f"{Q}.lora_A.other.weight", 3, 32), "contains several adapters"),
        (lambda t: t.clear(), "contains no factors"),
        (
            renamed("layers.0.self_attn.q_proj", "layers.7.self_attn.q_proj"),
            "model.layers.7.self_attn.q_proj is not a linear module",
        ),
        (
            renamed("model.layers.0.self_attn.q_proj", "visual.blocks.0.attn.qkv"),
            "visual.blocks.0.attn.qkv is not a linear module",
        ),
    ],
)
def test_tensors_that_are_not_supported_are_named(
    change: Callable[[Tensors], None], message: str, tmp_path: Path
) -> None:
    found = refusal(changed("qwen3", tmp_path / "a", change))
    assert found.startswith(f"{tmp_path}/a/adapter_model.safetensors: ")
    assert message in found


def test_norm_is_not_a_linear_module(tmp_path: Path) -> None:
    norm = "base_model.model.model.norm.lora_"

    def change(tensors: Tensors) -> None:
        tensors |= {
            f"{norm}A.weight": np.ones((3, 1), np.float32),
            f"{norm}B.weight": np.ones((32, 3), np.float32),
        }

    found = refusal(changed("qwen3", tmp_path / "a", change))
    assert "model.norm changes a weight of shape [32], which is not a linear module" in found


def test_adapter_of_another_base_names_shapes_and_the_base() -> None:
    found = refusal(ADAPTERS / "qwen3", "llama-2")
    assert (
        "model.layers.{0-1}.self_attn.q_proj changes a weight of shape [144, 32], which has the"
        " shape [32, 32] in the base; give the adapter's own base: it was trained on"
        " 'tests/references/qwen3'"
    ) in found
    assert len(found.splitlines()) == 7


def test_adapter_of_another_family_names_its_modules() -> None:
    found = refusal(ADAPTERS / "gpt2", "llama-2")
    assert "transformer.h.{0-1}.attn.c_attn is not a linear module" in found
    assert "(llama); it was trained on 'tests/references/gpt2'" in found


def test_files_that_are_missing_or_pickled_are_named(tmp_path: Path) -> None:
    assert "is not a folder; give the folder of a PEFT adapter" in refusal(tmp_path / "no")
    (tmp_path / "a").mkdir()
    found = refusal(tmp_path / "a")
    assert "has no adapter_config.json" in found
    assert "has no adapter_model.safetensors; download the adapter again" in found
    (tmp_path / "a" / "adapter_model.bin").write_bytes(b"")
    assert "save it again, which writes safetensors" in refusal(tmp_path / "a")


def test_an_adapter_is_merged_once(tmp_path: Path) -> None:
    adapters = [ADAPTERS / "qwen3", changed("qwen3", tmp_path / "a"), ADAPTERS / "qwen3"]
    with pytest.raises(AdapterError, match=r"qwen3: is given twice; an adapter is merged once"):
        dynquant.load_model(REFERENCES / "qwen3", merge_adapter=adapters)


def test_modules_of_the_vision_encoder_are_named_as_such(tmp_path: Path) -> None:
    def within_the_encoder(tensors: Tensors) -> None:
        for name in [*tensors]:
            moved = name.replace(
                "model.layers.0.self_attn.q_proj", "model.visual.blocks.0.attn.qkv"
            )
            tensors[moved] = tensors.pop(name)

    adapter = changed("qwen3", tmp_path / "a", within_the_encoder)
    with pytest.raises(AdapterError) as e:
        dynquant.load_model(REFERENCES / "projectors" / "qwen3vl", merge_adapter=adapter)
    (line,) = (m for m in e.value.messages if "visual" in m)
    assert "blocks.0.attn.qkv: modules of the vision model, of which adapters are not" in line


def test_problems_of_all_adapters_are_reported_at_once(tmp_path: Path) -> None:
    adapters = [changed("qwen3", tmp_path / name, use_dora=True) for name in "ab"]
    with pytest.raises(AdapterError) as e:
        dynquant.load_model(REFERENCES / "qwen3", merge_adapter=adapters)
    assert len(e.value.messages) == 2


def test_embedding_stored_beside_an_adapter_must_be_that_of_the_base(tmp_path: Path) -> None:
    embedding = "base_model.model.model.embed_tokens.base_layer.weight"
    base = {t.name: t for t in dynquant.load_model(REFERENCES / "llama-2").tensors}
    shape = base["token_embd.weight"].shape

    adapter = changed("llama-2", tmp_path / "a", with_one(embedding, *shape))
    with pytest.raises(AdapterError, match=r"differs from the base, so tokens were added"):
        dynquant.load_model(REFERENCES / "llama-2", merge_adapter=adapter)
    (warning,) = dynquant.load_model(adapter, base=REFERENCES / "llama-2").deviations
    assert warning.startswith(f"left out: {embedding}: a copy of the base's weight")


@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_gguf_of_an_adapter_of_tied_matrices_is_refused(module: str, tmp_path: Path) -> None:
    adapter = tied_adapter(tmp_path / "a", "granite", module)
    with pytest.raises(AdapterError, match="uses the embedding as its output matrix") as e:
        dynquant.load_model(adapter, base=REFERENCES / "granite")
    assert "--merge-adapter" in str(e.value)


@pytest.mark.parametrize(
    "family", ["gemma", "command-r", "falcon-h1-tied", "bitnet", "gemma-embedding"]
)
@pytest.mark.parametrize("module", ["lm_head", "model.embed_tokens"])
def test_tied_matrices_that_llamacpp_cannot_separate_are_refused(
    family: str, module: str, tmp_path: Path
) -> None:
    adapter = tied_adapter(tmp_path / "a", family, module)
    with pytest.raises(AdapterError, match=r"cannot have an adapter of only one of them") as e:
        dynquant.load_model(REFERENCES / family, merge_adapter=adapter)
    assert len(e.value.messages) == 1
    with pytest.raises(AdapterError):
        dynquant.load_model(adapter, base=REFERENCES / family)


def test_matrices_that_llamacpp_multiplies_without_an_adapter_are_refused(tmp_path: Path) -> None:
    model = dynquant.load_model(REFERENCES / "deepseek-v2-lite")
    shape = {t.name: t.shape for t in model.tensors}["blk.0.attn_kv_a_mqa.weight"]

    def change(tensors: Tensors) -> None:
        tensors.clear()
        name = "base_model.model.model.layers.0.self_attn.kv_a_proj_with_mqa.lora_"
        tensors[f"{name}A.weight"] = np.ones((1, shape[1]), np.float32)
        tensors[f"{name}B.weight"] = np.ones((shape[0], 1), np.float32)

    adapter = changed("gemma", tmp_path / "a", change, r=1)
    base = REFERENCES / "deepseek-v2-lite"
    with pytest.raises(AdapterError, match=r"llama.cpp does not apply adapters to blk.0.attn_kv_a"):
        dynquant.load_model(adapter, base=base)
    assert dynquant.load_model(base, merge_adapter=adapter).tensors


def test_experts_of_different_ranks_are_refused(tmp_path: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.experts.1.up_proj.lora_"

    def change(tensors: Tensors) -> None:
        for factor, axis in (("A", 0), ("B", 1)):
            key = f"{name}{factor}.weight"
            tensors[key] = np.ascontiguousarray(tensors[key].take([0], axis))

    pattern = {"layers.0.mlp.experts.1.up_proj": 1}
    adapter = changed("qwen3moe", tmp_path / "a", change, rank_pattern=pattern)
    with pytest.raises(AdapterError, match=r"the experts have different ranks \(1, 2\)"):
        dynquant.load_model(adapter, base=REFERENCES / "qwen3moe")
    assert dynquant.load_model(REFERENCES / "qwen3moe", merge_adapter=adapter).tensors


def test_gguf_as_a_base_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "base.gguf"
    dynquant.convert(REFERENCES / "qwen3", path, recipe="f32")
    with pytest.raises(AdapterError, match="a GGUF does not say how its rows were ordered"):
        dynquant.load_model(ADAPTERS / "qwen3", base=path)
    with pytest.raises(AdapterError, match="an adapter cannot be merged into a GGUF"):
        dynquant.load_model(path, merge_adapter=ADAPTERS / "qwen3")


def test_adapter_without_a_base_says_what_to_do() -> None:
    done = run("convert", ADAPTERS / "qwen3", "-o", "x.gguf", "-r", "f32")
    assert done.code == 1
    assert (
        "is an adapter; name the model that it belongs to (--base MODEL), or merge it" in done.err
    )


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_numbers_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors[f"{Q}.lora_A.weight"][1, 5] = number

    found = refusal(changed("qwen3", tmp_path / "a", spoil))
    assert f"{Q}.lora_A.weight contains a NaN or an infinity; the adapter is damaged" in found


def test_merged_weights_beyond_the_range_are_blamed_on_the_adapter(tmp_path: Path) -> None:
    def enlarge(tensors: Tensors) -> None:
        tensors[f"{Q}.lora_A.weight"][1, 5] = 3e38
        tensors[f"{Q}.lora_B.weight"][:, 1] = 1e3

    adapter, out = changed("qwen3", tmp_path / "a", enlarge), tmp_path / "x.gguf"
    with pytest.raises(AdapterError, match=r"0\.self_attn\.q_proj: merged weights .*beyond"):
        dynquant.convert(REFERENCES / "qwen3", out, recipe="f32", merge_adapter=[adapter])
    assert not out.exists()


def test_options_that_an_adapter_does_not_have_are_wrong_usage() -> None:
    done = run(
        "convert", ADAPTERS / "qwen3", "--base", REFERENCES / "qwen3", "-o", "x.gguf",
        "--target-size", "1GB", "--mla", "split",
    )  # fmt: skip
    assert done.code == 2
    assert "leave out --mla, --target-size" in " ".join(done.err.replace("│", " ").split())


def test_damaged_settings_are_named(tmp_path: Path) -> None:
    adapter = changed("qwen3", tmp_path / "a")
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"adapter_config.json: not a JSON object"):
        dynquant.load_model(adapter, base=REFERENCES / "qwen3")
    assert json.loads((ADAPTERS / "qwen3" / "adapter_config.json").read_text())["r"] == 3
