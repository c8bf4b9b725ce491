"""Evaluations in a release: the section of the card, and the document beside it.

The oracles are a CommonMark parser and coreutils' sha256sum.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from handmade import computed_tensor, model
from handmade_evaluations import answers, evaluation, result, sha, two_texts
from inprocess import run
from markdown_it import MarkdownIt  # rich brings it

from dynquant.conversion.write import convert_plan
from dynquant.errors import ReleaseError
from dynquant.evaluate.results import Evaluation, FileResult
from dynquant.json_documents import document_text
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import load_recipe
from dynquant.release.evaluated import (
    Evaluated,
    check_evaluated,
    evaluation_markdown,
    of_released,
    read_evaluated,
)

HOSTILE = """a|b `c` ```d <script>alert(1)</script> [x](y) *w*\n```\n# no head"""


def headings(markdown: str) -> list[str]:
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    return [after.content for token, after in pairwise(tokens) if token.type == "heading_open"]


def rows_of(markdown: str, number: int) -> list[list[str]]:
    """Return the text of the cells of a table, as a reader sees them."""
    tokens = MarkdownIt("commonmark").enable("table").parse(markdown)
    tables: list[list[list[str]]] = []
    for i, token in enumerate(tokens):
        if token.type == "table_open":
            tables.append([])
        elif token.type == "tr_open":
            tables[-1].append([])
        elif token.type in ("td_open", "th_open"):
            shown = tokens[i + 1].children or []
            tables[-1][-1].append("".join(t.content for t in shown))
    return tables[number]


def whole() -> Evaluation:
    texts = ("wiki.txt", "code.txt")
    file = result("x.gguf", 1000, 0.1, domains=two_texts(0.1, *texts), answers=[answers()])
    return evaluation(file, result("y.gguf", 2000, 0.01), texts=texts, warnings=["too *few*"])


# The section of the card


def test_section_has_figures_texts_answers_and_inputs() -> None:
    markdown = evaluation_markdown(whole())
    assert headings(markdown) == ["Evaluation", "By text", "Answers", "Repeat the evaluation"]
    assert rows_of(markdown, 0)[1] == [
        *("x.gguf", "1.00 kB", "4.500", "0.100000 [0.090000, 0.110000]", "0.600000"),
        *("87.50 % [86.62 %, 88.38 %]", "1.0204"),
    ]
    assert [row[:2] for row in rows_of(markdown, 1)[1:]] == [
        ["x.gguf", "wiki.txt"],
        ["x.gguf", "code.txt"],
    ]
    assert rows_of(markdown, 2)[1][:5] == [
        *("x.gguf", "greedy", "16", "25.00 % [22.50 %, 27.50 %]", "12.50 %"),
    ]
    assert rows_of(markdown, 3)[1:] == [
        *(["text", name, sha("c")] for name in ("wiki.txt", "code.txt")),
        ["reference", "base-f32.gguf", sha("a")],
        *(["file", name, sha("f")] for name in ("x.gguf", "y.gguf")),
    ]


def test_section_has_hashes_versions_warnings_and_the_command() -> None:
    markdown = evaluation_markdown(whole())
    assert "```sh\ndynquant eval x.gguf \\\n  --reference base-f32.gguf\n```\n" in markdown
    for expected in (
        *(f"`{sha(letter)}`" for letter in "acdef9"),
        "- dynquant 0.1.0\n",
        "- llama.cpp of xllamacpp 1.2.3, version b4567\n",
        "- too \\*few\\*\n",
    ):
        assert expected in markdown


def test_section_without_texts_and_answers_has_no_such_tables() -> None:
    markdown = evaluation_markdown(evaluation(result("x.gguf", 1000, 0.1)))
    assert headings(markdown) == ["Evaluation", "Repeat the evaluation"]


def test_hostile_names_are_escaped() -> None:
    file = result("x.gguf", 1000, 0.1, domains=two_texts(0.1, HOSTILE, "b"))
    hostile = evaluation(
        file.model_copy(update={"name": HOSTILE}),
        texts=(HOSTILE, "b"),
        reference_name=HOSTILE,
        command=["dynquant", "eval", HOSTILE],
        warnings=[HOSTILE],
        dynquant=HOSTILE,
    )
    markdown = evaluation_markdown(hostile)
    assert headings(markdown) == ["Evaluation", "By text", "Repeat the evaluation"]
    html = MarkdownIt("commonmark").enable("table").render(markdown)
    assert "<script" not in html
    assert "<a " not in html
    assert "<em>" not in html
    assert {len(row) for row in rows_of(markdown, 0)} == {7}
    shown = " ".join(HOSTILE.replace("|", "¦").split())
    assert rows_of(markdown, 0)[1][0] == shown
    (block,) = [t for t in MarkdownIt().parse(markdown) if t.type == "fence"]
    assert HOSTILE in block.content


# The document


def document(path: Path, *files: FileResult) -> Path:
    path.write_text(document_text(evaluation(*files)))
    return path


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("{", "not JSON"),
        ('{"manifest": 1}', "not an evaluation of dynquant"),
        ('{"evaluation": 2}', "is an evaluation of version 2"),
        ('{"evaluation": 1}', "'dynquant' is missing"),
    ],
)
def test_damaged_evaluation_is_refused_with_its_fault(
    text: str, fault: str, tmp_path: Path
) -> None:
    path = tmp_path / "e.json"
    path.write_text(text)
    with pytest.raises(ReleaseError) as e:
        read_evaluated(path)
    assert f"{path}: {fault}" in str(e.value)


def test_missing_evaluation_is_reported_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"none\.json: cannot be read: No such file"):
        read_evaluated(tmp_path / "none.json")


def given(*files: FileResult) -> Evaluated:
    return Evaluated(Path("e.json"), b"", evaluation(*files))


def test_evaluation_of_another_file_with_the_same_name_is_refused() -> None:
    found = given(result("x.gguf", 1, 0.1), result("y.gguf", 1, 0.1))
    with pytest.raises(ReleaseError) as e:
        check_evaluated(found, {"x.gguf": sha("0"), "y.gguf": sha("f")})
    assert e.value.messages == (
        "e.json: x.gguf has another SHA-256 than the released file of this name; evaluate the"
        " released file",
    )


def test_released_files_without_figures_are_one_warning() -> None:
    released = {name: sha("f") for name in ("x.gguf", "y.gguf", "z.gguf")}
    found = given(result("x.gguf", 1, 0.1))
    assert check_evaluated(found, released) == ["e.json: has no figures of y.gguf and 1 more"]
    assert check_evaluated(found, {"x.gguf": sha("f")}) == []


def test_files_that_are_not_released_are_left_out_of_the_card() -> None:
    found = given(*(result(name, 1, 0.1) for name in ("x.gguf", "y.gguf", "z.gguf")))
    released = {"y.gguf": sha("f"), "README.md": sha("1")}
    assert check_evaluated(found, {"y.gguf": sha("f")}) == [
        "e.json: the card leaves out x.gguf and 1 more, which is not released"
    ]
    assert [f.name for f in of_released(found.evaluation, released).files] == ["y.gguf"]


def test_evaluation_of_other_files_only_is_refused() -> None:
    with pytest.raises(ReleaseError, match="has none of the released files"):
        check_evaluated(given(result("x.gguf", 1, 0.1)), {"other.gguf": sha("f")})


# The release


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, FileResult]:
    """A small GGUF, and its result."""
    plan = make_plan(
        model(computed_tensor("output.weight", 4, 256)), load_recipe("q8_0"), draft=True
    )
    path = tmp_path / "x.gguf"
    convert_plan(plan, path, threads=1)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return path, result("x.gguf", path.stat().st_size, 0.1, sha256)


@pytest.mark.slow
def test_release_has_the_document_its_sum_and_the_figures(
    made: tuple[Path, FileResult], tmp_path: Path
) -> None:
    path = document(tmp_path / "e.json", made[1])
    out = tmp_path / "out"
    done = run("release", made[0], "--evaluation", path, "--folder", out, "--json")
    assert done.code == 0, done.err
    assert "has no figures" not in done.err
    assert (out / "evaluation.json").read_bytes() == path.read_bytes()
    own = hashlib.sha256(path.read_bytes()).hexdigest()
    assert f"{own}  evaluation.json\n" in (out / "SHA256SUMS").read_text()
    listed = {f["name"]: f["sha256"] for f in json.loads(done.out)["files"]}
    assert listed["evaluation.json"] == own
    card = (out / "README.md").read_text("utf-8")
    assert evaluation_markdown(evaluation(made[1])) in card
    assert "[evaluation.json](<evaluation.json>)" in card
    if shutil.which("sha256sum"):
        subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=out, check=True)


@pytest.mark.slow
def test_document_that_is_in_the_folder_already_is_kept(
    made: tuple[Path, FileResult], tmp_path: Path
) -> None:
    path = document(tmp_path / "evaluation.json", made[1])
    content = path.read_bytes()
    assert run("release", made[0], "--evaluation", path).code == 0
    assert path.read_bytes() == content
    assert "evaluation.json" in (tmp_path / "SHA256SUMS").read_text()


@pytest.mark.slow
def test_release_without_evaluation_has_no_section(
    made: tuple[Path, FileResult], tmp_path: Path
) -> None:
    assert run("release", made[0]).code == 0
    assert "## Evaluation" not in (tmp_path / "README.md").read_text("utf-8")
    assert not (tmp_path / "evaluation.json").exists()


@pytest.mark.slow
def test_wrong_evaluation_writes_no_release(made: tuple[Path, FileResult], tmp_path: Path) -> None:
    path = document(tmp_path / "e.json", result("x.gguf", 1, 0.1))
    done = run("release", made[0], "--evaluation", path, "--folder", tmp_path / "out")
    assert done.code == 1
    assert f"error: {path}: x.gguf has another SHA-256" in done.err
    assert not (tmp_path / "out").exists()
