"""`ladder` and `convert --reuse`: what is written, printed and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from crashes import contents
from inprocess import run
from places import TINY_BOOKS

import dynquant
from dynquant.errors import DynquantError

RECIPES = ("q8_0", "dynamic-4bit", "f16")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of separate conversions."""
    folder = tmp_path_factory.mktemp("separate")
    for name in RECIPES:
        out = folder / f"tiny-books-{name}.gguf"
        assert run("convert", TINY_BOOKS, "-r", name, "-o", out, "-q").code == 0
    return contents(folder)


def test_a_folder_gets_a_file_for_each_recipe(expected: dict[str, bytes], tmp_path: Path) -> None:
    done = run("ladder", TINY_BOOKS, "--recipes", ",".join(RECIPES), "-o", tmp_path)
    assert done.code == 0
    assert contents(tmp_path) == expected
    lines = done.err.splitlines()
    assert lines[0].startswith("3 files: writing 13.")
    assert [line.partition(": ")[0] for line in lines[1:4]] == [
        str(tmp_path / f"tiny-books-{name}.gguf") for name in RECIPES
    ]
    assert lines[4].startswith("3 files, 13.8 MB")
    again = run("ladder", TINY_BOOKS, "--recipes", ",".join(RECIPES), "-o", tmp_path)
    assert again.code == 0
    assert again.err.count("of it from an earlier run") == 3
    assert contents(tmp_path) == expected


def test_a_pattern_names_the_files(expected: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "tiny-books-{}.gguf"
    assert run("ladder", TINY_BOOKS, "--recipes", "q8_0,f16", "-o", out, "-q").code == 0
    assert contents(tmp_path) == {n: c for n, c in expected.items() if "dynamic" not in n}


def test_sizes_give_the_files_of_convert(tmp_path: Path) -> None:
    done = run("ladder", TINY_BOOKS, "--sizes", "2MB,3MB", "-o", tmp_path / "s-{}.gguf")
    assert done.code == 0
    for size in ("2MB", "3MB"):
        one = tmp_path / f"one-{size}.gguf"
        assert run("convert", TINY_BOOKS, "--target-size", size, "-o", one, "-q").code == 0
        assert (tmp_path / f"s-{size}.gguf").read_bytes() == one.read_bytes()
    assert done.err.count("expected KL divergence") == 2


def test_a_dry_run_prints_the_files_and_writes_nothing(tmp_path: Path) -> None:
    done = run("ladder", TINY_BOOKS, "--sizes", "2MB,3MB", "-o", tmp_path, "--dry-run")
    assert done.code == 0
    head, *rows = [line.split() for line in done.out.splitlines()]
    assert head == ["file", "recipe", "size", "bpw", "expected", "damage", "types"]
    assert [row[:2] for row in rows] == [
        [str(tmp_path / f"tiny-books-{size}MB.gguf"), f"budget-{size}.00MB"] for size in "23"
    ]
    assert not contents(tmp_path)


def test_events_have_all_files(tmp_path: Path) -> None:
    words = ("ladder", TINY_BOOKS, "--recipes", "q8_0,f16", "-o", tmp_path)
    done = run(*words, "--log-format", "json")
    events = [json.loads(line) for line in done.err.splitlines()]
    assert events[0]["recipes"] == ["q8_0", "f16"]
    assert [Path(o["out"]).name for o in events[-1]["outputs"]] == [
        "tiny-books-q8_0.gguf",
        "tiny-books-f16.gguf",
    ]
    assert events[-1]["bytes"] == sum(p.stat().st_size for p in tmp_path.glob("*.gguf"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give one of --recipes"),
        (["--recipes", "q8_0", "--sizes", "2MB"], "give one of --recipes"),
        (["--recipes", "q8_0,,f16"], "has an empty part"),
        (["--recipes", "q8_0,f16,q8_0"], "q8_0: is given twice"),
        (["--recipes", "q8_0", "--recipe", "budget"], "are for --sizes"),
        (["--sizes", "2MB,large"], "--sizes"),
    ],
)
def test_wrong_usage_exits_with_2(words: list[str], message: str, tmp_path: Path) -> None:
    done = run("ladder", TINY_BOOKS, "-o", tmp_path, *words)
    assert done.code == 2
    assert message in done.err
    assert not contents(tmp_path)


def test_problems_of_all_recipes_are_reported_together(tmp_path: Path) -> None:
    done = run("ladder", TINY_BOOKS, "--recipes", "q8_0,nope,budget,IQ2_XS", "-o", tmp_path)
    assert done.code == 1
    assert "'nope' is neither" in done.err
    assert "budget.yaml: leaves types open" in done.err
    assert "IQ2_XS.yaml: needs importance" in done.err
    assert not contents(tmp_path)


def test_an_output_that_is_neither_folder_nor_pattern_is_an_error(tmp_path: Path) -> None:
    done = run("ladder", TINY_BOOKS, "--recipes", "q8_0,f16", "-o", tmp_path / "x.gguf")
    assert done.code == 1
    assert "is neither a folder nor a pattern" in done.err


def test_the_api_takes_recipes_or_sizes(expected: dict[str, bytes], tmp_path: Path) -> None:
    results = dynquant.ladder(TINY_BOOKS, tmp_path, recipes=["q8_0", dynquant.load_recipe("f16")])
    assert [r.path.name for r in results] == ["tiny-books-q8_0.gguf", "tiny-books-f16.gguf"]
    assert all(r.path.read_bytes() == expected[r.path.name] for r in results)
    (sized,) = dynquant.ladder(TINY_BOOKS, tmp_path, sizes=[dynquant.Target(bpw=5)])
    assert sized.path.name == "tiny-books-5bpw.gguf"
    assert sized.bits_per_weight <= 5
    with pytest.raises(DynquantError, match="of recipes or of sizes"):
        dynquant.ladder(TINY_BOOKS, tmp_path)


# ---- convert --reuse ----


def test_reuse_says_what_was_copied_and_why_the_rest_was_not(
    expected: dict[str, bytes], tmp_path: Path
) -> None:
    old, out = tmp_path / "old.gguf", tmp_path / "tiny-books-dynamic-4bit.gguf"
    assert run("convert", TINY_BOOKS, "-r", "Q4_K_M", "-o", old, "-q").code == 0
    done = run("convert", TINY_BOOKS, "-r", "dynamic-4bit", "-o", out, "--reuse", old)
    assert done.code == 0
    assert f"{old}: 36 of 46 tensors copied, 1.67 MB" in done.err
    assert "encoded 10: another type: blk.{0-3}.attn_k.weight" in done.err
    for path in (out, tmp_path / f"{out.name}.manifest.json"):
        assert path.read_bytes() == expected[path.name]
    result = dynquant.convert(TINY_BOOKS, tmp_path / "x.gguf", recipe="Q4_K_M", reuse=out)
    assert result.path.read_bytes() == old.read_bytes()
    assert result.reused is not None
    assert len(result.reused.names) == 36


def test_reuse_without_a_manifest_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    done = run("convert", TINY_BOOKS, "-r", "q8_0", "-o", out, "--reuse", tmp_path / "no.gguf")
    assert done.code == 1
    assert "no.gguf: not found; give the GGUF of an earlier conversion" in done.err
    (tmp_path / "no.gguf").touch()
    done = run("convert", TINY_BOOKS, "-r", "q8_0", "-o", out, "--reuse", tmp_path / "no.gguf")
    assert done.code == 1
    assert "no.gguf.manifest.json: not found" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["no.gguf"]


def test_reuse_of_the_output_itself_is_an_error(tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    assert run("convert", TINY_BOOKS, "-r", "q8_0", "-o", out, "-q").code == 0
    before = contents(tmp_path)
    done = run("convert", TINY_BOOKS, "-r", "f16", "-o", out, "--force", "--reuse", out)
    assert done.code == 1
    assert "is a file of the output that is reused" in done.err
    assert contents(tmp_path) == before
