"""Configurations of the families that llama.cpp's graphs can and cannot compute."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from agreement import config_of, load_reference
from checkpoints import write_holes

from dynquant.arch.families import families
from dynquant.arch.load import describe, load_model
from dynquant.arch.settings import Declared
from dynquant.errors import ArchitectureError


def changed(family: str, changes: dict[str, Any], tmp_path: Path) -> Path:
    """Copy a reference and change its configuration; a change to None removes the key."""
    folder = shutil.copytree(load_reference(family).folder, tmp_path / "changed")
    config = {k: v for k, v in {**config_of(family), **changes}.items() if v is not None}
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


YARN = config_of("olmo3")["rope_scaling"]
LONG = config_of("phi3")["rope_scaling"]
MAGNITUDES = config_of("phimoe")["rope_scaling"]
BAD: dict[str, tuple[str, dict[str, Any], str]] = {
    "tied embeddings": ("olmo2", {"tie_word_embeddings": True}, "tie_word_embeddings is true"),
    "biases": ("olmo2", {"attention_bias": True}, "attention_bias is True; .* with False"),
    "wide heads": (
        "olmo2",
        {"head_dim": 16},
        "4 heads of 16 weights do not add up to hidden_size 32",
    ),
    "two bases": (
        "olmo3",
        {
            "rope_scaling": None,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
        "rope_theta is 500.0 for sliding_attention and 10000.0 for full_attention",
    ),
    "scaling in windows": (
        "olmo3",
        {
            "rope_scaling": None,
            "rope_parameters": {"full_attention": YARN, "sliding_attention": YARN},
        },
        "sliding_attention has rope_type 'yarn'",
    ),
    "clipping": ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is 8.0"),
    "grouped keys": ("olmoe", {"num_key_value_heads": 2}, "n_head_kv is 2"),
    "normed weights": ("olmoe", {"norm_topk_prob": True}, "norm_topk_prob is True"),
    "no multiplier": ("granite", {"logits_scaling": 0.0}, "logits_scaling is 0.0"),
    "few factors": (
        "phi3",
        {"rope_scaling": {**LONG, "long_factor": [1.0]}},
        "long_factor has 1 numbers, but 4 pairs are rotated",
    ),
    "no factors": (
        "phi3",
        {"rope_scaling": {"type": "longrope", "long_factor": [1.0, 1.0, 1.0, 1.0]}},
        "short_factor is missing",
    ),
    "no biases": ("phimoe", {"lm_head_bias": False}, "lm_head_bias is False"),
    "two magnitudes": (
        "phimoe",
        {"rope_scaling": {**MAGNITUDES, "long_mscale": 2.0}},
        "short_mscale 1.243 differs from long_mscale 2.0",
    ),
    "dense layers": ("qwen2moe", {"mlp_only_layers": [0]}, r"mlp_only_layers is \(0,\)"),
    "every other layer": ("qwen2moe", {"decoder_sparse_step": 2}, "decoder_sparse_step is 2"),
    "heads apart": ("qwen3next", {"linear_value_head_dim": 8}, "linear_value_head_dim is 8"),
    "heads that do not divide": (
        "qwen3next",
        {"linear_num_value_heads": 5},
        "linear_num_value_heads 5 is not a multiple of linear_num_key_heads 2",
    ),
    "windows": (
        "qwen3next",
        {"layer_types": ["sliding_attention"] * 3},
        "'sliding_attention'; llama.cpp computes this family with full_attention and linear_att",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_settings_that_the_graph_cannot_compute_are_rejected(case: str, tmp_path: Path) -> None:
    family, changes, problem = BAD[case]
    with pytest.raises(ArchitectureError, match=problem):
        load_model(changed(family, changes, tmp_path))


WITH_LAYER_TYPES = [
    name
    for name, family in families().items()
    if isinstance(family, Declared) and "layer_types" in family.settings.known
]


def test_families_with_kinds_of_layers_are_known() -> None:
    assert {"Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3NextForCausalLM"} <= {*WITH_LAYER_TYPES}
    assert {"Gemma3ForCausalLM", "GptOssForCausalLM", "Olmo3ForCausalLM"} <= {*WITH_LAYER_TYPES}


@pytest.mark.parametrize(
    ("types", "problem"),
    [
        ([], "layer_types has 0 entries for num_hidden_layers 3; take both from one model"),
        (["full_attention"] * 2, "layer_types has 2 entries for num_hidden_layers 3; take both"),
        (["full_attention"] * 4, "layer_types has 4 entries for num_hidden_layers 3; take both"),
        (["full_attention", "chunked", "x"], "layer_types has '(chunked|full_attention)'; llama"),
        ([["full_attention"]] * 3, r"layer_types has \['full_attention'\]; llama.cpp computes"),
        ("full_attention", "layer_types is 'full_attention'; it must be a list"),
    ],
)
@pytest.mark.parametrize("name", WITH_LAYER_TYPES)
def test_layer_types_must_be_a_known_kind_for_each_layer(
    name: str, types: object, problem: str
) -> None:
    config = {"architectures": [name], "num_hidden_layers": 3, "layer_types": types}
    with pytest.raises(ArchitectureError, match=f"config.json: {problem}"):
        describe(config, "config.json")


def test_rope_settings_for_each_kind_of_layer_are_those_of_full_attention(tmp_path: Path) -> None:
    theta = {"rope_theta": 500000.0}
    nested = {
        "full_attention": {**YARN, **theta},
        "sliding_attention": {"rope_type": "default", **theta},
    }
    changes = {"rope_scaling": None, "rope_theta": None, "rope_parameters": nested}
    found = load_model(changed("olmo3", changes, tmp_path)).keys
    expected = load_model(load_reference("olmo3").folder).keys
    rope = [key for key in expected if key.startswith("olmo2.rope")]
    assert {key: found[key] for key in rope} == {key: expected[key] for key in rope}


@pytest.mark.parametrize("name", ["su", "yarn"])
def test_early_names_of_longrope_are_recognised(name: str, tmp_path: Path) -> None:
    changes = {"rope_scaling": {**LONG, "type": name}}
    found = load_model(changed("phi3", changes, tmp_path))
    assert [t.name for t in found.tensors[:2]] == [
        "rope_factors_long.weight",
        "rope_factors_short.weight",
    ]


def test_prediction_layer_of_qwen3_next_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynquant.arch.load.read_vocab", lambda *_, **__: {})
    config = config_of("qwen3next")
    shapes = stored_shapes(load_reference("qwen3next").folder)
    hidden = config["hidden_size"]
    # A copy of the layer with full attention, under another name.
    ahead = {
        name.replace("model.layers.1.", "mtp.layers.0."): shape
        for name, shape in shapes.items()
        if name.startswith("model.layers.1.")
    } | {
        "mtp.fc.weight": (hidden, 2 * hidden),
        "mtp.norm.weight": (hidden,),
        "mtp.pre_fc_norm_embedding.weight": (hidden,),
        "mtp.pre_fc_norm_hidden.weight": (hidden,),
    }
    model = load_model(write_holes(tmp_path, config, {**shapes, **ahead}))
    assert model.prediction is not None
    assert model.prediction.layers == range(3, 4)
    names = {t.parts.role for t in model.tensors if t.parts.layer == 3}
    own = {t.parts.role for t in model.tensors if t.parts.layer == 1}
    added = {f"nextn.{name}" for name in ("eh_proj", "enorm", "hnorm", "shared_head_norm")}
    assert names == own | added


def stored_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a checkpoint with one file."""
    content = (folder / "model.safetensors").read_bytes()
    n = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + n])
    return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}


WINDOWS = (
    ("mistral", {"sliding_window": 64}, True),
    ("mistral", {"sliding_window": None}, False),
    ("mistral", {"sliding_window": 512}, False),
    ("phi3", {"sliding_window": 100}, True),
    ("qwen2", {"sliding_window": 64}, False),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 2}, True),
    ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3}, False),
    (
        "qwen3",
        {
            "sliding_window": 64,
            "use_sliding_window": True,
            "layer_types": ["full_attention", "sliding_attention"],
        },
        True,
    ),
    ("qwen3", {"sliding_window": 64, "use_sliding_window": True}, False),  # its types are all full
    ("qwen2moe", {"sliding_window": 64, "use_sliding_window": True}, True),
    ("qwen3moe", {"sliding_window": 64, "use_sliding_window": True}, True),
    ("qwen3moe", {"sliding_window": 64}, False),
    ("mixtral", {"sliding_window": 64}, True),
    ("starcoder2", {"sliding_window": 64}, True),
    ("starcoder2", {"sliding_window": 512}, False),
    ("phimoe", {"sliding_window": 40}, True),
    ("phimoe", {"sliding_window": None}, False),
    # Their own code has no window.
    ("llama-3.1", {"sliding_window": 64}, False),
    ("granite", {"sliding_window": 64}, False),
    ("granitemoe", {"sliding_window": 64}, False),
    ("deepseek", {"sliding_window": 64}, False),
)


@pytest.mark.parametrize(("family", "changes", "reported"), WINDOWS)
def test_a_window_that_llama_cpp_does_not_have_is_reported(
    family: str, changes: dict[str, Any], reported: bool
) -> None:
    found = describe({**config_of(family), **changes}, "config.json").deviations
    assert sum("has no window" in text for text in found) == reported


def test_a_mistral_that_does_not_state_its_window_has_that_of_its_class() -> None:
    config = {k: v for k, v in config_of("mistral").items() if k != "sliding_window"}
    (warning,) = describe({**config, "max_position_embeddings": 8192}, "config.json").deviations
    assert "sliding_window is 4096" in warning
    assert describe({**config, "max_position_embeddings": 4096}, "config.json").deviations == ()
