"""What `import dynquant` offers."""

from __future__ import annotations

import io
from importlib.metadata import version
from pathlib import Path

import gguf
import numpy as np
import pytest
from handmade import DOWN, model, recipe, weights
from imatrices import write_legacy

import dynquant
from dynquant.conversion.engine import Progress


def test_every_public_name_is_there() -> None:
    assert all(getattr(dynquant, name) is not None for name in dynquant.__all__)
    assert set(dir(dynquant)) >= {"convert", "decode", "encode", "load_model", "make_plan"}


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'dynquant' has no attribute 'quantize'"):
        dynquant.quantize  # noqa: B018


def test_the_version_is_the_packages() -> None:
    assert dynquant.__version__ == version("dynquant")


def test_encode_gives_rows_of_blocks_that_gguf_decodes() -> None:
    x = weights(3, 64)
    blocks = dynquant.encode(x, "Q8_0")
    assert (blocks.shape, blocks.dtype) == ((3, 68), np.uint8)
    theirs = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
    assert np.array_equal(dynquant.decode(blocks, "Q8_0", 64), theirs)


def test_convert_takes_a_model_and_a_recipe_that_are_loaded(tmp_path: Path) -> None:
    plan = dynquant.convert(
        model(), str(tmp_path / "x.gguf"), recipe=recipe(), set_keys={"general.name": "Mine"}
    ).plan
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert [t.name for t in reader.tensors] == [t.name for t in plan.tensors]
    assert reader.fields["general.name"].contents() == "Mine"


def test_convert_takes_the_name_of_a_shipped_recipe(tmp_path: Path) -> None:
    assert dynquant.convert(model(), tmp_path / "x.gguf", recipe="f32").plan.type_counts == {
        "F32": 6
    }


@pytest.mark.parametrize("loaded", [False, True])
def test_convert_takes_an_imatrix_as_a_file_or_loaded(tmp_path: Path, loaded: bool) -> None:
    path = write_legacy(tmp_path / "i.dat", {DOWN: np.ones(512, np.float32)})
    imatrix = dynquant.load_imatrix(path) if loaded else str(path)
    plan = dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), imatrix=imatrix).plan
    assert list(plan.importance) == [DOWN]


def test_convert_takes_an_effort(tmp_path: Path) -> None:
    plan = dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), effort="best").plan
    assert plan.effort == "best"


def test_convert_calls_back_with_progress(tmp_path: Path) -> None:
    seen: list[Progress] = []
    dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), progress=seen.append)
    assert seen[-1].weights_done == seen[-1].weights_total > 0


def test_the_notebook_bar_ends_full(tmp_path: Path) -> None:
    drawn = io.StringIO()
    bar = dynquant.tqdm_progress(file=drawn, mininterval=0)
    dynquant.convert(model(), tmp_path / "x.gguf", recipe=recipe(), progress=bar)
    assert "100%" in drawn.getvalue()


def test_errors_share_one_kind(tmp_path: Path) -> None:
    with pytest.raises(dynquant.DynquantError):
        dynquant.convert(tmp_path / "none", tmp_path / "x.gguf", recipe="q8_0")
