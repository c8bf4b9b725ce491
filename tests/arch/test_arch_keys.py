from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import (
    ARCHITECTURES,
    config_of,
    shapes_of,
    tensors_of,
    write_checkpoint,
    write_holes,
)
from gguf import GGUFType, GGUFValueType, GGUFWriter, RopeScalingType
from places import SHARED

from dynquant.arch.load import load_model
from dynquant.errors import CheckpointError
from dynquant.keys import Keys, KeyValue

EXPECTED = SHARED / "expected-keys"

LLAMA_3_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "vocab_size": 128256,
}
QWEN_25_05B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
}
PHI_3_MINI_128K: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {"type": "su", "long_factor": [2.0] * 48, "short_factor": [1.5] * 48},
    "rope_theta": 10000.0,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}


@pytest.fixture(autouse=True)
def vocab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})


def keys_of(folder: Path, architecture: str = "LlamaForCausalLM", **changes: Any) -> Keys:
    config = config_of(architecture, **changes)
    return load_model(write_checkpoint(folder, config, tensors_of(config))).keys


def recorded(arch: str, fill: Callable[[GGUFWriter], object]) -> Keys:
    """The keys, types and order that the gguf package writes."""
    writer = GGUFWriter(None, arch)
    writer.add_type(GGUFType.MODEL)
    fill(writer)
    return {name: KeyValue(v.value, v.type) for name, v in writer.kv_data[0].items()}


def rounded(key: KeyValue) -> KeyValue:
    """The value in float32."""
    if key.type is not GGUFValueType.FLOAT32:
        return key
    return KeyValue(float(np.float32(key.value)), key.type)


def common(writer: GGUFWriter, rope: Callable[[GGUFWriter], object] = lambda _: None) -> None:
    """What llama.cpp's converter writes for checkpoints.BASE, in its order."""
    writer.add_block_count(2)
    writer.add_context_length(128)
    writer.add_embedding_length(16)
    writer.add_feed_forward_length(40)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    rope(writer)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)


def llama(writer: GGUFWriter, rope: Callable[[GGUFWriter], object] = lambda _: None) -> None:
    common(writer, rope)
    writer.add_key_length(4)
    writer.add_value_length(4)
    writer.add_vocab_size(24)
    writer.add_rope_dimension_count(4)


def qwen3(writer: GGUFWriter) -> None:
    common(writer)
    writer.add_key_length(8)
    writer.add_value_length(8)


def linear(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(4.0)


def yarn(writer: GGUFWriter) -> None:
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(32)


def attention(writer: GGUFWriter, factor: float) -> None:
    """llama.cpp multiplies it by 0.1 ln(4) + 1, which transformers does not."""
    writer.add_rope_scaling_attn_factors(factor / 1.1386294361)


YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 32,
    "beta_fast": 32,
    "beta_slow": 1.0,
}
CASES: dict[str, tuple[str, dict[str, Any], str, Callable[[GGUFWriter], object]]] = {
    "Llama": ("LlamaForCausalLM", {}, "llama", llama),
    "Mistral": ("MistralForCausalLM", {"sliding_window": 64}, "llama", llama),
    "Qwen2": ("Qwen2ForCausalLM", {}, "qwen2", common),
    "Qwen3": ("Qwen3ForCausalLM", {}, "qwen3", qwen3),
    "linear": (
        "LlamaForCausalLM",
        {"rope_scaling": {"type": "linear", "factor": 4}},
        "llama",
        lambda w: llama(w, linear),
    ),
    "yarn": ("LlamaForCausalLM", {"rope_scaling": YARN}, "llama", lambda w: llama(w, yarn)),
    "yarn with another attention": (
        "LlamaForCausalLM",
        {"rope_scaling": {**YARN, "attention_factor": 1.5}},
        "llama",
        lambda w: llama(w, lambda w: (yarn(w), attention(w, 1.5))),
    ),
    "yarn with two magnitudes": (
        "Qwen2ForCausalLM",
        {"rope_scaling": {**YARN, "mscale": 2.0, "mscale_all_dim": 0.5}},
        "qwen2",
        lambda w: common(w, lambda w: (yarn(w), attention(w, 1.1944648761))),
    ),
    "dynamic": (
        "LlamaForCausalLM",
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "llama",
        llama,
    ),
    "not causal": (
        "Qwen2ForCausalLM",
        {"is_causal": False},
        "qwen2",
        lambda w: common(w, lambda w: w.add_causal_attention(False)),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_architecture_keys_are_as_the_gguf_package_writes_them(tmp_path: Path, case: str) -> None:
    architecture, changes, arch, fill = CASES[case]
    found = keys_of(tmp_path, architecture, **changes)
    expected = recorded(arch, fill)
    general = [k for k in found if k.startswith("general.")]
    assert general[:2] == ["general.architecture", "general.type"]
    assert [k for k in found if k not in general] == [k for k in expected if "general" not in k]
    assert {k: rounded(found[k]) for k in expected} == {k: rounded(v) for k, v in expected.items()}


def test_qwen3_heads_have_128_weights_by_default(tmp_path: Path) -> None:
    config = config_of("Qwen3ForCausalLM", head_dim=128)
    write_checkpoint(tmp_path, config, tensors_of(config))
    del config["head_dim"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).keys["qwen3.attention.key_length"].value == 128


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Meta-Llama-3-8B-Instruct", LLAMA_3_8B),
        ("Qwen2.5-0.5B-Instruct", QWEN_25_05B),
        ("Phi-3-mini-128k-instruct", PHI_3_MINI_128K),
    ],
)
def test_keys_and_tensors_agree_with_another_converter(
    tmp_path: Path, name: str, config: dict[str, Any]
) -> None:
    path = EXPECTED / f"{name}.json"
    if not path.exists():
        pytest.skip(f"needs {path.name}, which is not shipped")
    expected: dict[str, str] = json.loads(path.read_text())
    model = load_model(write_holes(tmp_path, config, shapes_of(config)))
    arch = f"{model.architecture}."
    for key, value in expected.items():
        if key.startswith((arch, "general.architecture")):
            found = model.keys[key].value
            same = type(found)(value)
            # The other converter printed float32.
            close = pytest.approx(same, rel=1e-7) if isinstance(same, float) else same
            assert found == close, key
    tensors = {t.name for t in model.tensors}
    assert tensors == {k for k in expected if re.fullmatch(r".*\.(weight|bias)", k)}
    count = expected.get("general.parameter_count")
    assert count is None or int(count) == sum(t.n_rows * t.n_per_row for t in model.tensors)


def general_of(folder: Path) -> dict[str, Any]:
    return {
        k.removeprefix("general."): v.value
        for k, v in keys_of(folder).items()
        if k.startswith("general.")
    }


def test_the_folder_name_gives_name_finetune_and_size(tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-Llama-7K-Instruct"
    folder.mkdir()
    assert general_of(folder) == {
        "architecture": "llama",
        "type": "model",
        "name": "Tiny Llama 7K Instruct",
        "finetune": "Instruct",
        "basename": "Tiny-Llama",
        "size_label": "7K",
    }


def test_size_is_counted_if_no_name_states_it(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    n = sum(x.size for x in tensors_of(config_of("LlamaForCausalLM")).values())
    assert n == 6224
    assert general_of(folder)["size_label"] == "6.2K"


def test_the_model_card_gives_license_tags_and_base_model(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage: [en, no]\npipeline_tag: text-generation\n"
        "base_model: Org/Base-7B\nmodel_version: 1.5\n---\n# Mine\n"
    )
    found = general_of(folder)
    assert found["license"] == "apache-2.0"
    assert found["tags"] == ("text-generation",)
    assert found["version"] == "1.5"
    assert found["base_model.count"] == 1
    assert found["base_model.0.repo_url"] == "https://huggingface.co/Org/Base-7B"


def test_no_path_of_a_base_gets_from_the_model_card_into_keys(tmp_path: Path) -> None:
    """As PEFT writes the card of an adapter whose base was a folder."""
    (tmp_path / "README.md").write_text(
        "---\nlibrary_name: peft\nbase_model: /home/me/secret/llama\n"
        "tags:\n- base_model:adapter:/home/me/secret/llama\n- lora\n---\n"
    )
    found = general_of(tmp_path)
    assert "secret" not in str(found).lower()
    assert found["tags"] == ("lora",)
    assert not any(name.startswith("base_model") for name in found)


def test_sampling_settings_come_from_generation_config(tmp_path: Path) -> None:
    text = '{"temperature": 1, "top_k": 20, "top_p": null, "do_sample": true}'
    (tmp_path / "generation_config.json").write_text(text)
    keys = keys_of(tmp_path)
    assert keys["general.sampling.temp"] == KeyValue(1.0, GGUFValueType.FLOAT32)
    assert keys["general.sampling.top_k"] == KeyValue(20, GGUFValueType.INT32)
    assert len([k for k in keys if "sampling" in k]) == 2


def test_a_snapshot_in_the_hub_cache_has_its_name_on_the_hub(tmp_path: Path) -> None:
    folder = tmp_path / "models--Org--My-Model-1B" / "snapshots" / ("0123456789abcdef" * 2)
    folder.mkdir(parents=True)
    found = general_of(folder)
    assert (found["name"], found["organization"]) == ("My Model 1B", "Org")


@pytest.mark.parametrize("path", ["/m", "/home/me/m", "./m", "../m", "C:\\m", "a/b/c", "m", 3])
def test_a_path_in_config_is_not_used_as_name(tmp_path: Path, path: object) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    keys = keys_of(folder, _name_or_path=path)
    assert keys["general.name"].value == "Mine"
    assert "general.organization" not in keys


def test_a_hub_name_in_config_is_used_as_name(tmp_path: Path) -> None:
    assert keys_of(tmp_path, _name_or_path="org/some-1B")["general.name"].value == "Some 1B"


@pytest.mark.parametrize("where", [".", "../mine", "../mine/sub/.."])
def test_a_relative_path_gives_the_name_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert keys_of(Path(where))["general.name"].value == "Mine"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_key_holds_the_path_of_the_folder(tmp_path: Path, architecture: str) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    assert not [k for k, v in keys_of(folder, architecture).items() if "/" in str(v.value)]


@pytest.mark.parametrize(
    "card", ["---\na: [1\n---\n", "---\nlicense: [[1]]\n---\n", "---\ndatasets: 3\n---\n"]
)
def test_a_broken_model_card_is_rejected_or_ignored(tmp_path: Path, card: str) -> None:
    (tmp_path / "README.md").write_text(card)
    try:
        keys = keys_of(tmp_path)
    except CheckpointError as e:
        assert "README.md" in str(e)
    else:
        assert "general.license" not in keys


@pytest.mark.parametrize("text", ["[]", "{", "\udcff", '{"top_k": "many"}'])
def test_a_broken_generation_config_is_rejected_or_ignored(tmp_path: Path, text: str) -> None:
    path = tmp_path / "generation_config.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    try:
        keys = keys_of(tmp_path)
    except CheckpointError as e:
        assert "generation_config.json" in str(e)
    else:
        assert not [k for k in keys if "sampling" in k]
