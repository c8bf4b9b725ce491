"""`dynquant imatrix MODEL` with wrong input, which is found before torch is imported.

These tests run without torch: an import of the part that needs it is an error here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from inprocess import run
from places import TINY_BOOKS

from dynquant.calibrate import extra
from dynquant.calibrate.given import default_output

TALK = '[{"role": "user", "content": "Why?"}]\n'


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(extra, "PACKAGES", ())
    monkeypatch.setitem(sys.modules, "dynquant.calibrate.imatrix", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(TINY_BOOKS)
    Path("t.txt").write_text("A text.\n")
    Path("t.jsonl").write_text(TALK)


def refusals(*arguments: object) -> list[str]:
    """Return the lines of an error, without `error: `; nothing else may be printed."""
    done = run("imatrix", *arguments)
    lines = done.err.splitlines()
    assert (done.code, done.out) == (1, "")
    assert all(line.startswith("error: ") for line in lines), done.err
    return [line.removeprefix("error: ") for line in lines]


# ---- options ----


@pytest.mark.parametrize(
    "options",
    [("--context", "7"), ("--context", "x"), ("--chunks", "0"), ("--threads", "0"), ("--bogus",)],
)
def test_wrong_options_are_exit_code_2_and_named(options: tuple[str, ...]) -> None:
    done = run("imatrix", "model", *options)
    assert (done.code, done.out) == (2, "")
    assert options[0] in done.err


def test_stdout_is_no_output() -> None:
    done = run("imatrix", "model", "-o", "-")
    assert (done.code, done.out) == (2, "")
    assert "not to stdout; name a file" in done.err


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("model", "--help")])
def test_help_shows_the_model_its_options_and_the_other_commands(arguments: tuple[str]) -> None:
    done = run("imatrix", *arguments)
    assert done.code == 0
    assert done.out.startswith("Usage: dynquant imatrix [OPTIONS] ")
    assert "MODEL" in done.out.splitlines()[0]
    assert "--chat FILE.jsonl" in done.out
    commands = done.out.partition("\nCommands:\n")[2]
    assert "merge" in commands
    assert "make" not in commands


def test_no_argument_shows_the_same_help() -> None:
    done = run("imatrix")
    assert done.code == 2
    assert (done.out + done.err).strip() == run("imatrix", "--help").out.strip()


def test_wrong_usage_names_the_command_as_it_is_written() -> None:
    err = run("imatrix", "--bogus").err
    assert "Usage: dynquant imatrix [OPTIONS] " in err
    assert "Try 'dynquant imatrix -h' for help." in err


def test_the_other_commands_have_their_help() -> None:
    assert run("imatrix", "merge", "-h").out.startswith("Usage: dynquant imatrix merge [OPTIONS] ")


# ---- the model ----


def test_a_model_that_does_not_exist_is_named() -> None:
    assert refusals("none") == ["none: does not exist; give a folder, a GGUF or hf://ORG/MODEL"]


def test_a_wrong_name_of_the_hub_is_refused() -> None:
    (line,) = refusals("hf://tiny")
    assert line.startswith("hf://tiny: is not the name of a model on the Hub; write hf://ORG/MODEL")


def test_the_address_of_a_page_is_refused_with_the_name_to_write() -> None:
    (line,) = refusals("https://huggingface.co/org/tiny")
    assert line.endswith("is the address of a page; write hf://org/tiny")


@pytest.mark.parametrize(
    ("model", "out"),
    [
        ("a/model", "model.imatrix.gguf"),
        ("a/model/", "model.imatrix.gguf"),
        ("a/x.gguf", "x.imatrix.gguf"),
        ("a/x-00002-of-00003.gguf", "x.imatrix.gguf"),
        ("hf://org/tiny-1.5", "tiny-1.5.imatrix.gguf"),
        ("hf://org/tiny@main", "tiny.imatrix.gguf"),
        ("hf://org/tiny/Q8/x.gguf", "x.imatrix.gguf"),
    ],
)
def test_the_default_output_has_the_name_of_the_model(model: str, out: str) -> None:
    assert default_output(model) == Path(out)


# ---- texts ----


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty; use another text"),
        (b" \n", "has nothing but spaces; use another text"),
        (b"\x00\x01\x02", "has a zero byte at byte 0, as no text has; use a text in UTF-8"),
        (b"\x89PNG", "is not UTF-8 at byte 0; convert it to UTF-8"),
    ],
)
@pytest.mark.parametrize("option", ["--text", "--chat"])
def test_a_file_that_is_no_text_is_named(option: str, content: bytes, what: str) -> None:
    Path("x").write_bytes(content)
    assert refusals("model", option, "x") == [f"x: {what}"]


def test_a_model_in_place_of_a_text_is_refused() -> None:
    path = TINY_BOOKS / "model.safetensors"
    (line,) = refusals("model", "--text", path)
    assert line.startswith(f"{path}: is not UTF-8 at byte ")


def test_a_file_that_is_text_and_chat_is_named() -> None:
    (line,) = refusals("model", "--text", "t.jsonl", "--chat", "t.jsonl")
    assert line == "t.jsonl: is given twice, as t.jsonl; name it once"


# ---- the output ----


def files() -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in Path.cwd().rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("out", "named"),
    [
        ("x.gguf", "x.gguf"),
        ("x-00001-of-00002.gguf", "x-00001-of-00002.gguf"),
        ("t.txt", "t.txt"),
        ("./t.jsonl", "t.jsonl"),
        ("link.gguf", "link.gguf"),
        ("copy/model.safetensors", "copy/model.safetensors"),
        ("copy/tokenizer.json", "copy/tokenizer.json"),
        ("copy", "copy"),
        ("u", "u.part"),
        ("v", "v.state"),
    ],
)
def test_an_output_takes_the_place_of_no_input(out: str, named: str) -> None:
    for name in ("x.gguf", "x-00001-of-00002.gguf", "x-00002-of-00002.gguf", "u.part", "v.state"):
        Path(name).write_text("x")
    Path("copy").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        Path("copy", name).write_text("x")
    Path("link.gguf").symlink_to("x.gguf")
    texts = ("--text", "t.txt", "--text", "u.part", "--text", "v.state", "--chat", "t.jsonl")
    model = {"copy": "copy", "x-0": "x-00002-of-00002.gguf"}.get(
        "copy" if out.startswith("copy") else out[:3], "x.gguf"
    )
    before = files()
    message = f"{named}: is a file that this command reads; name another output"
    assert refusals(model, *texts, "-o", out, "--force") == [message]
    assert files() == before


def test_an_output_that_exists_is_kept_without_force() -> None:
    Path("out.gguf").write_text("kept")
    assert refusals("model", "--text", "t.txt", "-o", "out.gguf") == [
        "out.gguf: exists; replace it with --force, or name another output"
    ]
    assert Path("out.gguf").read_text() == "kept"


def test_a_folder_is_no_output() -> None:
    Path("out").mkdir()
    assert refusals("model", "-o", "out", "--force") == ["out: is a folder; name a file"]


def test_an_output_in_a_folder_that_does_not_exist_is_refused() -> None:
    assert refusals("model", "-o", "none/out.gguf") == [
        "none: is not a folder; create it first, or name another output"
    ]


def test_all_that_is_wrong_is_reported_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extra, "PACKAGES", ("no_such_package",))
    Path("bad.jsonl").write_text("{\n[]\n")
    lines = refusals(
        "none", "--text", "t.txt", "--text", "gone", "--chat", "bad.jsonl", "-o", "none/out.gguf"
    )
    assert [line.split(":")[0] for line in lines] == [
        "computing an imatrix needs no_such_package, not installed here",
        "none",
        "gone",
        "bad.jsonl",
        "bad.jsonl",
        "none",
    ]


def test_checks_leave_nothing_behind() -> None:
    before = sorted(os.listdir())  # noqa: PTH208
    refusals("none", "--text", "t.txt")
    assert sorted(os.listdir()) == before  # noqa: PTH208


def test_valid_input_gets_as_far_as_the_model() -> None:
    # The oracle of this file: with nothing wrong, the part that needs torch is imported.
    with pytest.raises(ImportError, match=r"dynquant\.calibrate\.imatrix"):
        run("imatrix", "model", "--text", "t.txt", "--chat", "t.jsonl")
