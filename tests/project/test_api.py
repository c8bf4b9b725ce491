"""The public API of `import dynquant`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from handmade import DOWN, model, recipe, weights
from imatrices import write_legacy
from places import TINY_BOOKS

import dynquant
from dynquant import errors
from dynquant.conversion.engine import Progress


def test_every_public_name_exists() -> None:
    assert all(getattr(dynquant, name) is not None for name in dynquant.__all__)
    assert set(dir(dynquant)) >= {"convert", "decode", "encode", "load_model", "make_plan"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dynquant' has no attribute 'quantize'"):
        dynquant.quantize  # noqa: B018


def test_version_is_that_of_the_package() -> None:
    assert dynquant.__version__ == version("dynquant-gguf")


def test_encode_gives_rows_of_blocks_that_gguf_decodes() -> None:
    x = weights(3, 64)
    blocks = dynquant.encode(x, "Q8_0")
    assert (blocks.shape, blocks.dtype) == ((3, 68), np.uint8)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(dynquant.decode(blocks, "Q8_0", 64), theirs)


def test_convert_accepts_a_loaded_model_and_recipe(tmp_path: Path) -> None:
    plan = dynquant.convert(
        model(), str(tmp_path / "x.gguf"), recipe=recipe(), set_keys={"general.name": "Mine"}
    ).plan
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert [t.name for t in reader.tensors] == [t.name for t in plan.tensors]
    assert reader.fields["general.name"].contents() == "Mine"


def test_convert_accepts_the_name_of_a_shipped_recipe(tmp_path: Path) -> None:
    assert dynquant.convert(model(), tmp_path / "x.gguf", recipe="f32").plan.type_counts == {
        "F32": 6
    }


@pytest.mark.parametrize("loaded", [False, True])
def test_convert_accepts_an_imatrix_as_a_file_or_loaded(tmp_path: Path, loaded: bool) -> None:
    path = write_legacy(tmp_path / "i.dat", {DOWN: np.ones(512, np.float32)})
    imatrix = dynquant.load_imatrix(path) if loaded else str(path)
    plan = dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), imatrix=imatrix).plan
    assert list(plan.importance) == [DOWN]


def test_convert_accepts_an_effort(tmp_path: Path) -> None:
    plan = dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), effort="best").plan
    assert plan.effort == "best"


def test_convert_reports_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []
    dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), progress=seen.append)
    assert seen[-1].weights_done == seen[-1].weights_total > 0


@pytest.mark.slow
def test_notebook_progress_bar_ends_at_100_percent(tmp_path: Path) -> None:
    drawn = io.StringIO()
    bar = dynquant.tqdm_progress(file=drawn, mininterval=0)
    dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), progress=bar)
    assert "100%" in drawn.getvalue()


def test_errors_are_of_class_dynquant_error(tmp_path: Path) -> None:
    with pytest.raises(dynquant.DynquantError):
        dynquant.convert(tmp_path / "none", tmp_path / "x.gguf", recipe="q8_0")


def test_a_result_has_paths_sizes_hashes_and_errors(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    result = dynquant.convert(model(), out, recipe=recipe("Q4_0"))
    assert (result.path, result.paths) == (out, (out,))
    assert result.n_bytes == out.stat().st_size
    assert result.sha256 == (hashlib.sha256(out.read_bytes()).hexdigest(),)
    assert result.manifest == tmp_path / "x.gguf.manifest.json"
    assert result.bits_per_weight == result.plan.bits_per_weight
    assert result.resumed_bytes == 0
    quantized = {t.name for t in result.plan.tensors if t.type.name != "F32"}
    assert set(result.errors) == quantized
    assert result.loss
    assert 0 < result.loss.weighted < 0.1
    with pytest.raises(FrozenInstanceError):
        result.resumed_bytes = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.slow
def test_a_plan_can_be_written(tmp_path: Path) -> None:
    plan = dynquant.make_plan(model(), recipe("Q4_0"))
    direct = dynquant.convert(model(), tmp_path / "a.gguf", recipe=recipe("Q4_0"))
    written = plan.write(tmp_path / "b.gguf", threads=1, manifest=False)
    assert written.sha256 == direct.sha256
    assert written.manifest is None
    assert not (tmp_path / "b.gguf.manifest.json").exists()


@pytest.mark.parametrize("option", [{"pre": "llama-bpe"}, {"mla": "split"}])
def test_options_of_loading_are_refused_for_a_loaded_model(
    tmp_path: Path, option: dict[str, Any]
) -> None:
    ((name, value),) = option.items()
    with pytest.raises(dynquant.DynquantError, match=f"{name}={value!r} has no effect"):
        dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), **option)


def test_all_faults_of_the_inputs_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(dynquant.DynquantError) as e:
        dynquant.make_plan(tmp_path / "m", tmp_path / "r.yaml", imatrix=tmp_path / "i")
    assert len(e.value.messages) == 3


@pytest.mark.slow
def test_inspect_verify_read_manifest_and_types(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    dynquant.convert(TINY_BOOKS, out, recipe="q8_0")
    assert dynquant.inspect(out).keys["general.architecture"].value == "qwen3"
    assert dynquant.verify(out, TINY_BOOKS).is_sound
    assert dynquant.read_manifest(out).dynquant.encoder_revision == dynquant.ENCODER_REVISION
    assert dynquant.types()["Q4_K"].bpw == 4.5


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.tolist(),
        lambda x: x.astype(np.float16),
        lambda x: x.astype(np.float64),
        lambda x: x[:, ::1].copy(order="F"),
    ],
    ids=["lists", "float16", "float64", "column order"],
)
def test_encode_accepts_any_floats(convert: Callable[[Any], Any]) -> None:
    x = weights(3, 64).astype(np.float16).astype(np.float32)
    assert np.array_equal(dynquant.encode(convert(x), "Q8_0"), dynquant.encode(x, "Q8_0"))


class Bfloat16Tensor:
    """Refuses the array protocol as torch's bfloat16 tensors do, and widens to float32."""

    def __init__(self, x: np.ndarray) -> None:
        self._x = x

    def __array__(self, *_: object, **__: object) -> np.ndarray:
        raise TypeError("Got unsupported ScalarType BFloat16")

    def float(self) -> np.ndarray:
        return self._x


def test_encode_accepts_bfloat16_of_torch() -> None:
    x = weights(3, 64)
    assert np.array_equal(dynquant.encode(Bfloat16Tensor(x), "Q8_0"), dynquant.encode(x, "Q8_0"))


@pytest.mark.parametrize("x", [np.zeros((2, 64), np.int8), np.zeros((2, 64), bool), "text"])
def test_encode_refuses_arrays_that_are_not_floats(x: Any) -> None:
    with pytest.raises(dynquant.EncodeError, match="must be floats"):
        dynquant.encode(x, "Q8_0")


def test_every_error_is_exported() -> None:
    kinds = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.DynquantError)
    }
    assert kinds <= set(dynquant.__all__)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: dynquant.encode(weights(1, 32), "Q8_0", effort="max"), "effort='max'"),
        (lambda: dynquant.encode(weights(1, 32), "Q8_0", weighting="x"), "weighting='x'"),
        (lambda: dynquant.encode(weights(1, 32), "Q8_0", gain="x"), "gain='x'"),
        (lambda: dynquant.encode(np.empty((4, 0), np.float32), "Q8_0"), "rows of no weights"),
        (lambda: dynquant.load_model(TINY_BOOKS, mla="x"), "mla='x' is not a layout"),
        (lambda: dynquant.Split(max_tensors=0), "max_tensors=0"),
        (lambda: dynquant.Split(max_tensors=2.5), "max_tensors=2.5"),
        (lambda: dynquant.Split("1GB"), "max_bytes='1GB'"),
    ],
)
def test_arguments_that_are_not_valid_are_named(call: Callable[[], Any], expected: str) -> None:
    with pytest.raises(dynquant.DynquantError, match=expected):
        call()


@pytest.mark.parametrize("options", [{"manifest": "x"}, {"verify_sample": -1}, {"threads": 0}])
def test_options_of_a_conversion_are_checked_before_it(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(dynquant.ConvertError, match=next(iter(options))):
        dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), **options)
    assert list(tmp_path.iterdir()) == []
