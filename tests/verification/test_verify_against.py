"""A file is compared with its source: the honest pass, and a row that is another's is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
from agreement import load_reference
from handmade import recipe
from imatrices import write_legacy
from places import TINY_BOOKS
from typer.testing import CliRunner

import dynquant
from dynquant.cli import app
from dynquant.errors import VerificationError
from dynquant.plan.shards import Split
from dynquant.verification.against import compare
from dynquant.verification.findings import Compared
from dynquant.verification.standalone import verify

MIXED = "rules: [{role: ffn_down, type: Q4_K}, {role: attn_v, type: F16}]"
TENSOR = "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "x.gguf"
    dynquant.convert(TINY_BOOKS, out, recipe=recipe("Q4_0", MIXED), effort="fast", threads=1)
    return out


@pytest.fixture
def path(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(made, tmp_path))


def change(path: Path, name: str, row: int) -> int:
    """Change the last byte of a row; return where the row begins."""
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    n_rows = int(np.prod(tensor.shape[1:]))
    size = int(tensor.n_bytes) // n_rows
    at = int(tensor.data_offset) + row * size
    with path.open("r+b") as file:
        file.seek(at + size - 1)
        (byte,) = file.read(1)
        file.seek(at + size - 1)
        file.write(bytes([byte ^ 1]))
    return at


def overwrite(path: Path, name: str) -> None:
    """Turn a tensor's bytes round."""
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(tensor.data.tobytes()[::-1])


def whole(path: Path, **more: object) -> Compared:
    return compare(path, str(TINY_BOOKS), tensors="*", threads=1, **more)  # type: ignore[arg-type]


def test_an_honest_file_is_what_its_source_gives(made: Path) -> None:
    found = whole(made)
    assert (found.faults, found.warnings, found.unchecked) == ((), (), ())
    assert "46 tensors whole" in found.checked[0]
    sampled = compare(made, str(TINY_BOOKS))
    assert (sampled.faults, sampled.unchecked) == ((), ())
    assert "in 64 ranges of rows" in sampled.checked[0]


@pytest.mark.parametrize(
    "family", ["deepseek-v3", "gpt-oss-mxfp4", "qwen3next", "nomic-bert", "glm4moe"]
)
def test_files_of_other_families_are_sound_and_what_their_sources_give(
    family: str, tmp_path: Path
) -> None:
    folder, out = load_reference(family).folder, tmp_path / "x.gguf"
    dynquant.convert(folder, out, recipe="dynamic-4bit", threads=1)
    assert verify(out, threads=1).faults == ()
    assert compare(out, str(folder), tensors="*", threads=1).faults == ()


def test_blocks_that_are_kept_and_latent_attention_that_is_merged_are_compared_so(
    tmp_path: Path,
) -> None:
    folder, out = load_reference("gpt-oss-mxfp4").folder, tmp_path / "kept.gguf"
    dynquant.convert(folder, out, recipe=recipe("F16", "rules: [{role: experts, keep: true}]"))
    assert compare(out, str(folder), tensors="*", threads=1).faults == ()
    folder, out = load_reference("deepseek-v3").folder, tmp_path / "merged.gguf"
    dynquant.convert(folder, out, recipe=recipe("F16"), mla="merged")
    assert compare(out, str(folder), tensors="*", mla="merged", threads=1).faults == ()
    (fault,) = {f.what for f in compare(out, str(folder), tensors="*", threads=1).faults}
    assert fault == "is not in the source"


def test_a_changed_row_is_named_with_its_place(path: Path) -> None:
    at = change(path, TENSOR, 77)
    (fault,) = whole(path).faults
    assert (fault.tensor, fault.offset, fault.file) == (TENSOR, at, path)
    assert fault.what == f"row 77 of 768 is not what {TINY_BOOKS} gives as Q4_0, effort fast"
    assert compare(path, str(TINY_BOOKS), tensors="blk.0.*").faults == ()
    assert len(compare(path, str(TINY_BOOKS), tensors="blk.1.ffn_*").faults) == 1


def test_a_tensor_that_is_wrong_throughout_is_found_by_few_samples(path: Path) -> None:
    overwrite(path, TENSOR)
    (fault,) = compare(path, str(TINY_BOOKS), tensors=TENSOR, sample=1).faults
    assert "of the rows compared differ" in fault.what


def test_the_sample_is_the_same_every_time(path: Path) -> None:
    overwrite(path, "token_embd.weight")
    first = compare(path, str(TINY_BOOKS), sample=64, threads=1)
    assert first.faults
    assert compare(path, str(TINY_BOOKS), sample=64, threads=3) == first


def test_shards_are_compared_by_any_name(tmp_path: Path) -> None:
    split = Split(max_tensors=20)
    dynquant.convert(TINY_BOOKS, tmp_path / "s.gguf", recipe=recipe("Q8_0"), split=split, threads=1)
    assert whole(tmp_path / "s.gguf").faults == ()
    change(tmp_path / "s-00002-of-00003.gguf", "blk.2.ffn_up.weight", 3)
    (fault,) = whole(tmp_path / "s-00001-of-00003.gguf").faults
    assert fault.file == tmp_path / "s-00002-of-00003.gguf"


def made_by(path: Path, version: str) -> None:
    """Change dynquant.version, a text of five bytes."""
    content = path.read_bytes()
    at = content.index(b"dynquant.version") + len("dynquant.version") + 4 + 8
    assert content[at : at + 5] == dynquant.__version__.encode()
    path.write_bytes(content[:at] + version.encode() + content[at + 5 :])


def test_of_another_version_what_differs_is_not_said_to_be_wrong(path: Path) -> None:
    made_by(path, "0.0.9")
    change(path, TENSOR, 5)
    found = whole(path)
    assert found.faults == ()
    assert "made by dynquant 0.0.9" in found.unchecked[0]
    assert found.unchecked[1].startswith(f"{TENSOR}: other bytes than this dynquant makes")
    change(path, "blk.0.attn_v.weight", 5)  # F16 is rounded in one way only
    assert [f.tensor for f in whole(path).faults] == ["blk.0.attn_v.weight"]


def test_of_other_programs_the_tensors_of_floats_are_compared(made: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for t in gguf.GGUFReader(made).tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    change(tmp_path / "x.gguf", TENSOR, 5)
    found = whole(tmp_path / "x.gguf")
    assert found.faults == ()
    assert found.unchecked == (
        "quantized tensors against the source: the file is not made by dynquant",
    )
    change(tmp_path / "x.gguf", "output_norm.weight", 0)
    assert [f.tensor for f in whole(tmp_path / "x.gguf").faults] == ["output_norm.weight"]


def test_another_model_is_not_the_source(path: Path) -> None:
    other = load_reference("qwen3").folder
    found = compare(path, str(other), tensors="*")
    assert any("in the source" in f.what for f in found.faults)


def test_tensors_that_the_file_lacks_are_a_warning(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    dynquant.convert(
        TINY_BOOKS, out, recipe=recipe("Q8_0", "rules: [{role: attn_q, layers: 1, drop: true}]")
    )
    found = compare(out, str(TINY_BOOKS), sample=2)
    assert found.warnings == (f"{out}: blk.1.attn_q.weight of the source is not in the file",)


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    means = {
        t.name: rng.uniform(0.1, 9, t.n_per_row).astype(np.float32)
        for t in dynquant.load_model(TINY_BOOKS).tensors
        if t.name.startswith("blk.") and len(t.shape) == 2
    }
    return write_legacy(tmp_path_factory.mktemp("imatrix") / "i.dat", means)


def test_a_file_made_with_an_imatrix_is_compared_with_it_alone(
    imatrix: Path, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "weighed.gguf"
    dynquant.convert(TINY_BOOKS, out, recipe=recipe("IQ2_S", MIXED), imatrix=imatrix, threads=1)
    read = dynquant.load_imatrix(imatrix)
    assert compare(out, str(TINY_BOOKS), imatrix=read, sample=20).faults == ()
    with pytest.raises(VerificationError, match=r"was made with an imatrix, sha256 \w{64}; give"):
        whole(out)
    other = tmp_path / "other.dat"
    other.write_bytes(imatrix.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match=r"and .* was made with"):
        whole(out, imatrix=dynquant.load_imatrix(other))
    with pytest.raises(VerificationError, match="was made without an imatrix"):
        whole(path, imatrix=read)


def test_names_that_no_tensor_has_are_an_error(path: Path) -> None:
    with pytest.raises(VerificationError, match="no tensor is named nothing"):
        compare(path, str(TINY_BOOKS), tensors="nothing*")


def run(*words: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["verify", *map(str, words)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_compares(path: Path) -> None:
    code, out, err = run(path, "--against", TINY_BOOKS, "--sample", 3)
    assert (code, err) == (0, "")
    assert f"against {TINY_BOOKS}: " in out
    change(path, TENSOR, 9)
    code, _, err = run(path, "--against", TINY_BOOKS, "--tensors", "blk.1.*")
    assert code == 1
    assert err.startswith(f"error: {path}: byte ")
    assert f"{TENSOR}: row 9 of 768" in err


@pytest.mark.parametrize("words", [["--sample", "3"], ["--tensors", "*"]])
def test_options_of_a_comparison_without_a_source_are_wrong_usage(
    path: Path, words: list[str]
) -> None:
    code, _, err = run(path, *words)
    assert (code, "--against" in err) == (2, True)
