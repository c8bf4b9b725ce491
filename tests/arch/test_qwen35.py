"""Qwen3.5: prediction layers, the forms of its checkpoints, and the limits of llama.cpp's graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import F32_TOLERANCE, config_of, load_reference, max_difference
from packers import FORMATS, Stored, bf16_values, stored_in, write_stored
from subsets import slow_except

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.load import describe, load_model
from dynquant.errors import ArchitectureError
from dynquant.recipe.loader import parse_recipe
from dynquant.transforms import read_weights

VISION = "the vision model, which llama.cpp reads from a separate file"


def written(family: str, folder: Path, tensors: Stored, **changes: Any) -> Path:
    """Write a reference with other tensors, and with changes of its config.json."""
    source = load_reference(family).folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return write_stored(folder, config_of(family) | changes, tensors)


def renamed(tensors: Stored, before: str, after: str) -> Stored:
    return {name.replace(before, after, 1): tensor for name, tensor in tensors.items()}


def ahead(tensors: Stored) -> Stored:
    """Return a prediction layer: the model's layer 1 under other names, and a matrix."""
    layer = "layers.1."
    norms = [t for name, t in tensors.items() if name.endswith("input_layernorm.weight")]
    found: Stored = {
        "mtp.layers.0." + name.partition(layer)[2]: tensor
        for name, tensor in tensors.items()
        if layer in name
    }
    rng = np.random.default_rng(0)
    found["mtp.fc.weight"] = ("BF16", rng.integers(0x3C00, 0x3E00, (32, 64)).astype(np.uint16))
    for name in ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"):
        found[f"mtp.{name}.weight"] = norms[0]
    return found


def by_name(model: Model) -> dict[str, ModelTensor]:
    return {t.name: t for t in model.tensors}


def values(tensor: ModelTensor) -> np.ndarray:
    return read_weights(tensor.source, 0, tensor.n_rows).reshape(tensor.shape)


# ---- prediction layers ---------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen35", "qwen35-text", "qwen35moe", "qwen35moe-text"])
def test_the_prediction_layer_is_found(family: str, tmp_path: Path) -> None:
    stored = stored_in(load_reference(family).folder)
    model = load_model(written(family, tmp_path / "m", stored | ahead(stored)))
    assert model.prediction is not None
    name = model.architecture
    assert {k: v.value for k, v in model.prediction.keys.items()} == {
        f"{name}.block_count": 4,
        f"{name}.nextn_predict_layers": 1,
        f"{name}.attention.recurrent_layers": (True, False, True, False),
    }
    roles = {t.parts.role for t in model.tensors if t.parts.layer == 3}
    own = {t.parts.role for t in model.tensors if t.parts.layer == 1}
    assert roles == own | {
        f"nextn.{name}" for name in ("eh_proj", "enorm", "hnorm", "shared_head_norm")
    }


@pytest.mark.parametrize("prefix", ["model.", "model.language_model.", "language_model."])
def test_the_prediction_layer_may_have_a_prefix(prefix: str, tmp_path: Path) -> None:
    stored = stored_in(load_reference("qwen35moe").folder)
    plain = load_model(written("qwen35moe", tmp_path / "a", stored | ahead(stored)))
    moved = {prefix + name: tensor for name, tensor in ahead(stored).items()}
    found = load_model(written("qwen35moe", tmp_path / "b", stored | moved))
    assert by_name(found).keys() == by_name(plain).keys()


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("family", ["qwen35", "qwen35moe"])
def test_a_file_with_its_prediction_layer_gives_the_same_results(
    family: str, tmp_path: Path
) -> None:
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference(family)
    stored = stored_in(reference.folder)
    folder = written(family, tmp_path / "m", stored | ahead(stored))
    rule = "{role: mtp, name: '*eh_proj*', type: Q8_0}"
    text = f"default: F32\nprediction_layers: keep\nrules: [{rule}]"
    out = tmp_path / "m.gguf"
    plan = dynquant.convert(folder, out, recipe=parse_recipe(text, "r.yaml", "r"), threads=1).plan
    types = {t.name: t.type.name for t in plan.tensors}
    assert types["blk.3.nextn.eh_proj.weight"] == "Q8_0"
    assert types["blk.3.attn_q.weight"] == "F32"
    ours = llamacpp.log_probabilities(out, reference.prompts)
    assert max_difference(reference.log_probabilities, ours) < F32_TOLERANCE


ENORM = "mtp.pre_fc_norm_embedding.weight"


def clairvoyant(family: str) -> Stored:
    """Return a model whose prediction layer computes what the model computes one token later.

    Of its layers only layer 1 does anything, and the prediction layer is a copy of that. Its input
    is the next token's embedding, whose norm is one, and nothing of the hidden state.
    """
    stored = stored_in(load_reference(family).folder)
    found = {n: bf16_values(x).copy() for n, (_, x) in (stored | ahead(stored)).items()}
    for name, x in found.items():
        if ("layers.0" in name or "layers.2" in name) and "mtp" not in name:
            x[...] = 0 if "out_proj" in name or "down_proj" in name else x
        elif name.endswith("embed_tokens.weight"):
            x /= np.sqrt((x**2).mean(axis=1, keepdims=True))
        elif name.endswith("language_model.norm.weight"):
            found["mtp.norm.weight"] = x
    factors = 1 + found[ENORM]  # stored minus one
    found["mtp.fc.weight"] = np.concatenate([np.diag(1 / factors), np.zeros((32, 32))], axis=1)
    return {name: ("F32", x.astype(np.float32)) for name, x in found.items()}


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("family", slow_except(["qwen35"], ["qwen35", "qwen35moe"]))
def test_llama_cpp_accepts_drafts_of_the_prediction_layer(family: str, tmp_path: Path) -> None:
    """It has not seen the first token, so that a few drafts differ."""
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    recipe = parse_recipe("default: F32\nprediction_layers: keep", "r.yaml", "r")
    stored = clairvoyant(family)
    share: dict[str, float] = {}
    for reversed_ in (
        "",
        "mtp.layers.0.self_attn.q_proj.weight",
        "mtp.pre_fc_norm_embedding.weight",
    ):
        changed = {n: (kind, x[::-1] if n == reversed_ else x) for n, (kind, x) in stored.items()}
        folder = written(family, tmp_path / (reversed_ or "right"), changed)
        dynquant.convert(folder, folder / "m.gguf", recipe=recipe, threads=1)
        prompts = load_reference(family).prompts[:3]
        drafted, accepted = llamacpp.drafts(folder / "m.gguf", prompts, 40)
        share[reversed_] = accepted / drafted
    assert share.pop("") > 0.95
    assert max(share.values()) < 0.7


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("mtp_num_hidden_layers", 2, "llama.cpp computes one prediction layer"),
        ("mtp_use_dedicated_embeddings", True, "llama.cpp computes this family with false"),
        ("attn_output_gate", False, "llama.cpp computes this family with true"),
        ("output_gate_type", "sigmoid", "llama.cpp computes this family with 'swish'"),
    ],
)
def test_what_the_graph_does_not_compute_is_refused(setting: str, value: object, says: str) -> None:
    with pytest.raises(ArchitectureError, match=f"config.json: {setting} is .*; {says}"):
        describe(config_of("qwen35-text") | {setting: value}, "config.json")


# ---- forms of checkpoints ------------------------------------------------------------------------


def test_the_vision_model_is_left_out_and_reported() -> None:
    model = load_model(load_reference("qwen35").folder)
    assert len(model.ignored) == 21
    for name, reason in model.ignored.items():
        assert name.startswith("model.visual.")
        assert reason.startswith(VISION)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "wrapped", "type_"),
    [("qwen35-text", "Qwen3_5", "qwen3_5"), ("qwen35moe-text", "Qwen3_5Moe", "qwen3_5_moe")],
)
def test_both_classes_describe_the_same_model(
    family: str, wrapped: str, type_: str, tmp_path: Path
) -> None:
    stored = stored_in(load_reference(family).folder)
    moved = renamed(stored, "model.", "model.language_model.")
    text = config_of(family)
    outer = {
        "architectures": [f"{wrapped}ForConditionalGeneration"],
        "model_type": type_,
        "text_config": text,
        "tie_word_embeddings": text["tie_word_embeddings"],
    }
    a = load_model(written(family, tmp_path / "a" / "m", stored))
    folder = written(family, tmp_path / "b" / "m", moved)
    (folder / "config.json").write_text(json.dumps(outer))
    b = load_model(folder)
    assert a.keys == b.keys
    assert [t.name for t in a.tensors] == [t.name for t in b.tensors]
    for ours, theirs in zip(a.tensors, b.tensors, strict=True):
        np.testing.assert_array_equal(values(ours), values(theirs))


def test_minicpm_v_4_6_is_a_qwen_3_5_that_sees(tmp_path: Path) -> None:
    stored = stored_in(load_reference("qwen35").folder)
    tower = renamed(stored, "model.visual.merger.", "model.merger.")
    moved = renamed(tower, "model.visual.", "model.vision_tower.")
    changes = {"architectures": ["MiniCPMV4_6ForConditionalGeneration"]}
    found = load_model(written("qwen35", tmp_path / "m", moved, **changes))
    assert found.architecture == "qwen35"
    assert len(found.ignored) == 21
    plain = load_model(load_reference("qwen35").folder)
    assert [t.name for t in found.tensors] == [t.name for t in plain.tensors]


@pytest.mark.slow
@pytest.mark.parametrize("form", ["fp8 48x40 F32", "fp8 128x128 F32", "nvfp4 of modelopt"])
@pytest.mark.parametrize("family", ["qwen35-text", "qwen35moe", "qwen35moe-text"])
def test_a_packed_checkpoint_gives_the_weights_of_its_floats(
    family: str, form: str, tmp_path: Path
) -> None:
    packed, floats = quantized(stored_in(load_reference(family).folder), form)
    settings = {"quantization_config": FORMATS[form].settings}
    ours = load_model(written(family, tmp_path / "packed", packed, **settings))
    expected = by_name(load_model(written(family, tmp_path / "floats", floats)))
    assert by_name(ours).keys() == expected.keys()
    for name, tensor in by_name(ours).items():
        np.testing.assert_array_equal(values(tensor), values(expected[name]), err_msg=name)


def quantized(stored: Stored, form: str) -> tuple[Stored, Stored]:
    """Return a checkpoint with its matrices and stacks packed, and one with their values."""
    rng, pack = np.random.default_rng(0), FORMATS[form].pack
    packed, floats = dict(stored), dict(stored)
    n_packed = 0
    for name, (_, x) in stored.items():
        inner = "layers." in name and "visual" not in name and "gate.weight" not in name
        if not inner or x.ndim == 1 or "conv1d" in name or x.shape[-1] % 16:
            continue
        *outer, rows, columns = x.shape
        pairs = [pack(name, (rows, columns), rng) for _ in range(outer[0] if outer else 1)]
        value = np.stack([value for _, value in pairs]).reshape(x.shape)
        floats[name] = ("F32", value.astype(np.float32))
        del packed[name]
        for part, (dtype, first) in pairs[0][0].items():
            parts = np.stack([np.asarray(of[part][1]) for of, _ in pairs])
            packed[part] = (dtype, parts if outer else first)
        n_packed += 1
    assert n_packed > 10
    return packed, floats


def test_nvfp4_blocks_are_kept_where_heads_are_reordered(tmp_path: Path) -> None:
    """Heads of 64 weights are whole blocks, so that columns of the output matrix can move."""
    config = config_of("qwen35-text") | {"linear_key_head_dim": 64, "linear_value_head_dim": 64}
    stored, form = stored_in(load_reference("qwen35-text").folder), "nvfp4 of modelopt"
    n_k, n_v, rng = 2 * 64, 6 * 64, np.random.default_rng(1)
    shapes = {
        "in_proj_qkv.weight": (2 * n_k + n_v, 32),
        "in_proj_z.weight": (n_v, 32),
        "conv1d.weight": (2 * n_k + n_v, 1, 3),
        "norm.weight": (64,),
        "out_proj.weight": (32, n_v),
    }
    expected: dict[str, np.ndarray] = {}
    for name in list(stored):
        at, _, rest = name.partition(".linear_attn.")
        if rest in shapes:
            stored[name] = ("BF16", rng.integers(0x3C00, 0x3E00, shapes[rest]).astype(np.uint16))
        if rest == "out_proj.weight":
            parts, value = FORMATS[form].pack(name, shapes[rest], rng)
            del stored[name]
            stored |= parts
            layer = at.rpartition(".")[2]
            # [hidden, key head, value head of it, 64] to [hidden, value head, key head, 64]
            tiled = value.reshape(32, 2, 3, 64).transpose(0, 2, 1, 3).reshape(32, n_v)
            expected[f"blk.{layer}.ssm_out.weight"] = tiled
    settings = {"quantization_config": FORMATS[form].settings}
    folder = written("qwen35-text", tmp_path / "m", stored, **config, **settings)
    found = by_name(load_model(folder))
    assert len(expected) == 2
    for name, value in expected.items():
        tensor = found[name]
        assert tensor.kept is not None
        assert tensor.kept.blocks.stored.name == "NVFP4"
        factor = read_weights(tensor.kept.factor, 0, 1)[0]
        blocks = read_weights(tensor.kept.blocks, 0, 32)
        np.testing.assert_allclose(blocks * factor, value, rtol=1e-6)
        np.testing.assert_array_equal(values(tensor), value)


def test_value_heads_are_in_tiled_order() -> None:
    """llama.cpp repeats key heads as a whole: value head i belongs to key head i modulo 2."""
    folder = load_reference("qwen35-text").folder
    stored = {n: bf16_values(x) for n, (_, x) in stored_in(folder).items()}
    found = by_name(load_model(folder))
    at = "model.layers.0.linear_attn."
    order = [0, 3, 1, 4, 2, 5]
    z = stored[f"{at}in_proj_z.weight"].reshape(6, 12, 32)[order].reshape(72, 32)
    np.testing.assert_array_equal(values(found["blk.0.attn_gate.weight"]), z)
    out = stored[f"{at}out_proj.weight"].reshape(32, 6, 12)[:, order].reshape(32, 72)
    np.testing.assert_array_equal(values(found["blk.0.ssm_out.weight"]), out)
    np.testing.assert_array_equal(values(found["blk.0.ssm_dt.bias"]), stored[f"{at}dt_bias"][order])


# ---- rotary sections -----------------------------------------------------------------------------


def with_sections(sections: object) -> dict[str, Any]:
    config = config_of("qwen35")
    config["text_config"]["rope_parameters"]["mrope_section"] = sections
    return config


def test_default_sections_are_those_of_transformers() -> None:
    config = with_sections(None)
    config["text_config"] |= {"head_dim": 256}
    config["text_config"]["rope_parameters"]["partial_rotary_factor"] = 0.25
    keys = describe(config, "config.json").keys
    assert keys["qwen35.rope.dimension_sections"].value == (11, 11, 10, 0)
    assert keys["qwen35.rope.dimension_count"].value == 64


@pytest.mark.parametrize("kind", ["full", "linear"])
def test_layers_of_one_kind_are_refused(kind: str) -> None:
    config = config_of("qwen3next")
    config["layer_types"] = [f"{kind}_attention"] * config["num_hidden_layers"]
    with pytest.raises(ArchitectureError, match=f"all layers have {kind} attention"):
        describe(config, "config.json")


def test_more_sections_than_rotary_pairs_are_refused() -> None:
    with pytest.raises(ArchitectureError, match="has 7 rotary pairs, but heads have 6"):
        describe(with_sections([3, 2, 2]), "config.json")


@pytest.mark.parametrize(
    ("sections", "pairs"),
    [([4, 1, 1], "4, 5"), ([1, 2, 3], "3"), ([2, 2, 1], None), ([6], "1, 2, 4, 5")],
)
def test_pairs_that_llama_cpp_does_not_rotate_are_reported(
    sections: list[int], pairs: str | None
) -> None:
    found = describe(with_sections(sections), "config.json").deviations
    assert len(found) == (pairs is not None)
    if pairs is not None:
        n = len(pairs.split(", "))
        assert f"llama.cpp does not rotate {n} of the pairs of each head ({pairs}), and" in found[0]


def test_the_default_sections_of_qwen3_vl_are_reported() -> None:
    config = config_of("qwen3vl")
    config["text_config"] |= {"head_dim": 128, "rope_parameters": {"rope_theta": 5e6}}
    (warning,) = describe(config, "config.json").deviations
    assert "mrope_section is [24, 20, 20]: llama.cpp does not rotate 2 of the pairs" in warning
    assert "(61, 62)" in warning


@pytest.mark.slow
@pytest.mark.oracle
def test_only_reported_sections_change_the_results(tmp_path: Path) -> None:
    """In text all sections count positions, so that transformers gives one result for all."""
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    reference = load_reference("qwen35")
    stored = stored_in(reference.folder)

    def results(*sections: int) -> np.ndarray:
        config = with_sections([*sections])
        # All pairs turn fast enough to see.
        config["text_config"]["rope_parameters"]["rope_theta"] = 10.0
        name = "".join(map(str, sections))
        folder, out = (
            written("qwen35", tmp_path / name, stored, **config),
            tmp_path / f"{name}.gguf",
        )
        dynquant.convert(folder, out, recipe="f32", threads=1)
        found: np.ndarray = llamacpp.log_probabilities(out, reference.prompts)
        return found

    usual = results(2, 2, 2)
    assert max_difference(usual, results(2, 2, 1)) < F32_TOLERANCE
    assert max_difference(usual, results(4, 1, 1)) > 100 * F32_TOLERANCE


# ---- recipes -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("bits", ["3bit", "4bit", "5bit", "6bit", "moe-3bit"])
def test_dynamic_recipes_keep_what_controls_the_state(bits: str) -> None:
    found = dynquant.make_plan(load_reference("qwen35moe").folder, recipe=f"dynamic-{bits}")
    types = {t.name: t.type.name for t in found.tensors}
    assert types["blk.0.ssm_alpha.weight"] == types["blk.0.ssm_beta.weight"] == "Q8_0"
    assert types["blk.0.ssm_conv1d.weight"] == types["blk.0.ssm_a"] == "F32"
