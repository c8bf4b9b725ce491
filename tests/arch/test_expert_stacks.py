"""Experts that are stored as stacks give the same file as experts that are stored separately."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from agreement import load_reference
from packers import E4M3, Stored, e4m3_codes, scales, stored_in, write_stored
from subsets import slow_except

import dynquant
from dynquant.arch.base import Model
from dynquant.arch.load import load_model
from dynquant.errors import DynquantError
from dynquant.transforms import read_weights

WAY_BACK = (
    "save the model with a tensor for each expert (transformers' `save_pretrained` does so, unless"
    " save_original_format is false)"
)
Form = Callable[[str, Mapping[str, np.ndarray]], dict[str, np.ndarray]]
"""Names and stacks of a layer's experts, of the place before `experts` and the separate stacks."""

EXPERT = re.compile(r"(.*\.)experts\.(\d+)\.(\w+)\.weight")
ROLES = {"w1": "gate", "w3": "up", "w2": "down"}


def transformers5(place: str, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As saved by transformers 5 with `save_original_format=False`."""
    at = place.replace("block_sparse_moe", "mlp") + "experts."
    both = np.concatenate([of["gate"], of["up"]], axis=1)
    return {f"{at}gate_up_proj": both, f"{at}down_proj": of["down"]}


def mlx(place: str, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As saved by mlx-lm without quantization."""
    return {f"{place}switch_mlp.{role}_proj.weight": x for role, x in of.items()}


def separate(place: str, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Each projection of all experts as one tensor."""
    return {f"{place}experts.{role}_proj.weight": x for role, x in of.items()}


def outputs_last(place: str, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As Qwen3-VL with experts is published."""
    return {name: x.transpose(0, 2, 1) for name, x in transformers5(place, of).items()}


def with_weight(place: str, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{name}.weight": x for name, x in transformers5(place, of).items()}


def restacked(stored: Stored, form: Form, layers: Mapping[int, Form] | None = None) -> Stored:
    """Return a checkpoint with its experts in a form; layers: those with another form."""
    dtype = next(iter(stored.values()))[0]
    parts: dict[str, dict[str, list[np.ndarray]]] = {}
    kept: Stored = {}
    for name, (kind, values) in stored.items():
        if found := EXPERT.fullmatch(name):
            role = ROLES.get(found[3]) or found[3].removesuffix("_proj")
            parts.setdefault(found[1], {}).setdefault(role, []).append(values)
            assert kind == dtype
        elif ".input_linear.weight" in name and "shared" not in name:
            gate, up = np.split(values, 2, axis=1)
            place = name.removesuffix("input_linear.weight")
            parts.setdefault(place, {}).update(gate=list(gate), up=list(up))
        elif ".output_linear.weight" in name and "shared" not in name:
            parts[name.removesuffix("output_linear.weight")]["down"] = list(values)
        else:
            kept[name] = (kind, values)
    for place, roles in parts.items():
        layer = int(re.findall(r"layers\.(\d+)\.", place)[0])
        used = (layers or {}).get(layer, form)
        of = {role: np.stack(roles[role]) for role in ("gate", "up", "down")}
        kept |= {name: (dtype, x) for name, x in used(place, of).items()}
    return kept


def rewritten(family: str, folder: Path, tensors: Stored) -> Path:
    """Write a reference checkpoint with other tensors."""
    source = load_reference(family).folder
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    return write_stored(folder, json.loads((source / "config.json").read_text("utf-8")), tensors)


def converted(folder: Path, out: Path, recipe: str = "q8_0") -> bytes:
    dynquant.convert(folder, out, recipe=recipe, threads=1)
    return out.read_bytes()


def file_of(family: str, folder: Path, tensors: Stored, recipe: str = "q8_0") -> bytes:
    """Return the GGUF made of a reference checkpoint with other tensors."""
    return converted(rewritten(family, folder / family, tensors), folder / "out.gguf", recipe)


def refusal(family: str, folder: Path, tensors: Stored) -> list[str]:
    with pytest.raises(DynquantError) as e:
        load_model(rewritten(family, folder / family, tensors))
    return [m.removeprefix(f"{folder / family}: ") for m in str(e.value).split("\n")]


def moved(stored: Stored, names: Mapping[str, str]) -> Stored:
    """Return the tensors under other names; of the names, only parts are given."""
    changed: Stored = {}
    for name, tensor in stored.items():
        for old, new in names.items():
            name = name.replace(old, new)
        changed[name] = tensor
    return changed


ROUTERS = {
    "kimi-linear": {"block_sparse_moe.": "mlp."},
    "minimax-m2": {
        "block_sparse_moe.gate": "mlp.gate",
        "block_sparse_moe.e_score": "mlp.e_score",
    },
    "mixtral": {"block_sparse_moe.gate": "mlp.gate"},
    "phimoe": {"block_sparse_moe.gate": "mlp.router"},
    "granitemoe": {"router.layer": "router"},
    "granitemoeshared": {"router.layer": "router"},
}
"""Names of the router and shared experts in transformers 5, where they differ."""

FAMILIES = (
    "deepseek-v2",
    "deepseek-v3",
    "dots1",
    "ernie4.5moe",
    "glm4moe",
    "glm5-next",
    "granitemoe",
    "granitemoeshared",
    "hunyuan-moe",
    "kimi-k2",
    "kimi-linear",
    "minimax-m2",
    "mixtral",
    "olmoe",
    "phimoe",
    "qwen2moe",
    "qwen3moe",
    "qwen3next",
    "qwen3omnimoe",
    "qwen35moe-text",
    "solar-open",
)


def in_granite(place: str, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    both = np.concatenate([of["gate"], of["up"]], axis=1)
    return {f"{place}experts.gate_up_proj": both, f"{place}experts.down_proj": of["down"]}


@pytest.mark.slow
@pytest.mark.parametrize("family", slow_except(["qwen3moe", "mixtral"], FAMILIES))
def test_stacks_of_transformers_5_give_the_same_bytes(family: str, tmp_path: Path) -> None:
    stored = stored_in(load_reference(family).folder)
    form = in_granite if family.startswith("granite") else transformers5
    stacks = moved(restacked(stored, form), ROUTERS.get(family, {}))
    assert any("experts.gate_up_proj" in name for name in stacks)
    assert not any(EXPERT.fullmatch(n) or "moe.input_linear" in n for n in stacks)
    ours = file_of(family, tmp_path / "stacks", stacks)
    assert ours == file_of(family, tmp_path / "separate", stored)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "form"),
    slow_except(
        [("qwen3moe", mlx), ("mixtral", separate)],
        [(f, form) for f in ("qwen3moe", "mixtral", "glm4moe") for form in (mlx, separate)]
        + [("granitemoe", mlx), ("qwen3moe", with_weight)],
    ),
)
def test_other_stacks_give_the_same_bytes(family: str, form: Form, tmp_path: Path) -> None:
    stored = stored_in(load_reference(family).folder)
    ours = file_of(family, tmp_path / "stacks", restacked(stored, form))
    assert ours == file_of(family, tmp_path / "separate", stored)


@pytest.mark.slow
def test_stacks_with_outputs_last_give_the_same_bytes(tmp_path: Path) -> None:
    stored = stored_in(load_reference("qwen3omnimoe").folder)
    stacks = restacked(stored, outputs_last)
    assert stacks["thinker.model.layers.0.mlp.experts.gate_up_proj"][1].shape == (5, 32, 40)
    ours = file_of("qwen3omnimoe", tmp_path / "stacks", stacks)
    assert ours == file_of("qwen3omnimoe", tmp_path / "separate", stored)


@pytest.mark.slow
@pytest.mark.parametrize("family", slow_except(["llama4"], ["llama4", "qwen3vlmoe"]))
def test_separate_experts_give_the_same_bytes_as_stacks_with_outputs_last(
    family: str, tmp_path: Path
) -> None:
    """As quantizers store them."""
    stored = stored_in(load_reference(family).folder)
    separate: Stored = {}
    for name, (kind, x) in stored.items():
        place, found, part = name.partition("experts.")
        if not found:
            separate[name] = (kind, x)
            continue
        roles = ("gate_proj", "up_proj") if part == "gate_up_proj" else (part,)
        for role, matrices in zip(roles, np.split(x, len(roles), axis=2), strict=True):
            for expert, matrix in enumerate(matrices):
                separate[f"{place}experts.{expert}.{role}.weight"] = (kind, matrix.T)
    assert len(separate) > len(stored) + 10
    ours = file_of(family, tmp_path / "separate", separate)
    assert ours == file_of(family, tmp_path / "stacks", stored)


@pytest.mark.parametrize("form", [outputs_last, transformers5])
def test_the_other_stack_shows_where_outputs_are(form: Form, tmp_path: Path) -> None:
    """With experts of half the hidden size, the stack of gates and ups is square."""
    source = load_reference("qwen3omnimoe").folder
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["thinker_config"]["text_config"]["moe_intermediate_size"] = 16
    rng = np.random.default_rng(0)
    stored: Stored = {}
    for name, (kind, x) in stored_in(source).items():
        shape = tuple(16 if n == 20 else n for n in x.shape) if EXPERT.fullmatch(name) else x.shape
        stored[name] = (kind, rng.integers(0x3C00, 0x3E00, shape).astype(np.uint16))
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors*"))
    model = load_model(write_stored(tmp_path / "m", config, restacked(stored, form)))
    for role in ("gate", "up", "down"):
        name = f"thinker.model.layers.2.mlp.experts.4.{role}_proj.weight"
        found = weights_of(model, f"blk.2.ffn_{role}_exps.weight")[4]
        expected = stored[name][1].astype(np.uint32) << 16
        np.testing.assert_array_equal(found, expected.view(np.float32))


@pytest.mark.slow
def test_each_layer_may_have_another_form(tmp_path: Path) -> None:
    stored = stored_in(load_reference("qwen3moe").folder)
    mixed = {n: t for n, t in stored.items() if "layers.0." in n or not EXPERT.fullmatch(n)}
    mixed |= {n: t for n, t in restacked(stored, transformers5).items() if ".1.mlp.experts." in n}
    assert {n.partition(".layers.")[2][:1] for n in mixed if ".experts." in n} == {"0", "1"}
    ours = file_of("qwen3moe", tmp_path / "mixed", mixed)
    assert ours == file_of("qwen3moe", tmp_path / "separate", stored)


@pytest.mark.slow
def test_a_layer_may_have_a_stack_and_separate_experts(tmp_path: Path) -> None:
    stored = stored_in(load_reference("qwen3moe").folder)
    stacks = restacked(stored, transformers5)
    mixed = {n: t for n, t in stored.items() if "down_proj" in n or not EXPERT.fullmatch(n)}
    mixed |= {n: t for n, t in stacks.items() if n.endswith("experts.gate_up_proj")}
    ours = file_of("qwen3moe", tmp_path / "mixed", mixed)
    assert ours == file_of("qwen3moe", tmp_path / "separate", stored)


@pytest.mark.slow
def test_the_prefix_of_a_multimodal_model_applies_to_stacks(tmp_path: Path) -> None:
    stored = stored_in(load_reference("qwen3moe").folder)
    stacks = restacked(stored, transformers5)
    spelled = moved(stacks, {"model.": "model.language_model."})
    ours = file_of("qwen3moe", tmp_path / "a", spelled)
    assert ours == file_of("qwen3moe", tmp_path / "b", stored)


def test_halves_of_a_stack_name_it(tmp_path: Path) -> None:
    stacks = restacked(stored_in(load_reference("qwen3moe").folder), transformers5)
    model = load_model(rewritten("qwen3moe", tmp_path / "m", stacks))
    by_name = {t.name: t.stored_names for t in model.tensors}
    both = ("model.layers.1.mlp.experts.gate_up_proj",)
    assert by_name["blk.1.ffn_gate_exps.weight"] == by_name["blk.1.ffn_up_exps.weight"] == both
    assert by_name["blk.1.ffn_down_exps.weight"] == ("model.layers.1.mlp.experts.down_proj",)


# ---- refused -------------------------------------------------------------------------------------


@pytest.fixture
def stacks() -> Stored:
    return restacked(stored_in(load_reference("qwen3moe").folder), transformers5)


BOTH, DOWN = (
    "model.layers.{0-1}.mlp.experts.gate_up_proj",
    "model.layers.{0-1}.mlp.experts.down_proj",
)


def test_transposed_stacks_are_one_problem(stacks: Stored, tmp_path: Path) -> None:
    exchanged = {
        n: (kind, x.transpose(0, 2, 1) if ".experts." in n else x)
        for n, (kind, x) in stacks.items()
    }
    (message,) = refusal("qwen3moe", tmp_path, exchanged)
    assert message == (
        f"{BOTH} [5, 32, 48], {DOWN} [5, 24, 32]: the last two dimensions are exchanged; stacks of"
        f" experts with outputs last are not supported, {WAY_BACK}"
    )


@pytest.mark.parametrize("part", ["gate_up_proj", "down_proj"])
def test_a_missing_half_is_named_as_a_stack(part: str, stacks: Stored, tmp_path: Path) -> None:
    some = {n: t for n, t in stacks.items() if not n.endswith(part)}
    messages = refusal("qwen3moe", tmp_path, some)
    name = f"model.layers.{{0-1}}.mlp.experts.{part}"
    assert messages == [f"{name} is missing; qwen3moe needs it, download the checkpoint again"]


def test_experts_in_two_forms_are_one_problem(stacks: Stored, tmp_path: Path) -> None:
    stored = stored_in(load_reference("qwen3moe").folder)
    (message,) = refusal("qwen3moe", tmp_path, stored | stacks)
    assert message.startswith("the same tensors are stored in two forms: ")
    assert f"{BOTH}, " in message
    assert message.endswith("mlp.experts.{0-4}.down_proj.weight; remove one of them")


def test_a_stack_of_other_sizes_is_reported_with_them(stacks: Stored, tmp_path: Path) -> None:
    short = {n: (k, x[:4] if ".experts." in n else x) for n, (k, x) in stacks.items()}
    assert refusal("qwen3moe", tmp_path, short) == [
        f"{name} has shape {list(found)}, but config.json implies {list(expected)}; take both from"
        " one model"
        for name, found, expected in (
            (BOTH, (4, 48, 32), (5, 48, 32)),
            (DOWN, (4, 32, 24), (5, 32, 24)),
        )
    ]


def test_a_layout_that_is_not_known_is_one_problem(stacks: Stored, tmp_path: Path) -> None:
    other = moved(stacks, {"gate_up_proj": "w13_weight", "experts.down_proj": "experts.w2_weight"})
    (message,) = refusal("qwen3moe", tmp_path, other)
    assert message == (
        "model.layers.{0-1}.mlp.experts.w13_weight [5, 48, 32],"
        " model.layers.{0-1}.mlp.experts.w2_weight [5, 32, 24]: experts in a layout that is not"
        f" known; {WAY_BACK}"
    )


def test_experts_in_rows_of_one_matrix_are_one_problem(tmp_path: Path) -> None:
    """As megablocks stores them: w1, v1 and w2 of all experts, one below the other."""

    def megablocks(place: str, of: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        n, ffn, hidden = of["gate"].shape
        down = of["down"].transpose(0, 2, 1)
        parts = {"w1": of["gate"], "v1": of["up"], "w2": down}
        return {f"{place}experts.mlp.{k}": x.reshape(n * ffn, hidden) for k, x in parts.items()}

    stored = restacked(stored_in(load_reference("mixtral").folder), megablocks)
    (message,) = refusal("mixtral", tmp_path, stored)
    assert message.startswith("model.layers.{0-1}.block_sparse_moe.experts.mlp.w1 [200, 32], ")
    assert message.endswith(f": experts in a layout that is not known; {WAY_BACK}")


def square(folder: Path, form: Form) -> tuple[Path, Stored]:
    """Write a mixture with experts of square matrices, in a form; return its separate experts."""
    source = load_reference("qwen3moe").folder
    config = json.loads((source / "config.json").read_text("utf-8")) | {"moe_intermediate_size": 32}
    rng = np.random.default_rng(0)
    stored: Stored = {}
    for name, (kind, x) in stored_in(source).items():
        shape = (32, 32) if EXPERT.fullmatch(name) else x.shape
        stored[name] = (kind, rng.integers(0x3C00, 0x3E00, shape).astype(np.uint16))
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
    return write_stored(folder, config, restacked(stored, form)), stored


def test_square_matrices_are_refused_where_only_the_shape_shows_their_rows(tmp_path: Path) -> None:
    folder, _ = square(tmp_path / "m", separate)
    with pytest.raises(DynquantError) as e:
        load_model(folder)
    (message,) = str(e.value).split("\n")
    assert "mlp.experts.gate_proj.weight [5, 32, 32], " in message
    assert message.endswith(
        "nothing shows whether the rows of these square matrices are outputs or inputs; " + WAY_BACK
    )


@pytest.mark.parametrize("form", [transformers5, mlx])
def test_square_matrices_are_read_where_names_or_the_other_stack_show_their_rows(
    form: Form, tmp_path: Path
) -> None:
    folder, stored = square(tmp_path / "m", form)
    by_name = {t.name: t for t in load_model(folder).tensors}
    found = by_name["blk.0.ffn_down_exps.weight"]
    expected = stored["model.layers.0.mlp.experts.0.down_proj.weight"][1].astype(np.uint32) << 16
    np.testing.assert_array_equal(read_weights(found.source, 0, 32), expected.view(np.float32))


# ---- quantized -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "form", "layer"),
    [
        ("qwen3moe", transformers5, "model.layers.1."),
        ("qwen3omnimoe", outputs_last, "thinker.model.layers.1."),
    ],
)
def test_fp8_stacks_with_their_scales_are_read(
    family: str, form: Form, layer: str, tmp_path: Path
) -> None:
    """Blocks of 16 x 16: some of the fused stack contain both gates and ups."""
    source = load_reference(family).folder
    config = json.loads((source / "config.json").read_text("utf-8"))
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [16, 16]}
    rng = np.random.default_rng(0)
    stored: Stored = {}
    for name, (kind, x) in restacked(stored_in(source), form).items():
        if ".experts." not in name:
            stored[name] = (kind, x)
            continue
        grid = (x.shape[0], -(-x.shape[1] // 16), -(-x.shape[2] // 16))
        stored[name] = ("F8_E4M3", e4m3_codes(rng, x.shape))
        stored[f"{name}_scale_inv"] = ("F32", scales(rng, *grid))
    shutil.copytree(source, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors*"))
    model = load_model(write_stored(tmp_path / "m", config, stored))
    both = f"{layer}mlp.experts.gate_up_proj"
    whole = read_fp8(stored[both][1], stored[f"{both}_scale_inv"][1])
    if form is outputs_last:
        whole = whole.transpose(0, 2, 1)
    for role, part in zip(("gate", "up"), np.split(whole, 2, axis=1), strict=True):
        np.testing.assert_array_equal(weights_of(model, f"blk.1.ffn_{role}_exps.weight"), part)


def read_fp8(codes: np.ndarray, scale: np.ndarray) -> np.ndarray:
    spread = scale.repeat(16, 1).repeat(16, 2)[:, : codes.shape[1], : codes.shape[2]]
    return E4M3[codes] * spread


def weights_of(model: Model, name: str) -> np.ndarray:
    tensor = next(t for t in model.tensors if t.name == name)
    return read_weights(tensor.source, 0, tensor.n_rows).reshape(tensor.shape)
