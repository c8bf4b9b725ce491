"""Nemotron-H: its prediction layer, the forms of its checkpoints, and the limits of the graph."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32_TOLERANCE, config_of, load_reference, max_difference
from packers import Stored, bf16_values, stored_in, write_stored

import dynquant
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.recipe.loader import parse_recipe

FAMILY = "nemotron-h-moe"
KEEP = "default: F32\nprediction_layers: keep"


def written(family: str, folder: Path, tensors: Stored, **changes: Any) -> Path:
    """Write a reference with other tensors, and with changes of its config.json."""
    source = load_reference(family).folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    config = {k: v for k, v in (config_of(family) | changes).items() if v is not None}
    return write_stored(folder, config, tensors)


def ahead(tensors: Stored) -> Stored:
    """Return a prediction layer: the model's layers 2 and 3 under other names, and a matrix."""
    names = {"backbone.layers.2.": "mtp.layers.0.", "backbone.layers.3.": "mtp.layers.1."}
    found: Stored = {
        after + name.removeprefix(before): tensor
        for name, tensor in tensors.items()
        for before, after in names.items()
        if name.startswith(before)
    }
    rng = np.random.default_rng(0)
    matrix = rng.integers(0x3C00, 0x3E00, (32, 64)).astype(np.uint16)
    found["mtp.layers.0.eh_proj.weight"] = ("BF16", matrix)
    for name in ("0.enorm", "0.hnorm", "1.final_layernorm"):
        found[f"mtp.layers.{name}.weight"] = tensors["backbone.norm_f.weight"]
    return found


def test_two_stored_layers_are_one_prediction_layer(tmp_path: Path) -> None:
    stored = stored_in(load_reference(FAMILY).folder)
    model = load_model(written(FAMILY, tmp_path / "m", stored | ahead(stored)))
    assert model.prediction is not None
    name = model.architecture
    assert {k: v.value for k, v in model.prediction.keys.items()} == {
        f"{name}.block_count": 5,
        f"{name}.nextn_predict_layers": 1,
        f"{name}.attention.head_count_kv": (0, 0, 2, 0, 2),
        f"{name}.feed_forward_length": (0, 20, 0, 20, 20),
    }
    roles = {t.parts.role for t in model.tensors if t.parts.layer == 4}
    own = {t.parts.role for t in model.tensors if t.parts.layer in (2, 3)}
    more = {f"nextn.{n}" for n in ("eh_proj", "enorm", "hnorm", "shared_head_norm")}
    assert roles == own | more | {"post_attention_norm"}


@pytest.mark.slow
@pytest.mark.oracle
def test_a_file_with_its_prediction_layer_gives_the_same_results(tmp_path: Path) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference(FAMILY)
    stored = stored_in(reference.folder)
    folder = written(FAMILY, tmp_path / "m", stored | ahead(stored))
    out = tmp_path / "m.gguf"
    dynquant.convert(folder, out, recipe=parse_recipe(KEEP, "r.yaml", "r"), threads=1)
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


def clairvoyant() -> Stored:
    """Return a model whose prediction layer computes what the model computes one token later.

    Of its layers only 2 and 3 do anything, and the prediction layer is a copy of these. Its input
    is the next token's embedding, whose norm is one, and nothing of the hidden state. Whatever is
    added to the hidden state has a mean of zero, since llama.cpp's last norm subtracts the mean in
    the prediction layer, and not in the model.
    """
    stored = stored_in(load_reference(FAMILY).folder)
    found = {
        n: (x if kind == "F32" else bf16_values(x)).copy()
        for n, (kind, x) in (stored | ahead(stored)).items()
    }
    for name, x in found.items():
        if name.startswith(("backbone.layers.0.", "backbone.layers.1.")):
            x[...] = 0 if any(n in name for n in ("out_proj", "down_proj", "fc2_latent")) else x
        elif name == "backbone.embeddings.weight":
            x -= x.mean(axis=1, keepdims=True)
            x /= np.sqrt((x**2).mean(axis=1, keepdims=True))
        elif name.endswith(("o_proj.weight", "fc2_latent_proj.weight")) or (
            "shared_experts.down_proj" in name
        ):
            x -= x.mean(axis=0, keepdims=True)
    factors = found["mtp.layers.0.enorm.weight"]
    matrix = np.concatenate([np.diag(1 / factors), np.zeros((32, 32))], axis=1)
    found["mtp.layers.0.eh_proj.weight"] = matrix
    return {name: ("F32", x.astype(np.float32)) for name, x in found.items()}


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_accepts_drafts_of_the_prediction_layer(tmp_path: Path) -> None:
    """It has not seen the first token, so that a few drafts differ."""
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    recipe = parse_recipe(KEEP, "r.yaml", "r")
    stored = clairvoyant()
    share: dict[str, float] = {}
    for reversed_ in (
        "",
        "mtp.layers.0.mixer.q_proj.weight",
        "mtp.layers.0.enorm.weight",
        "mtp.layers.1.norm.weight",
        "mtp.layers.1.mixer.shared_experts.up_proj.weight",
    ):
        changed = {n: (kind, x[::-1] if n == reversed_ else x) for n, (kind, x) in stored.items()}
        folder = written(FAMILY, tmp_path / (reversed_ or "right"), changed)
        dynquant.convert(folder, folder / "m.gguf", recipe=recipe, threads=1)
        prompts = load_reference(FAMILY).prompts[:3]
        drafted, accepted = llamacpp.drafts(folder / "m.gguf", prompts, 40)
        share[reversed_] = accepted / drafted
    assert share.pop("") > 0.9
    assert max(share.values()) < 0.8


# ---- forms of checkpoints ------------------------------------------------------------------------


def stacked(tensors: Stored, prefix: str) -> Stored:
    """Return the tensors as transformers 5 stores them without the original names."""
    found: Stored = {}
    for name, (kind, x) in tensors.items():
        before, expert, rest = name.partition(".experts.")
        place = before.replace("backbone.", prefix)
        if not expert:
            found[place] = (kind, x)
        elif rest.startswith("0."):
            matrix = rest.removeprefix("0.").removesuffix(".weight")
            parts = [tensors[f"{before}.experts.{i}.{matrix}.weight"][1] for i in range(6)]
            found[f"{place}.experts.{matrix}"] = (kind, np.stack(parts))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["model.", "backbone."])
def test_stacks_of_experts_and_other_names_give_the_same_file(prefix: str, tmp_path: Path) -> None:
    source = load_reference(FAMILY).folder
    other = written(FAMILY, tmp_path / "m", stacked(stored_in(source), prefix))
    for folder, name in ((source, "a.gguf"), (other, "b.gguf")):
        dynquant.convert(folder, tmp_path / name, recipe="f32", threads=1)
    hashes = [dynquant.inspect(tmp_path / name).tensors for name in ("a.gguf", "b.gguf")]
    assert hashes[0] == hashes[1]


def test_kinds_of_layers_may_be_letters_or_names() -> None:
    letters = describe(config_of(FAMILY), "config.json")
    for names in (["mamba", "moe", "attention", "moe"], ["linear_attention", "moe"] * 2):
        config = config_of(FAMILY) | {"layers_block_type": names}
        del config["hybrid_override_pattern"]
        if "attention" in names:
            assert describe(config, "config.json").rows == letters.rows
        else:
            with pytest.raises(ArchitectureError, match="no layer has attention"):
                describe(config, "config.json")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"hybrid_override_pattern": "ME*"}, "has 3 entries for num_hidden_layers 4"),
        ({"hybrid_override_pattern": "ME*-"}, "some layers have experts and others a plain MLP"),
        ({"hybrid_override_pattern": "EE*E"}, "no layer has state space"),
        ({"hybrid_override_pattern": "MEXE"}, "hybrid_override_pattern has 'X'; .* M, \\*, E, -"),
        ({"hybrid_override_pattern": None}, "layers_block_type is missing"),
        ({"hybrid_override_pattern": 3}, "must be a list"),
        ({"layers_block_type": ["moe"] * 4}, "disagree; remove one of them"),
        ({"layers_block_type": ["moe"] * 600}, "has 600 entries; llama.cpp computes 1 to 512"),
        ({"num_nextn_predict_layers": 2}, "llama.cpp computes one prediction layer"),
        ({"mtp_hybrid_override_pattern": "*E*E"}, "a prediction layer of attention and experts"),
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"use_conv_bias": False}, "llama.cpp computes this family with true"),
        ({"use_bias": True}, "llama.cpp computes this family with false"),
        ({"mlp_hidden_act": "silu"}, "llama.cpp computes this family with 'relu2'"),
        ({"conv_kernel": 1}, "conv_kernel is 1; llama.cpp needs at least 2"),
        ({"n_groups": 5}, "mamba_num_heads 12 is not a multiple of n_groups 5"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config_of(FAMILY) | changes, "config.json")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"time_step_min": 0.01}, "time_step_min"),
        ({"time_step_limit": [0.01, float("inf")]}, "time_step_limit"),
        ({"time_step_limit": [0.0, 4.0]}, "time_step_limit"),
        ({"time_step_limit": ["none", []]}, "time_step_limit"),
        ({"time_step_limit": []}, ""),
        ({"time_step_limit": [0.0, {"__float__": "Infinity"}]}, ""),
        ({"time_step_limit": [0.001, float("inf")]}, ""),
    ],
)
def test_limits_of_time_steps_are_a_warning(changes: dict[str, Any], name: str) -> None:
    found = describe(config_of(FAMILY) | changes, "config.json").deviations
    assert [text.split()[1] for text in found] == ([name] if name else [])


# ---- Puzzle --------------------------------------------------------------------------------------


def blocks(*changes: dict[str, Any]) -> dict[str, Any]:
    """Return the config.json of a Puzzle with changes of its layers."""
    config = config_of("nemotron-h-puzzle")
    for block, change in zip(config["block_configs"], changes, strict=False):
        block.update(change)
    return config


def test_layers_of_a_puzzle_have_their_own_experts() -> None:
    keys = describe(config_of("nemotron-h-puzzle"), "config.json").keys
    assert keys["nemotron_h_moe.expert_feed_forward_length"].value == (0, 20, 0, 36)
    assert keys["nemotron_h_moe.expert_used_count"].value == (0, 3, 0, 2)


def test_a_setting_that_all_blocks_share_is_that_of_the_model() -> None:
    """As in NVIDIA's files, which may state it nowhere else."""
    config = blocks({}, {"n_routed_experts": 6, "moe_latent_size": 28}, {}, {"n_routed_experts": 6})
    expected = describe(config, "config.json").keys
    del config["n_routed_experts"]
    del config["moe_latent_size"]
    assert describe(config, "config.json").keys == expected


def test_the_prediction_layer_of_a_puzzle_is_left_out(tmp_path: Path) -> None:
    stored = stored_in(load_reference("nemotron-h-puzzle").folder)
    stored["mtp.layers.0.norm.weight"] = stored["model.norm_f.weight"]
    model = load_model(written("nemotron-h-puzzle", tmp_path / "m", stored))
    assert model.prediction is None
    assert "a prediction layer" in model.ignored["mtp.layers.0.norm.weight"]


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (blocks({}, {"moe_latent_size": 8}, {}, {"moe_latent_size": 12}), "of moe_latent_size; "),
        (blocks({}, {"moe_intermediate_size": None}), r"\[1\]: moe_intermediate_size is missing"),
        (blocks({}, {"num_experts_per_tok": 7}), "is 7, but there are only 6 experts"),
        (blocks({"block_type": "cnn"}), "layers_block_type has 'cnn'"),
        (
            blocks({}, {"block_type": "mamba"}, {}, {"block_type": "mamba"}),
            "no layer of type 'moe'",
        ),
        (config_of("nemotron-h-puzzle") | {"block_configs": 3}, "block_configs is 3; it must be"),
        (config_of("nemotron-h-puzzle") | {"block_configs": [3]}, "must be a list of objects"),
    ],
)
def test_a_puzzle_that_the_graph_does_not_compute_is_refused(
    config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ArchitectureError, match=says):
        describe(config, "config.json")
