"""The page of an evaluation: it loads nothing, escapes all names, and has what the document has.

The oracle for the markup is the standard library's HTML parser.
"""

from __future__ import annotations

import builtins
import hashlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from handmade import computed_tensor, model
from handmade_evaluations import COST, answers, evaluation, result, sha, two_texts
from handmade_manifests import write_manifest
from pages import Element, read_page

from dynquant.conversion.write import convert_plan
from dynquant.errors import ReportError
from dynquant.evaluate.results import Evaluation, Example
from dynquant.plan.make import make_plan
from dynquant.recipe.loader import load_recipe
from dynquant.report.charts import pareto_front
from dynquant.report.command import command_text
from dynquant.report.error_map import Scale, error_maps, scale_of
from dynquant.report.evaluation_page import evaluation_html
from dynquant.report.labels import place_labels, short_names
from dynquant.report.svg import check_charts

HOSTILE = """<script>alert(1)</script>"'&amp;--><b>|`x`$\\frac$\n@0@"""
LOOPING = Example(prompt="Say it.", reference="One two\n\n three", answer="One two two", loops=True)


def whole() -> Evaluation:
    """An evaluation with every part that a page can show."""
    files = [
        result(
            f"{name}.gguf",
            size,
            kld,
            domains=two_texts(kld, "wiki.txt", "code.txt"),
            answers=[answers(LOOPING), answers(temperature=0.5)],
            cost=COST,
        )
        for name, size, kld in (("small", 1000, 0.1), ("large", 3000, 0.01), ("poor", 3500, 0.05))
    ]
    return evaluation(*files, texts=("wiki.txt", "code.txt"), warnings=["the text is short"])


@pytest.fixture(scope="module")
def text() -> str:
    return evaluation_html(whole())


@pytest.fixture(scope="module")
def page(text: str) -> Element:
    return read_page(text)


def sections(page: Element) -> dict[str, Element]:
    return {s.attributes.get("id", "warnings"): s for s in page.all("section")}


def cells(section: Element) -> list[list[str]]:
    rows = section.all("tbody")[0].all("tr")
    return [[c.text.strip() for c in row.children] for row in rows]


@pytest.mark.slow
def test_every_part_of_the_document_has_a_section(page: Element) -> None:
    assert list(sections(page)) == [
        *("warnings", "size", "percentiles", "texts", "figures", "pairs", "answers", "errors"),
        *("cost", "repeat"),
    ]
    assert "the text is short" in sections(page)["warnings"].text


@pytest.mark.slow
def test_parts_that_the_document_does_not_have_have_no_section() -> None:
    page = read_page(evaluation_html(evaluation(result("x.gguf", 1000, 0.1))))
    assert list(sections(page)) == ["size", "percentiles", "figures", "errors", "repeat"]
    assert "x.gguf has no manifest beside it." in sections(page)["errors"].text


@pytest.mark.slow
def test_overview_has_size_figures_and_front_in_the_order_of_sizes(page: Element) -> None:
    rows = cells(sections(page)["size"])
    assert [row[0] for row in rows] == ["small.gguf", "large.gguf", "poor.gguf"]
    assert [row[-1] for row in rows] == ["on it", "on it", ""]
    assert rows[0][1:5] == ["1.00 kB", "4.500", "0.100000 [0.090000, 0.110000]", "0.600000"]


@pytest.mark.slow
def test_all_figures_have_intervals_except_the_maximum(page: Element) -> None:
    rows = {row[0]: row[1:] for row in cells(sections(page)["figures"])}
    assert len(rows) == 13
    assert rows["Same top p"][0] == "87.50 % [86.62 %, 88.38 %]"
    assert [name for name, row in rows.items() if "[" not in row[0]] == ["Maximum KLD"]


@pytest.mark.slow
def test_pairs_have_differences_with_signs_and_a_verdict(page: Element) -> None:
    rows = cells(sections(page)["pairs"])
    assert rows[0][0].split() == ["small.gguf", "−", "large.gguf"]
    assert rows[0][1].startswith("+0.090000 [")
    assert rows[0][3] == "large.gguf is closer"


@pytest.mark.slow
def test_answers_are_beside_each_other_with_their_whitespace(page: Element) -> None:
    texts = sections(page)["answers"].all("div", "text")
    assert [t.text for t in texts[:2]] == [LOOPING.reference, LOOPING.answer]
    assert texts[0].all("span", "same")[0].text == "One two"
    assert ["loops" in t.classes for t in texts[:2]] == [False, True]
    assert len(sections(page)["answers"].all("details")) == 3  # those without examples have none
    assert "ends in a repetition" in sections(page)["answers"].text


@pytest.mark.slow
def test_charts_are_images_with_a_description_and_real_text(page: Element) -> None:
    charts = page.all("svg", "chart")
    assert len(charts) == 3
    assert all(c.attributes["role"] == "img" and c.attributes["aria-label"] for c in charts)
    names = [e.text for e in charts[0].all("text", "name")]
    assert names == ["smallsmall.gguf", "largelarge.gguf", "poorpoor.gguf"]  # each with its title
    assert "Pareto front: small.gguf, large.gguf" in charts[0].attributes["aria-label"]


@pytest.mark.slow
def test_ids_are_unique_and_references_have_a_target(text: str) -> None:
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    wanted = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    assert wanted
    assert {a or b for a, b in wanted} <= set(ids)


@pytest.mark.slow
def test_colours_of_charts_are_those_of_the_page(text: str) -> None:
    charts = "".join(re.findall(r"<svg.*?</svg>", text, re.S))
    assert "var(--accent)" in charts
    assert not re.search(r"#[0-9a-f]{6}\b", charts)
    assert set(re.findall(r"var\(--(\w+)\)", charts)) <= set(re.findall(r"--(\w+):", text))


@pytest.mark.slow
def test_page_loads_nothing(text: str) -> None:
    page = read_page(text)
    for tag in ("link", "img", "image", "iframe", "object", "embed", "base", "form", "a", "script"):
        assert not page.all(tag)
    assert len(page.all("style")) == 1
    assert not re.search(r"https?:|//[a-z]|url\((?!#)|@import|src=|href=\"(?!#)", text)


@pytest.mark.slow
def test_same_document_gives_the_same_page(text: str) -> None:
    assert evaluation_html(whole()) == text


@pytest.mark.slow
def test_settings_of_the_users_matplotlib_have_no_effect(text: str) -> None:
    import matplotlib

    settings: Any = {"axes.linewidth": 9, "lines.marker": "x", "svg.fonttype": "path"}
    with matplotlib.rc_context(settings):
        assert evaluation_html(whole()) == text
        assert matplotlib.rcParams["axes.linewidth"] == 9


@pytest.mark.slow
def test_hostile_names_are_escaped() -> None:
    example = Example(prompt=HOSTILE, reference=HOSTILE, answer=f"{HOSTILE}x", loops=False)
    file = result(
        HOSTILE, 1000, 0.1, domains=two_texts(0.1, HOSTILE, "b"), answers=[answers(example)]
    )
    made = evaluation(
        file.model_copy(update={"name": HOSTILE}),
        result("日本語.gguf", 2000, 0.2),
        texts=(HOSTILE, "b"),
        reference_name=HOSTILE,
        command=["dynquant", "eval", HOSTILE],
        warnings=[HOSTILE],
    )
    text = evaluation_html(made)
    page = read_page(text)
    assert not page.all("script")
    assert "alert" not in page.all("style")[0].text
    assert page.all("h1")[0].text == f"2 files compared with {HOSTILE}"
    assert page.all("text", "name")[0].all("title")[0].text == HOSTILE
    assert [t.text for t in page.all("div", "text")] == [HOSTILE, f"{HOSTILE}x"]
    assert page.all("div", "command")[0].text == shlex.join(["dynquant", "eval", HOSTILE])


@pytest.mark.slow
@pytest.mark.parametrize("kld", [0.0, -1e-12, 1e300])
def test_extreme_divergences_have_a_page(kld: float) -> None:
    exact = result("same.gguf", 1000, kld)
    read_page(evaluation_html(evaluation(exact, result("b.gguf", 1000, 0.1))))
    read_page(evaluation_html(evaluation(exact)))


def test_missing_matplotlib_is_reported_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "matplotlib":
            raise ImportError(name)
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ReportError, match=r"pip install 'dynquant-gguf\[eval\]'"):
        check_charts()


# Parts of the page


def test_front_has_the_files_that_no_other_is_better_than() -> None:
    files = [
        result(str(i), size, kld)
        for i, (size, kld) in enumerate([(1, 0.5), (2, 0.1), (2, 0.2), (3, 0.1), (4, 0.01)])
    ]
    assert pareto_front(files) == [True, True, False, False, True]
    assert pareto_front([files[0], files[0]]) == [True, True]


def test_short_names_are_unique_and_have_the_part_that_differs() -> None:
    names = [f"Some-Long-Model-Name-30B-Instruct-{t}.gguf" for t in ("Q4_K_M", "Q4_K_S", "Q8_0")]
    assert short_names(names) == ["…Q4_K_M", "…Q4_K_S", "…Q8_0"]
    assert short_names(["a.gguf", "b.gguf"]) == ["a", "b"]
    assert max(map(len, short_names(["x" * 100, "y" * 100]))) <= 30
    assert short_names(["a\n b"]) == ["a b"]


@pytest.mark.parametrize("n", [1, 4, 12])
def test_labels_of_close_points_do_not_overlap(n: int) -> None:
    points = [(300 + 9.0 * (i % 4), 200 + 7.0 * (i // 4)) for i in range(n)]
    places = place_labels(points, ["a-model-Q4_K_M"] * n, (0, 0, 860, 430))
    boxes = [p.box for p in places]
    for i, a in enumerate(boxes):
        assert a[0] >= 0 and a[1] >= 0 and a[2] <= 860 and a[3] <= 430
        for b in boxes[:i]:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_command_has_names_of_files_and_no_options_for_the_output() -> None:
    command = ["dynquant", "eval", "/home/me/x y.gguf", "--reference=/a/b.gguf", "--cache", "/c"]
    command += ["--top-k", "-1", "-q", "--html", "o.html", "--json", "--text", "t.txt"]
    text = command_text(command)
    assert text == (
        "dynquant eval 'x y.gguf' \\\n  --reference=b.gguf \\\n  --top-k -1 \\\n  --text t.txt"
    )
    assert shlex.split(text)[2] == "x y.gguf"


# The map of errors


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A small GGUF; its manifest is written by the tests."""
    shapes = {f"blk.{i}.{role}.weight": (4, 256) for i in range(2) for role in ("attn_q", "ffn_up")}
    tensors = [computed_tensor(n, *s) for n, s in {"output.weight": (4, 256), **shapes}.items()]
    plan = make_plan(model(*tensors), load_recipe("q8_0"), draft=True)
    convert_plan(plan, tmp_path / "x.gguf", threads=1, manifest="none")
    return tmp_path / "x.gguf"


def evaluated(path: Path) -> Evaluation:
    return evaluation(result("x.gguf", 1000, 0.1, hashlib.sha256(path.read_bytes()).hexdigest()))


@pytest.mark.slow
def test_map_has_a_cell_for_each_tensor_with_an_error(made: Path) -> None:
    errors = {"output.weight": 1e-5, "blk.0.attn_q.weight": 0.01, "blk.1.ffn_up.weight": 0.0}
    write_manifest(made, "q8_0", errors=errors)
    page = read_page(evaluation_html(evaluated(made), [made]))
    table = page.all("table", "map")[0]
    assert [th.text for th in table.all("thead")[0].all("th")] == ["layer", "attn_q", "ffn_up"]
    assert sorted(c.text for c in table.all("div", "c")) == [
        *("Q8_00.0e+00", "Q8_01.0e-2", "output Q8_01.0e-5"),
    ]
    assert "no manifest" not in page.text


def test_manifest_of_another_file_is_not_used(made: Path) -> None:
    write_manifest(made, "q8_0")
    (found,) = error_maps(evaluation(result("x.gguf", 1, 0.1, sha("0"))).files, [made])
    assert (found.grid, found.reason) == (None, "has the manifest of another file beside it")


def test_damaged_manifest_is_reported_and_leaves_the_map_out(made: Path) -> None:
    path = write_manifest(made, "q8_0")
    path.write_text(path.read_text()[:-20])
    (found,) = error_maps(evaluated(made).files, [made])
    assert (found.grid, found.reason) == (None, "has a manifest that cannot be read")


def test_manifest_without_errors_leaves_the_map_out(made: Path) -> None:
    write_manifest(made, "q8_0", errors=None)
    (found,) = error_maps(evaluated(made).files, [made])
    assert (found.grid, found.reason) == (None, "has a manifest without errors")


def test_larger_errors_have_later_colours() -> None:
    scale = Scale(first=-10, step=0.5, n=7)
    numbers = [scale.number(e) for e in (0.0, 1e-9, 1e-5, 4e-5, 1e-3, 1.0)]
    assert numbers == [0, 0, 0, 1, 4, 6]
    assert len(scale.limits) == 7
    assert scale_of([]).n == 1
