"""Arguments of `verify` that are no GGUF, or several GGUFs: the message says what to type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import inprocess
import pytest
from handmade import recipe
from inprocess import Done
from places import TINY_BOOKS

import dynquant
from dynquant.errors import VerificationError
from dynquant.plan.shards import Split
from dynquant.verification.given import whole_models
from dynquant.verification.verify import verify


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two GGUFs of one model, and the same model in three shards."""
    folder = tmp_path_factory.mktemp("made")
    dynquant.convert(TINY_BOOKS, folder / "small.gguf", recipe=recipe("Q4_0"), threads=1)
    dynquant.convert(TINY_BOOKS, folder / "large.gguf", recipe=recipe("BF16"), threads=1)
    split = Split(max_tensors=17)
    (folder / "s").mkdir()
    dynquant.convert(
        TINY_BOOKS, folder / "s" / "s.gguf", recipe=recipe("Q8_0"), split=split, threads=1
    )
    return folder


def run(*arguments: object) -> Done:
    return inprocess.run("verify", *arguments)


def refused(path: Path | str) -> str:
    with pytest.raises(VerificationError) as e:
        verify(path)
    (message,) = e.value.messages
    return message


@pytest.mark.slow
def test_for_a_folder_of_ggufs_the_message_names_one(made: Path) -> None:
    large, shard = made / "large.gguf", made / "s" / "s-00001-of-00003.gguf"
    assert refused(made) == (
        f"{made}: is a folder; give the GGUF: dynquant verify {large}, one of the 2 in it"
    )
    assert refused(made / "s") == (
        f"{made / 's'}: is a folder; give the GGUF: dynquant verify {shard}"
    )


@pytest.mark.slow
def test_a_folder_without_a_gguf_is_an_error_of_one_line(tmp_path: Path) -> None:
    assert refused(tmp_path) == f"{tmp_path}: is a folder without a GGUF; give the path of a GGUF"
    code, out, err = run(tmp_path)
    assert (code, out, err.count("\n")) == (1, "", 1)


@pytest.mark.parametrize("given", ["", "/model.safetensors"])
def test_for_a_checkpoint_the_message_says_how_to_compare_with_it(given: str) -> None:
    assert refused(f"{TINY_BOOKS}{given}").endswith(
        f"to compare OUT.gguf with it: dynquant verify OUT.gguf --against {TINY_BOOKS}"
    )


@pytest.mark.slow
def test_a_checkpoint_after_a_gguf_is_an_error_with_the_command_to_type(made: Path) -> None:
    file = made / "small.gguf"
    for given in (str(TINY_BOOKS), "hf://org/model"):
        code, out, err = run(file, given)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.endswith(f": dynquant verify {file} --against {given}\n")


def test_for_a_manifest_the_message_names_its_gguf(tmp_path: Path) -> None:
    assert refused("x.gguf.manifest.json").endswith(": dynquant verify x.gguf")


def test_an_address_is_an_error() -> None:
    assert "download it first" in refused("https://huggingface.co/org/model")


@pytest.mark.slow
def test_two_files_are_checked_and_the_command_to_compare_them_is_printed(made: Path) -> None:
    small, large = made / "small.gguf", made / "large.gguf"
    code, out, err = run(large, small)
    verdicts = [line for line in out.splitlines() if ".gguf: " in line]
    assert (code, [v.partition(";")[0] for v in verdicts]) == (
        0,
        ["large.gguf: sound", "small.gguf: sound"],
    )
    assert err == (
        "each file was checked separately; to compare one with the other as its source:"
        f" dynquant verify {small} --against {large}\n"
    )
    assert run(large, small, "--quiet") == (0, "", "")


@pytest.mark.slow
def test_a_fault_in_one_of_several_files_is_exit_code_1(made: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes((made / "small.gguf").read_bytes()[:-1])
    code, out, err = run(damaged, made / "large.gguf", "--json")
    assert (code, [d["sound"] for d in json.loads(out)]) == (1, [False, True])
    assert str(damaged) in err


@pytest.mark.slow
def test_shards_of_one_model_are_checked_once(made: Path) -> None:
    shards = sorted((made / "s").glob("*.gguf"))
    assert len(shards) == 3
    code, out, err = run(*shards)
    assert (code, err, out.count("sound")) == (0, "", 1)
    assert whole_models([*map(str, shards), "x.gguf"]) == [str(shards[0]), "x.gguf"]


def test_against_with_several_files_is_wrong_usage(made: Path) -> None:
    code, _, err = run(made / "small.gguf", made / "large.gguf", "--against", TINY_BOOKS)
    assert (code, "compares one file" in err) == (2, True)


def test_a_file_that_cannot_be_read_has_no_size(tmp_path: Path) -> None:
    shutil.copy(TINY_BOOKS / "config.json", tmp_path / "x.gguf")
    code, out, _ = run(tmp_path / "x.gguf")
    assert (code, "MB" in out, out.splitlines()[-1][:22]) == (1, False, "x.gguf: 1 fault, in 0.")
