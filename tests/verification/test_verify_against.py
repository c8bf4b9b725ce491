"""Files are compared with their source: correct files pass, and differing rows are named."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from agreement import load_reference
from handmade import recipe
from imatrices import write_legacy
from incomplete import Tensor, copy
from places import TINY_BOOKS
from typer.testing import CliRunner

import dynquant
from dynquant.cli import app
from dynquant.errors import VerificationError
from dynquant.plan.shards import Split
from dynquant.quants import ENCODER_REVISION
from dynquant.verification import maker
from dynquant.verification.against import compare
from dynquant.verification.findings import Comparison
from dynquant.verification.other_source import covered
from dynquant.verification.verify import verify

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
    """Change the last byte of a row; return the offset of the row."""
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


def reverse(path: Path, name: str) -> None:
    """Reverse the bytes of a tensor."""
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    with path.open("r+b") as file:
        file.seek(int(tensor.data_offset))
        file.write(tensor.data.tobytes()[::-1])


def compare_all(path: Path, **more: object) -> Comparison:
    return compare(path, str(TINY_BOOKS), tensors="*", threads=1, **more)  # type: ignore[arg-type]


@pytest.mark.slow
def test_correct_file_equals_its_source_encoded_again(made: Path) -> None:
    found = compare_all(made)
    assert (found.faults, found.warnings, found.unchecked) == ((), (), ())
    assert "all rows of 46 tensors" in found.checked[0]
    sampled = compare(made, str(TINY_BOOKS))
    assert (sampled.faults, sampled.unchecked) == ((), ())
    assert "64 ranges of rows of" in sampled.checked[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "family", ["deepseek-v3", "gpt-oss-mxfp4", "qwen3next", "nomic-bert", "glm4moe"]
)
def test_files_of_other_families_are_sound_and_equal_their_sources(
    family: str, tmp_path: Path
) -> None:
    folder, out = load_reference(family).folder, tmp_path / "x.gguf"
    dynquant.convert(folder, out, recipe="dynamic-4bit", threads=1)
    assert verify(out, threads=1).faults == ()
    assert compare(out, str(folder), tensors="*", threads=1).faults == ()


@pytest.mark.slow
def test_kept_blocks_and_merged_latent_attention_are_compared_as_stored(tmp_path: Path) -> None:
    folder, out = load_reference("gpt-oss-mxfp4").folder, tmp_path / "kept.gguf"
    dynquant.convert(folder, out, recipe=recipe("F16", "rules: [{role: experts, keep: true}]"))
    assert compare(out, str(folder), tensors="*", threads=1).faults == ()
    folder, out = load_reference("deepseek-v3").folder, tmp_path / "merged.gguf"
    dynquant.convert(folder, out, recipe=recipe("F16"), mla="merged")
    assert compare(out, str(folder), tensors="*", mla="merged", threads=1).faults == ()
    (fault,) = {f.what for f in compare(out, str(folder), tensors="*", threads=1).faults}
    assert fault == "is not in the source"


@pytest.mark.slow
def test_changed_row_is_named_with_its_offset(path: Path) -> None:
    at = change(path, TENSOR, 77)
    (fault,) = compare_all(path).faults
    assert (fault.tensor, fault.offset, fault.file) == (TENSOR, at, path)
    assert fault.what == f"row 77 of 768 differs from {TINY_BOOKS} encoded as Q4_0, effort fast"
    assert compare(path, str(TINY_BOOKS), tensors="blk.0.*").faults == ()
    assert len(compare(path, str(TINY_BOOKS), tensors="blk.1.ffn_*").faults) == 1


@pytest.mark.slow
def test_sample_of_one_range_finds_a_tensor_that_is_all_wrong(path: Path) -> None:
    reverse(path, TENSOR)
    (fault,) = compare(path, str(TINY_BOOKS), tensors=TENSOR, sample=1).faults
    assert "of the compared rows differ" in fault.what


@pytest.mark.slow
def test_sample_is_the_same_every_time(path: Path) -> None:
    reverse(path, "token_embd.weight")
    first = compare(path, str(TINY_BOOKS), sample=64, threads=1)
    assert first.faults
    assert compare(path, str(TINY_BOOKS), sample=64, threads=3) == first


@pytest.mark.slow
def test_shards_are_compared_by_any_of_their_names(tmp_path: Path) -> None:
    split = Split(max_tensors=20)
    dynquant.convert(TINY_BOOKS, tmp_path / "s.gguf", recipe=recipe("Q8_0"), split=split, threads=1)
    assert compare_all(tmp_path / "s.gguf").faults == ()
    change(tmp_path / "s-00002-of-00003.gguf", "blk.2.ffn_up.weight", 3)
    (fault,) = compare_all(tmp_path / "s-00001-of-00003.gguf").faults
    assert fault.file == tmp_path / "s-00002-of-00003.gguf"


def made_by(path: Path, version: str) -> None:
    """Change dynquant.version, a text of five bytes."""
    content = path.read_bytes()
    at = content.index(b"dynquant.version") + len("dynquant.version") + 4 + 8
    assert content[at : at + 5] == dynquant.__version__.encode()
    path.write_bytes(content[:at] + version.encode() + content[at + 5 :])


@pytest.mark.slow
def test_a_file_of_another_version_with_the_same_encoders_is_compared(path: Path) -> None:
    made_by(path, "0.0.9")
    assert compare_all(path).faults == ()
    change(path, TENSOR, 5)
    assert [f.tensor for f in compare_all(path).faults] == [TENSOR]


@pytest.mark.slow
def test_quantized_tensors_of_another_encoder_revision_are_not_compared(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maker, "ENCODER_REVISION", ENCODER_REVISION + 1)
    change(path, TENSOR, 5)
    found = compare_all(path)
    assert found.faults == ()
    (message,) = found.unchecked
    assert f"with encoder revision {ENCODER_REVISION}, and this dynquant" in message
    assert f"has revision {ENCODER_REVISION + 1}" in message
    change(path, "blk.0.attn_v.weight", 5)  # F16 has only one correct rounding
    assert [f.tensor for f in compare_all(path).faults] == ["blk.0.attn_v.weight"]


@pytest.mark.slow
def test_only_float_tensors_of_other_programs_are_compared(made: Path, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for t in gguf.GGUFReader(made).tensors:
        writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    change(tmp_path / "x.gguf", TENSOR, 5)
    found = compare_all(tmp_path / "x.gguf")
    assert found.faults == ()
    assert found.unchecked == (
        "quantized tensors against the source: the file was not made by dynquant",
    )
    change(tmp_path / "x.gguf", "output_norm.weight", 0)
    assert [f.tensor for f in compare_all(tmp_path / "x.gguf").faults] == ["output_norm.weight"]


@pytest.mark.slow
def test_another_model_is_one_fault(path: Path) -> None:
    other = load_reference("llama-2").folder
    found = compare(path, str(other), tensors="*")
    (fault,) = found.faults
    assert fault.what == (
        f"is another model than {other}: its architecture is qwen3, that of {other} is llama;"
        " it has no manifest that names its source"
    )
    assert found.checked == ()
    assert found.unchecked == (f"46 tensors against {other}: it is another model",)
    code, _, err = run(path, "--against", other)
    assert (code, err) == (1, f"error: {fault}\n")


@pytest.mark.slow
def test_another_model_of_the_same_architecture_is_one_fault(path: Path) -> None:
    (fault,) = compare(path, str(load_reference("qwen3").folder)).faults
    assert re.search(r": 46 of 46 tensors differ in name or shape, such as token_embd", fault.what)


def changed_weights(path: Path, out: Path, n: int) -> Path:
    """Copy an F32 file; all weights of the first n tensors are changed a little."""

    def change_some(tensors: list[Tensor]) -> list[Tensor]:
        return [(m, v * np.float32(1.5), t) for m, v, t in tensors[:n]] + tensors[n:]

    return copy(path, out, change_some)


@pytest.fixture(scope="module")
def f32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An F32 GGUF as the source, and a file with a manifest that was made from it."""
    folder = tmp_path_factory.mktemp("f32")
    dynquant.convert(TINY_BOOKS, folder / "f32.gguf", recipe="f32", threads=1)
    command = ["convert", str(folder / "f32.gguf"), "-o", str(folder / "o.gguf"), "-r", "q8_0"]
    assert CliRunner().invoke(app, command).exit_code == 0
    return folder / "f32.gguf"


@pytest.mark.slow
def test_another_source_of_the_same_shapes_is_one_fault_that_names_the_right_one(
    f32: Path, tmp_path: Path
) -> None:
    out, other = f32.with_name("o.gguf"), changed_weights(f32, tmp_path / "other.gguf", 40)
    source = json.loads(out.with_name("o.gguf.manifest.json").read_text())["sources"][0]
    (fault,) = compare(out, str(other), tensors="*", threads=1).faults
    assert fault.what.startswith(
        f"{other} is not the source that this was made from: 40 of 46 compared tensors differ, the"
    )
    assert fault.what.endswith(
        f"its manifest names f32.gguf ({source['bytes']:,} bytes, blake3 {source['blake3']})"
    )
    (sampled,) = compare(out, str(other), threads=1).faults
    assert "is not the source that this was made from" in sampled.what


@pytest.mark.slow
def test_many_tensors_that_differ_are_one_fault_with_their_names(f32: Path, tmp_path: Path) -> None:
    other = changed_weights(f32, tmp_path / "other.gguf", 12)
    (fault,) = compare(f32.with_name("o.gguf"), str(other), tensors="*", threads=1).faults
    assert fault.what.startswith(
        f"12 of 46 compared tensors differ from {other}: token_embd.weight"
    )
    few = changed_weights(f32, tmp_path / "few.gguf", 3)
    assert len(compare(f32.with_name("o.gguf"), str(few), tensors="*", threads=1).faults) == 3


@pytest.mark.slow
def test_keys_that_are_not_the_models_are_a_warning(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    changed = {"qwen3.context_length": "77", "qwen3.rope.freq_base": "1.5", "qwen3.own": "x"}
    dynquant.convert(TINY_BOOKS, out, recipe="q8_0", set_keys=changed)
    (warning,) = compare(out, str(TINY_BOOKS), sample=1).warnings
    assert "qwen3.context_length is 77, and 2048 by the model" in warning
    assert "qwen3.rope.freq_base is 1.5, and 10000.0 by the model" in warning
    assert "qwen3.own is 'x', and the model has none" in warning


def test_keys_are_compared_as_a_file_holds_them(made: Path) -> None:
    found = compare(made, str(TINY_BOOKS), sample=1)
    assert found.warnings == ()
    assert found.checked[1] == f"against {TINY_BOOKS}: 19 keys"


def test_compared_share_is_reported_with_the_way_to_compare_all(made: Path) -> None:
    total = sum(int(np.prod(t.shape)) for t in gguf.GGUFReader(made).tensors)
    whole, _ = compare_all(made).checked
    assert f"all rows of 46 tensors, {total:,} of {total:,} weights (100%), " in whole
    assert whole.endswith("MB encoded again")
    hint = r"\d MB encoded again; --tensors '\*' compares all$"
    sampled, _ = compare(made, str(TINY_BOOKS), sample=2).checked
    found = re.search(
        rf"2 ranges .* ([\d,]+) of {total:,} weights \(([\d.]+)%\), .*{hint}", sampled
    )
    assert found
    share = 100 * int(found[1].replace(",", "")) / total
    assert float(found[2]) == pytest.approx(share, rel=0.01)
    one, _ = compare(made, str(TINY_BOOKS), tensors=TENSOR).checked
    assert re.search(rf"all rows of 1 tensor, .*{hint}", one)


def test_rows_that_two_ranges_share_count_once() -> None:
    assert covered({0: [(4, 8), (0, 5), (6, 7)], 3: [(1, 2)]}) == {0: 8, 3: 1}


@pytest.mark.slow
def test_tensors_missing_from_the_file_are_a_warning(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    dynquant.convert(
        TINY_BOOKS, out, recipe=recipe("Q8_0", "rules: [{role: attn_q, layers: 1, drop: true}]")
    )
    found = compare(out, str(TINY_BOOKS), sample=2)
    assert found.warnings == (f"{out}: blk.1.attn_q.weight is in the source, but not in the file",)


@pytest.fixture(scope="module")
def imatrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    means = {
        t.name: rng.uniform(0.1, 9, t.n_per_row).astype(np.float32)
        for t in dynquant.load_model(TINY_BOOKS).tensors
        if t.name.startswith("blk.") and len(t.shape) == 2
    }
    return write_legacy(tmp_path_factory.mktemp("imatrix") / "i.dat", means)


@pytest.mark.slow
def test_comparison_requires_the_imatrix_of_the_file(
    imatrix: Path, path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "weighted.gguf"
    dynquant.convert(TINY_BOOKS, out, recipe=recipe("IQ2_S", MIXED), imatrix=imatrix, threads=1)
    read = dynquant.load_imatrix(imatrix)
    assert compare(out, str(TINY_BOOKS), imatrix=read, sample=20).faults == ()
    with pytest.raises(
        VerificationError, match=r"was made with an imatrix, sha256 \w{64}; name it"
    ):
        compare_all(out)
    other = tmp_path / "other.dat"
    other.write_bytes(imatrix.read_bytes()[:-1] + b"x")
    with pytest.raises(VerificationError, match=r"but .* was made with"):
        compare_all(out, imatrix=dynquant.load_imatrix(other))
    with pytest.raises(VerificationError, match="was made without an imatrix"):
        compare_all(path, imatrix=read)


def test_glob_that_matches_no_tensor_is_an_error(path: Path) -> None:
    with pytest.raises(VerificationError, match=r"no tensor name matches 'nothing\*'"):
        compare(path, str(TINY_BOOKS), tensors="nothing*")


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["verify", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.slow
def test_command_compares_with_the_source(path: Path) -> None:
    code, out, err = run(path, "--against", TINY_BOOKS, "--sample", 3)
    assert (code, err) == (0, "")
    assert f"against {TINY_BOOKS}: " in out
    change(path, TENSOR, 9)
    code, _, err = run(path, "--against", TINY_BOOKS, "--tensors", "blk.1.*")
    assert code == 1
    assert err.startswith(f"error: {path}: byte ")
    assert f"{TENSOR}: row 9 of 768" in err


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--sample", "3"], ["--tensors", "*"]])
def test_options_of_a_comparison_without_against_are_wrong_usage(
    path: Path, options: list[str]
) -> None:
    code, _, err = run(path, *options)
    assert (code, "--against" in err) == (2, True)


@pytest.mark.slow
def test_verify_with_against_gives_the_results_of_both(path: Path) -> None:
    change(path, TENSOR, 9)
    alone, compared = verify(path, threads=1), compare_all(path)
    assert verify(path, TINY_BOOKS, tensors="*", threads=1) == alone.with_comparison(compared)
    assert (alone.is_sound, len(compared.faults)) == (True, 1)


@pytest.mark.slow
def test_verify_accepts_the_path_of_an_imatrix(imatrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    dynquant.convert(TINY_BOOKS, out, recipe=recipe("IQ2_S", MIXED), imatrix=imatrix, threads=1)
    assert verify(out, TINY_BOOKS, imatrix=imatrix, sample=4).is_sound


@pytest.mark.slow
def test_verify_reports_the_progress_of_both_steps(path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    verify(path, TINY_BOOKS, sample=3, threads=1, progress=lambda *now: seen.append(now))
    assert list(dict.fromkeys(step for step, _, _ in seen)) == ["reading", "comparing"]
    last = {step: (done, total) for step, done, total in seen}
    assert all(done == total for done, total in last.values())
    assert last["reading"][1] == path.stat().st_size


@pytest.mark.parametrize("options", [{"sample": 3}, {"tensors": "*"}, {"imatrix": "i.dat"}])
def test_options_of_a_comparison_without_against_are_an_error(
    path: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(VerificationError, match="name the model to compare with"):
        verify(path, **options)


@pytest.mark.slow
def test_missing_imatrix_is_an_error_before_the_file_is_read(imatrix: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    dynquant.convert(TINY_BOOKS, out, recipe=recipe("IQ2_S", MIXED), imatrix=imatrix, threads=1)
    seen: list[tuple[str, int, int]] = []
    with pytest.raises(VerificationError, match="was made with an imatrix"):
        verify(out, TINY_BOOKS, progress=lambda *now: seen.append(now))
    assert seen == []


def test_damaged_header_is_a_fault_with_against_too(path: Path) -> None:
    path.write_bytes(b"GGUF")
    found = verify(path, TINY_BOOKS)
    assert (found.is_sound, found.files) == (False, ())


def test_sample_of_no_ranges_is_an_error(path: Path) -> None:
    with pytest.raises(VerificationError, match="at least one range"):
        verify(path, TINY_BOOKS, sample=0)
