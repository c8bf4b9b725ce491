"""Rotations that compressed-tensors makes while a model runs are undone exactly, or refused.

The oracle is the package compressed_tensors (tests/references/rotated, written by
make_rotated_references.py): what rotated modules compute as they run.
"""

from __future__ import annotations

import json
import shutil
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import config_of, tensors_of
from hypothesis import given
from hypothesis import strategies as st
from packers import Stored, bf16_bits, compressed, fp8_blocks, write_stored
from places import TESTS

import dynquant
from dynquant.arrays import F32
from dynquant.checkpoint.packed import Weights, hadamard, unpack
from dynquant.checkpoint.packed.hadamard import Hadamard, sylvester
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import CheckpointError
from dynquant.part_cache import release_parts
from dynquant.tensors import TensorSource, n_rows
from dynquant.transforms import read_weights

REFERENCES = TESTS / "references" / "rotated"
CASES = sorted(p.name for p in REFERENCES.iterdir())


def whole(source: TensorSource) -> F32:
    return read_weights(source, 0, n_rows(source.shape)).reshape(source.shape)


def stored_f32(path: Path) -> dict[str, F32]:
    content = path.read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + n])
    found: dict[str, F32] = {}
    for name, at in header.items():
        first, last = (8 + n + o for o in at["data_offsets"])
        found[name] = np.frombuffer(content[first:last], "<f4").reshape(at["shape"])
    return found


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_that_the_rotated_modules_compute_with(case: str) -> None:
    found = unpack(open_checkpoint(REFERENCES / case))
    expected = stored_f32(REFERENCES / case / "expected.safetensors")
    assert found.tensors.keys() == expected.keys()
    for name, theirs in expected.items():
        ours = whole(found.tensors[name].source())
        # Ours are rounded to float32 after each rotation, theirs once.
        most = 1e-7 * float(np.abs(theirs).max())
        np.testing.assert_allclose(ours, theirs, rtol=1e-7, atol=most, err_msg=name)


def test_the_references_are_rotated() -> None:
    for case in CASES:
        stored = unpack(open_checkpoint(REFERENCES / case)).tensors
        raw = open_checkpoint(REFERENCES / case).tensors["mlp.down_proj.weight"].source()
        ours = whole(stored["mlp.down_proj.weight"].source())
        assert np.allclose(ours, whole(raw), atol=1e-3) == (case == "folded")


@cache
def source_and_whole(case: str) -> tuple[TensorSource, F32]:
    source = unpack(open_checkpoint(REFERENCES / case)).tensors["mlp.down_proj.weight"].source()
    return source, whole(source)


@pytest.mark.slow
@given(st.sampled_from(CASES), st.data())
def test_any_rows_can_be_read_separately(case: str, data: st.DataObject) -> None:
    release_parts()
    source, expected = source_and_whole(case)
    start = data.draw(st.integers(0, len(expected) - 1))
    stop = data.draw(st.integers(start + 1, len(expected)))
    np.testing.assert_array_equal(read_weights(source, start, stop), expected[start:stop])


# ---- products ------------------------------------------------------------------------------------

R = "R4_input.weight"


def scheme(*places: tuple[str, Any], targets: Any = "re:.*down$", **more: Any) -> dict[str, Any]:
    apply = [{"targets": targets, "location": loc, "inverse": i} for loc, i in places]
    return {"type": "hadamard", "apply": apply} | more


INPUT = ("input", False), ("weight_input", True)


def settings(schemes: Any) -> dict[str, Any]:
    return compressed("float-quantized") | {"transform_config": {"config_groups": schemes}}


def weights(folder: Path, schemes: Any, tensors: Stored, **config: Any) -> Weights:
    config = {"quantization_config": settings(schemes), "tie_word_embeddings": False} | config
    return unpack(open_checkpoint(write_stored(folder, config, tensors)))


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 8, 128, 256, 1024])
def test_sylvesters_matrix_is_the_same_in_parts_and_as_a_whole(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(size).standard_t(3, (5, size)).astype(np.float32)
    block = Hadamard(size, None, None)
    found = block.rotated(x, flip=False)
    exact = x.astype(np.longdouble) @ sylvester(size).astype(np.longdouble) / np.sqrt(size)
    np.testing.assert_allclose(found, exact.astype(np.float64), rtol=6e-8, atol=1e-11)
    for dense in (1, 16, 1024):
        monkeypatch.setattr(hadamard, "_DENSE", dense)
        np.testing.assert_array_equal(block.rotated(x, flip=True), found)
    np.testing.assert_array_equal(block.rotated(x[2:3], flip=False), found[2:3])


@pytest.mark.parametrize("dtype", ["BF16", "F32"])
@pytest.mark.parametrize("scale", [1, 8**-0.5])
def test_a_stored_matrix_gives_the_same_as_the_one_that_the_type_implies(
    tmp_path: Path, dtype: str, scale: float
) -> None:
    """The first releases of compressed-tensors stored matrices divided by the root of the size."""
    w: Stored = {"l.down.weight": ("F32", np.random.default_rng(1).random((6, 8), "f4"))}
    matrix = (sylvester(8) * np.float32(scale)).astype(np.float32)
    kept = bf16_bits(matrix) if dtype == "BF16" else matrix
    found = [
        whole(weights(folder, {"R4": scheme(*INPUT)}, tensors).tensors["l.down.weight"].source())
        for folder, tensors in (
            (tmp_path / "a", w),
            (tmp_path / "b", w | {f"l.down.{R}": (dtype, kept)}),
        )
    ]
    np.testing.assert_array_equal(*found)


def test_a_large_stored_matrix_of_another_kind_is_read_in_panels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(2)
    signs = sylvester(16) * rng.choice([-1, 1], 16)
    w = rng.standard_normal((4, 32)).astype(np.float32)
    tensors: Stored = {
        "l.down.weight": ("F32", w),
        f"l.down.{R}": ("F32", signs.astype(np.float32)),
    }
    made = {"R4": scheme(*INPUT, type="random-hadamard", head_dim=16)}
    monkeypatch.setattr(hadamard, "_PANEL", 3)
    found = whole(weights(tmp_path, made, tensors).tensors["l.down.weight"].source())
    expected = w.reshape(-1, 16).astype(np.float64) @ signs.T / 4
    np.testing.assert_allclose(found, expected.reshape(4, 32), rtol=1e-7, atol=1e-9)


def test_a_stored_matrix_that_is_no_hadamard_matrix_is_reported_when_it_is_read(
    tmp_path: Path,
) -> None:
    for value in (0.5, 0.0, np.nan):
        matrix = sylvester(8).astype(np.float32)
        matrix[3, 4] = value
        tensors: Stored = {
            "l.down.weight": ("F32", np.ones((2, 8), "f4")),
            f"l.down.{R}": ("F32", matrix),
        }
        found = weights(tmp_path, {"R4": scheme(*INPUT)}, tensors).tensors["l.down.weight"]
        with pytest.raises(CheckpointError, match=r"l.down.R4_input.weight is not a Hadamard mat"):
            whole(found.source())


def test_a_permutation_that_is_not_valid_is_reported_when_it_is_read(tmp_path: Path) -> None:
    tensors: Stored = {
        "l.down.weight": ("F32", np.ones((2, 8), "f4")),
        "l.down.R4_input.perm": ("I64", np.array([0, 1, 2, 3, 4, 5, 6, 6])),
    }
    made = {"R4": scheme(*INPUT, randomize=True)}
    found = weights(tmp_path, made, tensors).tensors["l.down.weight"]
    with pytest.raises(CheckpointError, match=r"l.down.R4_input.perm is not a permutation"):
        whole(found.source())


def test_weights_that_are_not_numbers_stay_so(tmp_path: Path) -> None:
    w = np.ones((3, 8), "f4")
    w[1, 2] = np.nan
    w[2, 2] = np.inf
    tensors: Stored = {"l.down.weight": ("F32", w)}
    found = weights(tmp_path, {"R4": scheme(*INPUT)}, tensors).tensors["l.down.weight"]
    assert np.isfinite(whole(found.source())).tolist() == [[True] * 8, [False] * 8, [False] * 8]


# ---- from checkpoint to file ---------------------------------------------------------------------

CONFIG = config_of(
    "LlamaForCausalLM", vocab_size=448, hidden_size=64, intermediate_size=256, head_dim=32
)


@pytest.mark.slow
def test_a_rotated_checkpoint_and_its_floats_give_the_same_file(tmp_path: Path) -> None:
    """Weights of eight bits, and blocks of 16, whose root is 4: no product is rounded."""
    rng = np.random.default_rng(4)
    h = sylvester(16).astype(np.float32) / 4
    plain: Stored = {}
    rotated: Stored = {}
    for name, x in tensors_of(CONFIG).items():
        plain[name] = rotated[name] = ("F32", x)
        if name.endswith("down_proj.weight"):
            w = rng.integers(-127, 128, x.shape).astype(np.float32) / 4096
            plain[name] = ("F32", w)
            rotated[name] = ("F32", (w.reshape(-1, 16) @ h).reshape(w.shape).astype(np.float32))
    made = {"R4": scheme(*INPUT, targets=["re:.*down_proj$"], head_dim=16)}
    folders = tmp_path / "rotated" / "model", tmp_path / "plain" / "model"
    write_stored(folders[0], CONFIG | {"quantization_config": settings(made)}, rotated)
    write_stored(folders[1], CONFIG, plain)
    for folder in folders:
        for file in (TESTS / "references" / "llama-3.1").glob("*.json"):
            if file.name != "config.json":
                shutil.copy(file, folder)
        dynquant.convert(folder, folder / "out.gguf", recipe="q8_0", threads=2)
    assert (folders[0] / "out.gguf").read_bytes() == (folders[1] / "out.gguf").read_bytes()


def test_codes_are_decoded_before_a_rotation_is_undone(tmp_path: Path) -> None:
    stored, value = fp8_blocks(32, 32)("l.down.weight", (64, 64), np.random.default_rng(6))
    stored = {name.replace("_scale_inv", "_scale"): t for name, t in stored.items()}
    config = settings({"R4": scheme(*INPUT)})
    config["config_groups"]["group_0"]["weights"]["block_structure"] = [32, 32]
    folder = write_stored(tmp_path, {"quantization_config": config}, stored)
    found = unpack(open_checkpoint(folder)).tensors["l.down.weight"]
    expected = value.astype(np.float64) @ sylvester(64) / 8
    np.testing.assert_allclose(whole(found.source()), expected, rtol=1e-6, atol=1e-6)


# ---- what needs nothing --------------------------------------------------------------------------

MODEL: Stored = {
    "model.embed_tokens.weight": ("F32", np.ones((8, 8), "f4")),
    "model.layers.0.attn.q.weight": ("F32", np.ones((8, 8), "f4")),
    "model.layers.0.mlp.down.weight": ("F32", np.ones((8, 8), "f4")),
    "model.layers.0.mlp.down.bias": ("F32", np.ones(8, "f4")),
    "model.norm.weight": ("F32", np.ones(8, "f4")),
    "lm_head.weight": ("F32", np.ones((8, 8), "f4")),
}

NOTHING: dict[str, dict[str, Any]] = {
    "folded into the weights": scheme(("weight_input", True), ("weight_output", False)),
    "queries and keys": scheme(("q_attn", False), ("k_cache", False), targets="re:.*attn$"),
    "nowhere": {"type": "hadamard", "apply": []},
    "folded, of another type": scheme(("weight_input", True), type="random-matrix"),
}


@pytest.mark.parametrize("made", NOTHING.values(), ids=NOTHING)
def test_transforms_that_change_nothing_leave_the_weights_as_they_are(
    tmp_path: Path, made: dict[str, Any]
) -> None:
    found = weights(tmp_path, {"R": made}, MODEL)
    assert found.tensors.keys() == MODEL.keys()
    for name, (_, value) in MODEL.items():
        np.testing.assert_array_equal(whole(found.tensors[name].source()), value)


def test_the_stored_matrices_of_a_rotation_that_cancels_are_listed_with_the_reason(
    tmp_path: Path,
) -> None:
    extra: Stored = {f"model.layers.0.attn.R_{loc}.weight": ("F32", sylvester(8).astype("f4"))
                     for loc in ("q_attn", "k_cache")}  # fmt: skip
    found = weights(tmp_path, {"R": NOTHING["queries and keys"]}, MODEL | extra)
    assert found.ignored == dict.fromkeys(
        extra, "a rotation of queries and keys, which cancels in their product"
    )


# ---- refusals ------------------------------------------------------------------------------------

WHOLE = "quantization_config: transform_config: "
ALL = {"targets": "Linear"}


def refused(folder: Path, schemes: Any, tensors: Stored = MODEL, **config: Any) -> list[str]:
    with pytest.raises(CheckpointError) as e:
        weights(folder, schemes, tensors, **config)
    return [m.removeprefix(f"{folder}").lstrip("/: ") for m in e.value.messages]


SETTINGS: dict[str, tuple[Any, str]] = {
    "type": (
        scheme(*INPUT, type="butterfly"),
        "'R' is of type 'butterfly' and acts while the model runs; supported: hadamard, random-",
    ),
    "scores of any matrix": (
        scheme(("q_attn", False), ("k_cache", False), targets="re:.*attn$", type="random-matrix"),
        "'R' does not rotate queries (q_attn) and keys (k_cache) in the same way",
    ),
    "location": (scheme(("middle", False)), "'R' applies at location 'middle', which is not"),
    "head_dim": (scheme(*INPUT, head_dim="8"), "'R' has head_dim '8', not a positive integer"),
    "inverse": (scheme(("input", 1)), "'R' has an entry of apply whose targets, ignore or inverse"),
    "targets": (scheme(*INPUT, targets=[7]), "'R' has an entry of apply whose targets, ignore or"),
    "not an object": (7, "'R' is 7, not an object"),
    "queries only": (
        scheme(("q_attn", False), targets="re:.*attn$"),
        "'R' does not rotate queries (q_attn) and keys (k_cache) in the same way, so it does not",
    ),
    "keys the other way": (
        scheme(("q_attn", False), ("k_cache", True), targets="re:.*attn$"),
        "'R' does not rotate queries (q_attn) and keys (k_cache) in the same way",
    ),
    "no such module": (scheme(*INPUT, targets="re:.*up$"), "transform 'R' of inputs is for 're:.*"),
    "a class": (
        scheme(*INPUT, targets=["LlamaMLP", "re:.*down$"]),
        "transform 'R' of inputs is for 'LlamaMLP', which matches no weight",
    ),
    "a block of modules": (
        scheme(*INPUT, targets="re:.*mlp"),
        "transform 'R' of inputs matches 'model.layers.0.mlp', which is not a linear module",
    ),
    "an embedding": (
        scheme(("output", True), targets="re:.*embed_tokens"),
        "transform 'R' of outputs matches 'model.embed_tokens', which is not a linear module",
    ),
    "an expression": (
        scheme(*INPUT, targets=r"re:(a)\1"),
        r"transform 'R' of inputs: the expression 're:(a)\\1' is not supported",
    ),
    "an ignored name of another spelling": (
        {"type": "hadamard",
         "apply": [{"targets": "re:.*", "location": "input", "ignore": ["attn.q"]}]},
        "transform 'R' of inputs ignores 'attn.q', which may be 'model.layers.0.attn.q'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "text"), SETTINGS.values(), ids=SETTINGS)
def test_transforms_whose_effect_is_not_known_are_refused_by_name(
    tmp_path: Path, made: Any, text: str
) -> None:
    message, *_ = refused(tmp_path, {"R": made})
    assert message.startswith(f"config.json: {WHOLE}{text}")
    assert "; " in message


@pytest.mark.parametrize("value", ["hadamard", {"config_groups": "R4"}])
def test_settings_that_are_no_object_are_refused(tmp_path: Path, value: object) -> None:
    config = compressed("float-quantized") | {"transform_config": value}
    folder = write_stored(tmp_path, {"quantization_config": config}, MODEL)
    with pytest.raises(CheckpointError, match="transform_config: has no config_groups that are"):
        unpack(open_checkpoint(folder))


@pytest.mark.parametrize(
    ("where", "key"), [("transform_config", "x"), ("scheme", "trick"), ("apply", "side")]
)
def test_unknown_keys_of_transforms_are_refused(tmp_path: Path, where: str, key: str) -> None:
    made = scheme(*INPUT)
    config = settings({"R": made})
    place = {"transform_config": config["transform_config"], "scheme": made,
             "apply": made["apply"][0]}[where]  # fmt: skip
    place[key] = 1
    folder = write_stored(tmp_path, {"quantization_config": config}, MODEL)
    with pytest.raises(CheckpointError, match=rf"{key} is not a known setting of compressed-ten"):
        unpack(open_checkpoint(folder))


@pytest.mark.parametrize("tied", [True, None])
def test_an_output_matrix_that_is_the_embedding_is_not_rotated_in_silence(
    tmp_path: Path, tied: bool | None
) -> None:
    model = {name: t for name, t in MODEL.items() if name != "lm_head.weight"}
    (message,) = refused(
        tmp_path, {"v": scheme(*INPUT, **ALL)}, model, tie_word_embeddings=tied
    )  # fmt: skip
    assert "add 'lm_head' to the ignore of the transform" in message
    made = scheme(*INPUT, **ALL)
    for entry in made["apply"]:
        entry["ignore"] = ["lm_head"]
    found = weights(tmp_path, {"v": made}, model, tie_word_embeddings=tied)
    assert found.tensors.keys() == model.keys()


@pytest.mark.parametrize("last", ["gate", "router", "patch_embedder"])
def test_matrices_that_may_be_of_other_modules_are_refused_in_one_line(
    tmp_path: Path, last: str
) -> None:
    more: Stored = {f"model.layers.{i}.mlp.{last}.weight": ("F32", np.ones((4, 8), "f4"))
                    for i in range(3)}  # fmt: skip
    (message,) = refused(tmp_path, {"v": scheme(*INPUT, **ALL)}, MODEL | more)
    assert f"not known whether 'model.layers.{{0-2}}.mlp.{last}' is one of them" in message


def test_stacked_experts_that_an_expression_matches_are_refused(tmp_path: Path) -> None:
    model = MODEL | {"model.layers.1.experts.down": ("F32", np.ones((2, 8, 8), "f4"))}
    (message,) = refused(tmp_path, {"R": scheme(*INPUT)}, model)
    assert "matches 'model.layers.1.experts.down', which is not a linear module" in message


DOWN = "model.layers.0.mlp.down"
WEIGHTS: dict[str, tuple[Any, Stored, str]] = {
    "random, not stored": (
        scheme(*INPUT, type="random-hadamard"),
        {},
        "needs the matrix of transform 'R' of inputs, which is not stored",
    ),
    "not a power of two": (
        scheme(*INPUT),
        {f"{DOWN}.weight": ("F32", np.ones((8, 12), "f4"))},
        "needs the Hadamard matrix of 12 rows of transform 'R' of inputs, which is not stored",
    ),
    "no multiple": (
        scheme(*INPUT, head_dim=16),
        {},
        "has 8 inputs, which transform 'R' of inputs with head_dim 16 does not divide",
    ),
    "any matrix, not stored": (
        scheme(*INPUT, type="random-matrix"),
        {},
        "needs the matrix of transform 'R' of inputs, which is not stored",
    ),
    "a matrix or its inverse": (
        {
            "type": "random-matrix",
            "apply": [
                {"targets": "re:.*down$", "location": "input", "inverse": True},
                {"targets": "re:.*q$", "location": "input"},
            ],
        },
        {"model.layers.0.attn.q.R_input.weight": ("F32", np.ones((8, 8), "f4"))},
        "shares the weight of transform 'R' of inputs, but it is not known which of those that are",
    ),
    "permutation missing": (
        scheme(*INPUT, randomize=True),
        {},
        "needs the permutation of transform 'R' of inputs, which is not stored",
    ),
    "permutation too many": (
        scheme(*INPUT),
        {f"{DOWN}.R_input.perm": ("I64", np.arange(8))},
        "needs the permutation of transform 'R' of inputs, which is stored without randomize",
    ),
    "another size": (
        scheme(*INPUT, type="random-hadamard"),
        {f"{DOWN}.R_input.weight": ("F32", sylvester(4).astype("f4"))},
        f"needs {DOWN}.R_input.weight as [8, 8], but it is F32 [4, 4]",
    ),
    "several to share": (
        scheme(*INPUT, type="random-hadamard"),
        {f"model.layers.{i}.mlp.up.R_input.weight": ("F32", sylvester(8).astype("f4"))
         for i in range(2)},
        "shares the weight of transform 'R' of inputs, but it is not known which of those that are",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("made", "more", "text"), WEIGHTS.values(), ids=WEIGHTS)
def test_weights_whose_rotation_is_not_known_are_refused_by_name(
    tmp_path: Path, made: Any, more: Stored, text: str
) -> None:
    (message,) = refused(tmp_path, {"R": made}, MODEL | more)
    assert message.startswith(f"{DOWN}.weight {text}")


def test_unneeded_matrices_are_listed(tmp_path: Path) -> None:
    extra: Stored = {"model.layers.0.attn.q.R_input.weight": ("F32", np.ones((4, 4), "f4"))}
    found = weights(tmp_path, {"R": scheme(*INPUT)}, MODEL | extra)
    assert found.ignored == dict.fromkeys(
        extra, "a matrix of transform_config that no weight needs"
    )
