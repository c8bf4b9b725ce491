"""Moments of another model are refused by name, and files of other kinds as what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from handmade import computed_tensor
from imatrices import write_counted, write_legacy
from second_moments import input_of, write_importance, write_moments

from dynquant.arch.base import ModelTensor
from dynquant.errors import ImportanceError
from dynquant.importance.imatrix import read_imatrix
from dynquant.importance.moments import Input, Moments, read_moments
from dynquant.importance.moments_fit import fitted

GATE = computed_tensor("blk.0.ffn_gate.weight", 8, 32)
UP = computed_tensor("blk.0.ffn_up.weight", 8, 32)
DOWN = computed_tensor("blk.0.ffn_down.weight", 4, 64)
EXPERTS = computed_tensor("blk.1.ffn_down_exps.weight", 3, 4, 32)
TENSORS = (GATE, UP, DOWN, EXPERTS)


def fit(
    folder: Path, *inputs: Input, tensors: tuple[ModelTensor, ...] = TENSORS, tokens: str = "5" * 64
) -> tuple[Moments, tuple[str, ...]]:
    moments = read_moments(write_moments(folder / "m.moments.safetensors", *inputs))
    imatrix = read_imatrix(write_importance(folder / "i.gguf", *TENSORS, tokens=tokens))
    return fitted(moments, tensors, imatrix)


def refusal(folder: Path, *inputs: Input) -> list[str]:
    with pytest.raises(ImportanceError) as e:
        fit(folder, *inputs)
    path = folder / "m.moments.safetensors"
    start = f"{path}: has the moments of another model: "
    assert all(m.startswith(start) for m in e.value.messages)
    return [m.removeprefix(start) for m in e.value.messages]


def test_each_tensor_has_its_input(tmp_path: Path) -> None:
    shared, own = input_of(GATE, UP), input_of(EXPERTS, n_moments=3)
    moments, warnings = fit(tmp_path, shared, own)
    assert moments.inputs == {GATE.name: shared, UP.name: shared, EXPERTS.name: own}
    assert warnings == ()
    assert moments.arrays(UP.name)["squares"].shape == (1, 32)


def test_a_fused_matrix_has_the_input_of_its_parts(tmp_path: Path) -> None:
    fused = computed_tensor("blk.0.ffn_gate_up.weight", 16, 32)
    shared = input_of(GATE, UP)
    moments, warnings = fit(tmp_path, shared, tensors=(fused,))
    assert (moments.inputs, warnings) == ({fused.name: shared}, ())
    assert moments.arrays(fused.name)["counts"].shape == (1,)


def test_names_of_another_model_are_listed(tmp_path: Path) -> None:
    other = Input("a.b", ("a.b.weight", "a.c.weight"), 32)
    assert refusal(tmp_path, other) == [
        "this model has none of its tensors (a.b.weight, a.c.weight)"
    ]


def test_other_widths_and_numbers_of_matrices_are_named_together(tmp_path: Path) -> None:
    wide = Input("g", (GATE.name, UP.name), 48)
    many = Input("d", (EXPERTS.name,), 32, 4)
    assert refusal(tmp_path, wide, many) == [
        "48 channels for the 32 input channels of blk.0.ffn_gate.weight, blk.0.ffn_up.weight",
        "4 times 32 channels for the 3 times 32 input channels of blk.1.ffn_down_exps.weight",
    ]


def test_inputs_that_the_model_does_not_have_are_one_warning(tmp_path: Path) -> None:
    moments, (warning,) = fit(tmp_path, input_of(DOWN), Input("x", ("x.weight", "y.weight"), 32))
    assert list(moments.inputs) == [DOWN.name]
    assert warning.endswith("m.moments.safetensors: ignored, not in the model: x.weight, y.weight")


def test_moments_and_imatrix_of_other_tokens_are_one_warning(tmp_path: Path) -> None:
    _, (warning,) = fit(tmp_path, input_of(DOWN), tokens="6" * 64)
    assert "has the moments of other tokens than i.gguf; give files that one run of" in warning


def test_imatrix_of_another_program_is_accepted(tmp_path: Path) -> None:
    moments = read_moments(write_moments(tmp_path / "m", input_of(DOWN)))
    path = write_legacy(tmp_path / "i.dat", {DOWN.name: np.ones(64, np.float32)})
    assert fitted(moments, TENSORS, read_imatrix(path))[1] == ()


def test_the_hash_of_the_header_changes_with_any_array(tmp_path: Path) -> None:
    one, same, other = (
        read_moments(write_moments(tmp_path / f"{i}", input_of(DOWN), seed=seed)).header_sha256
        for i, seed in enumerate((0, 0, 1))
    )
    assert one == same != other


def test_moments_given_as_an_imatrix_are_named_as_that(tmp_path: Path) -> None:
    path = write_moments(tmp_path / "m.moments.safetensors", input_of(DOWN))
    with pytest.raises(ImportanceError) as e:
        read_imatrix(path)
    assert str(e.value) == (
        f"{path}: is a file of second moments, not an imatrix; give it as --moments, and the"
        " imatrix beside it as --imatrix"
    )


@pytest.mark.parametrize("kind", ["gguf", "dat"])
def test_an_imatrix_given_as_moments_is_named_as_that(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"i.{kind}"
    if kind == "gguf":
        write_importance(path, DOWN)
    else:
        write_legacy(path, {DOWN.name: np.ones(64, np.float32)})
    with pytest.raises(ImportanceError) as e:
        read_moments(path)
    assert str(e.value) == (
        f"{path}: is an imatrix, not a file of second moments; give it as --imatrix, and the"
        " .moments.safetensors beside it as --moments"
    )


@pytest.mark.parametrize("content", [b"", b"GGUF", b"\3\0\0\0", b"\0" * 40])
def test_other_files_given_as_moments_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.moments.safetensors"
    path.write_bytes(content)
    with pytest.raises(ImportanceError, match=r"m\.moments\.safetensors: is incomplete, "):
        read_moments(path)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    for path, why in ((tmp_path, "Is a directory"), (tmp_path / "none", "No such file or dir")):
        with pytest.raises(ImportanceError) as e:
            read_moments(path)
        assert str(e.value).startswith(f"{path}: cannot be read: {why}")


def test_moments_of_some_experts_only_are_refused(tmp_path: Path) -> None:
    path = write_moments(tmp_path / "m", Input("d", (EXPERTS.name,), 32, 3, 2))
    with pytest.raises(ImportanceError, match="its header is damaged"):
        read_moments(path)


def test_few_tokens_for_the_channels_are_a_warning(tmp_path: Path) -> None:
    tensor = computed_tensor("blk.0.ffn_up.weight", 8, 576)
    moments = read_moments(write_moments(tmp_path / "m", input_of(tensor)))
    imatrix = read_imatrix(write_importance(tmp_path / "i", tensor))
    (warning,) = fitted(moments, [tensor], imatrix)[1]
    assert "m: has 1,100 tokens for inputs of up to 576 channels; " in warning


def test_moments_with_other_mean_squares_than_the_imatrix_are_refused(tmp_path: Path) -> None:
    """Names and sizes fit, and nothing says that it is another model."""
    tensor = computed_tensor("blk.0.ffn_up.weight", 8, 256)
    moments = read_moments(write_moments(tmp_path / "m", input_of(tensor)))
    for factor, is_refused in ((0.5, False), (2.0, False), (4.0, True), (0.2, True)):
        squares = moments.peek(moments.inputs[tensor.name], "squares") * factor
        path = write_counted(tmp_path / "i", {tensor.name: (squares, [1.0])})
        if is_refused:
            with pytest.raises(ImportanceError, match="has other mean squares than i: "):
                fitted(moments, [tensor], read_imatrix(path))
        else:
            assert fitted(moments, [tensor], read_imatrix(path))[1] == ()
