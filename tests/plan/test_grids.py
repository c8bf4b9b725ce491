"""Checkpoints whose floats lie on the grid of a type: found, reported, kept, and checked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gridded import GRIDS, ROUND, bf16_rounded, integers
from handmade import model, recipe, shown
from imatrices import write_legacy
from oracles import gguf_decode
from typer.testing import CliRunner

from dynquant.arch.base import ModelTensor
from dynquant.arch.gguf_files.model import stored_gguf
from dynquant.arrays import F32
from dynquant.cli import app
from dynquant.conversion.result import Result
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError
from dynquant.importance.imatrix import read_imatrix
from dynquant.measure.grids import ROWS, OnGrid, find_grids, grid_of
from dynquant.plan.bind import bind_plan
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.saved import parse_plan, plan_text, saved_plan
from dynquant.quants import ALL, encode
from dynquant.report.documents import plan_json
from dynquant.report.html import plan_html
from dynquant.tensors import ShardFile, Stored

SHAPE = (23, 512)
NAME = "blk.0.ffn_down.weight"
KEEP = "rules: [{role: ffn_down, keep: true}]"
Q4 = "INT4 -7..7, groups of 32, BF16 scales, BF16"


def tensor(path: Path, x: F32, stored: str = "BF16", name: str = NAME) -> ModelTensor:
    """Write a tensor into a separate file."""
    path.write_bytes(encode(x.reshape(-1, x.shape[-1]), stored).tobytes())
    return ModelTensor(name, Stored(ShardFile(path), 0, x.shape, ALL[stored]))


def on_grid(path: Path, name: str = Q4) -> ModelTensor:
    return tensor(path, GRIDS[name].weights(2, SHAPE), GRIDS[name].stored)


def found(*tensors: ModelTensor) -> dict[str, OnGrid]:
    return find_grids(tensors, all_sources=True)


def plan_of(*tensors: ModelTensor, default: str = "F32", more: str = KEEP) -> Plan:
    return make_plan(model(*tensors), recipe(default, more), grids=found(*tensors))


def converted(plan: Plan, out: Path) -> Result:
    return convert_plan(plan, out, threads=2, chunk_bytes=2048)


# ---- found ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GRIDS)
def test_the_type_with_the_fewest_bits_is_found(name: str, tmp_path: Path) -> None:
    assert grid_of(on_grid(tmp_path / "t", name).source) == OnGrid(ALL[GRIDS[name].type], True)


@pytest.mark.parametrize("stored", ["F32", "F16", "BF16"])
def test_other_weights_lie_on_no_grid(stored: str, tmp_path: Path) -> None:
    x = (0.02 * np.random.default_rng(4).standard_t(4, SHAPE)).astype(np.float32)
    assert grid_of(tensor(tmp_path / "t", x, stored).source) is None


@pytest.mark.parametrize("x", [np.zeros(SHAPE), np.ones(SHAPE), np.abs(np.eye(23, 512))])
def test_zeros_and_weights_of_one_sign_show_no_grid(x: np.ndarray, tmp_path: Path) -> None:
    assert grid_of(tensor(tmp_path / "t", x.astype(np.float32)).source) is None


def test_scales_that_f16_does_not_hold_are_stated(tmp_path: Path) -> None:
    x = integers(np.random.default_rng(8), SHAPE, -8, 7, 32, "F32")
    assert grid_of(tensor(tmp_path / "t", x, "F32").source) == OnGrid(ALL["Q4_0"], False)


def test_a_tensor_of_other_weights_costs_one_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    whole = ShardFile.read

    def counted(file: ShardFile, offset: int, into: Any) -> None:
        read.append(into.size)
        whole(file, offset, into)

    monkeypatch.setattr(ShardFile, "read", counted)
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    found(tensor(tmp_path / "t", x), on_grid(tmp_path / "u"))
    assert read == [2 * SHAPE[1]] * (1 + ROWS)


def test_vectors_and_stored_blocks_are_not_read(tmp_path: Path) -> None:
    blocks = encode(np.ones((4, 256), np.float32), "Q4_K")
    (tmp_path / "t").write_bytes(blocks.tobytes())
    stored = Stored(ShardFile(tmp_path / "none"), 0, (4, 256), ALL["Q4_K"])
    vector = Stored(ShardFile(tmp_path / "none"), 0, (256,), ALL["BF16"])
    assert not found(ModelTensor("a", stored), ModelTensor("b", vector))


# ---- kept ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", GRIDS)
def test_keep_gives_the_type_that_reproduces_every_weight(name: str, tmp_path: Path) -> None:
    grid = GRIDS[name]
    plan = plan_of(on_grid(tmp_path / "t", name))
    (planned,) = plan.tensors
    assert (planned.type.name, planned.on_grid) == (grid.type, True)
    assert not [w for w in plan.warnings if "nonsense" in w]
    result = converted(plan, tmp_path / "x.gguf")
    assert result.warnings == ()
    content = (tmp_path / "x.gguf").read_bytes()
    blocks = np.frombuffer(content[-planned.n_bytes - -planned.n_bytes % 32 :], np.uint8)
    rows = blocks[: planned.n_bytes].reshape(SHAPE[0], -1)
    decoded = gguf_decode(rows, planned.type)
    np.testing.assert_array_equal(ROUND[grid.stored](decoded), grid.weights(2, SHAPE))


def test_keep_leaves_other_weights_in_their_stored_type(tmp_path: Path) -> None:
    x = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    (planned,) = plan_of(tensor(tmp_path / "t", x)).tensors
    assert (planned.type.name, planned.on_grid) == ("BF16", False)


def test_experts_in_a_stack_are_kept(tmp_path: Path) -> None:
    x = GRIDS[Q4].weights(3, (3 * 5, 256)).reshape(3, 5, 256)
    stack = tensor(tmp_path / "t", x, name="blk.0.ffn_down_exps.weight")
    plan = plan_of(stack, more="rules: [{role: ffn_down_exps, keep: true}]")
    assert plan.tensors[0].type.name == "Q4_0"
    assert converted(plan, tmp_path / "x.gguf").rounded == {}


def test_a_row_beside_the_grid_stops_the_conversion(tmp_path: Path) -> None:
    x = GRIDS[Q4].weights(2, SHAPE)
    x[22, 40] += bf16_rounded(np.float32([0.4 * np.abs(x[22, 32:64]).max()]))[0]
    plan = plan_of(tensor(tmp_path / "t", bf16_rounded(x)))
    assert plan.tensors[0].type.name == "Q4_0"
    message = rf"tensor '{NAME}': row 22 does not lie on the grid of Q4_0.*type: Q4_0"
    with pytest.raises(ConvertError, match=message):
        converted(plan, tmp_path / "x.gguf")
    assert not (tmp_path / "x.gguf").exists()


def test_a_weight_without_importance_is_checked(tmp_path: Path) -> None:
    x = GRIDS[Q4].weights(2, SHAPE)
    x[22, 40] += bf16_rounded(np.float32([0.4 * np.abs(x[22, 32:64]).max()]))[0]
    tensors = tensor(tmp_path / "t", bf16_rounded(x))
    means = np.ones(SHAPE[1], np.float32)
    means[32:64] = 0
    imatrix = read_imatrix(write_legacy(tmp_path / "m.dat", {NAME: means}))
    grids = found(tensors)
    plan = make_plan(model(tensors), recipe("F32", KEEP), imatrix=imatrix, grids=grids)
    with pytest.raises(ConvertError, match="does not lie on the grid"):
        converted(plan, tmp_path / "x.gguf")


def test_rounded_scales_are_a_warning_with_the_figure(tmp_path: Path) -> None:
    x = integers(np.random.default_rng(8), SHAPE, -8, 7, 32, "F32")
    result = converted(plan_of(tensor(tmp_path / "t", x, "F32")), tmp_path / "x.gguf")
    (warning,) = result.warnings
    n = result.rounded[NAME]
    assert f"{n:,} of {x.size:,} weights on the grid of Q4_0 differ by the rounding" in warning
    assert result.errors[NAME].weighted < 1e-7


def test_a_saved_plan_keeps_the_grid_and_checks_it(tmp_path: Path) -> None:
    tensors = on_grid(tmp_path / "t.gguf")
    plan = plan_of(tensors)
    saved = parse_plan(plan_text(saved_plan(plan)).encode(), "p.json")
    bound = bind_plan(saved, model(tensors), None, "p.json")
    assert [(t.type.name, t.on_grid) for t in bound.tensors] == [("Q4_0", True)]


# ---- reported ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_plan_states_the_grid_as_text_json_and_page(tmp_path: Path) -> None:
    plan = plan_of(on_grid(tmp_path / "t"))
    line = f"Q4_0: 1 tensors ({NAME}) lie on it, by 3 rows of each; the recipe gives them Q4_0 (1)"
    assert f"grid    {line}" in shown(plan)
    assert plan_json(plan)["grids"] == {NAME: {"type": "Q4_0", "exact": True}}
    assert line in plan_html(plan, 0)


@pytest.mark.parametrize(
    ("default", "is_lost"),
    [("Q4_K", True), ("Q8_0", True), ("Q4_0", False), ("F32", False), ("BF16", False)],
)
def test_a_type_that_loses_the_grid_is_a_warning(
    default: str, is_lost: bool, tmp_path: Path
) -> None:
    plan = plan_of(on_grid(tmp_path / "t"), default=default, more="")
    text = f"{default} for weights that lie on the grid of Q4_0 ({NAME})"
    assert any(text in w and "`keep: true`" in w for w in plan.warnings) == is_lost


def test_the_matching_type_reproduces_every_weight_without_keep(tmp_path: Path) -> None:
    """TQ1_0 holds what TQ2_0 holds."""
    name = "ternary, one scale a row, BF16"
    plan = plan_of(on_grid(tmp_path / "t", name), default="TQ1_0", more="")
    assert not [w for w in plan.warnings if "grid" in w or "nonsense" in w]
    assert converted(plan, tmp_path / "x.gguf").errors[NAME].max == 0


# ---- the command line ----------------------------------------------------------------------------


def folder(path: Path) -> Path:
    """A Llama whose matrices but the embedding lie on the grid of Q4_0."""
    from checkpoints import config_of, tensors_of
    from packers import Stored as Tensors
    from packers import bf16_bits, write_stored

    config = config_of("LlamaForCausalLM", hidden_size=64, intermediate_size=96)
    stored: Tensors = {}
    for i, (name, x) in enumerate(tensors_of(config).items()):
        is_matrix = "proj" in name
        weights = GRIDS[Q4].weights(i, x.shape) if is_matrix else bf16_rounded(x)
        stored[name] = ("BF16", bf16_bits(weights))
    return write_stored(path, config, stored)


@pytest.mark.slow
def test_plan_and_convert_find_the_grid_of_a_checkpoint(tmp_path: Path) -> None:
    model_folder = folder(tmp_path / "model")
    keep = tmp_path / "keep.yaml"
    keep.write_text("default: Q8_0\nrules: [{role: ['attn_*', 'ffn_*'], keep: true}]\n")
    run = CliRunner()
    planned = run.invoke(app, ["plan", str(model_folder), "-r", str(keep), "--json"])
    assert planned.exit_code == 0, planned.output
    document = json.loads(planned.stdout)
    names = [f"blk.{i}.{r}.weight" for i in range(2) for r in ("attn_q", "ffn_down")]
    assert all(document["grids"][n] == {"type": "Q4_0", "exact": True} for n in names)
    assert len(document["grids"]) == 2 * 7
    assert document["type_counts"]["Q4_0"] == 2 * 7
    explained = run.invoke(app, ["recipe", "check", str(keep), str(model_folder)])
    assert explained.exit_code == 0, explained.output
    eight = tmp_path / "eight.yaml"
    eight.write_text("default: Q8_0\n")
    lossy = run.invoke(app, ["plan", str(model_folder), "-r", str(eight)])
    assert "lie on the grid of Q4_0" in lossy.stderr


@pytest.mark.slow
def test_a_gguf_of_floats_is_kept_on_its_grid(tmp_path: Path) -> None:
    plan = plan_of(on_grid(tmp_path / "t"), default="BF16", more="")
    converted(plan, tmp_path / "bf16.gguf")
    source = stored_gguf(tmp_path / "bf16.gguf")
    grids = find_grids(source.tensors, all_sources=True)
    kept = converted(make_plan(source, recipe("F32", KEEP), grids=grids), tmp_path / "kept.gguf")
    (stored,) = gguf.GGUFReader(kept.path).tensors
    assert stored.tensor_type.name == "Q4_0"
    decoded = gguf_decode(np.asarray(stored.data), ALL["Q4_0"])
    np.testing.assert_array_equal(bf16_rounded(decoded), GRIDS[Q4].weights(2, SHAPE))
