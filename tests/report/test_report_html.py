"""The page of a plan: it shows every tensor, loads nothing, and escapes all names.

The oracle for the markup is the standard library's HTML parser; for the contrast, WCAG's formula.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from handmade import computed_tensor, model, names, recipe, small_plan
from pages import Element, read_page

from dynquant.arch.base import Model
from dynquant.errors import ReportError
from dynquant.figures import size_text
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.quants.table import ALL, KEPT
from dynquant.recipe.loader import parse_recipe
from dynquant.report.colours import THEMES, contrast, ink, shade
from dynquant.report.grid import SMALL, make_grid
from dynquant.report.html import check_page, plan_html, write_page

FALLBACK = "rules:\n  - {role: token_embd, type: Q4_K, note: why not}\nfallback: [Q8_0]\n"
HOSTILE = """<script>alert(1)</script>"'&amp;--><b>"""


def page_of(plan: Plan) -> Element:
    return read_page(plan_html(plan, plan.data_bytes))


def plan_of(*tensors: tuple[str, tuple[int, ...]], default: str = "Q8_0", more: str = "") -> Plan:
    made = [computed_tensor(name, *shape) for name, shape in tensors]
    return make_plan(model(*made), recipe(default, more), draft=True)


def experts_plan() -> Plan:
    """A tiny mixture of experts with latent attention, and one tensor that needs the fallback."""
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (8, 256)),
        ("output_norm.weight", (256,)),
        ("output.weight", (8, 256)),
    ]
    for layer in range(3):
        at = f"blk.{layer}."
        shapes += [
            (f"{at}ffn_norm.weight", (256,)),
            (f"{at}attn_kv_a_mqa.weight", (8, 256)),
            (f"{at}attn_k_b.weight", (2, 4, 128)),
            (f"{at}attn_q.bias", (256,)),
            (f"{at}attn_q.weight", (8, 256)),
        ]
        shapes += [(f"{at}ffn_{r}_exps.weight", (2, 4, 256)) for r in ("down", "gate", "up")]
        shapes += [(f"{at}ffn_up_shexp.weight", (4, 256)), (f"{at}ffn_gate_inp.weight", (2, 256))]
    return plan_of(*shapes, default="Q4_K", more="fallback: [Q8_0]\n")


PLANS = {"small": small_plan(more=FALLBACK), "experts": experts_plan()}


@pytest.fixture(params=PLANS)
def plan(request: pytest.FixtureRequest) -> Plan:
    return PLANS[request.param]


def cells(page: Element) -> list[Element]:
    return page.all("div", "c")


@pytest.mark.slow
def test_every_tensor_has_one_cell(plan: Plan) -> None:
    found = [cell.all("b")[0].text for cell in cells(page_of(plan))]
    assert Counter(found) == Counter(t.name for t in plan.tensors)


@pytest.mark.slow
def test_cell_shows_type_name_shape_bytes_bits_and_rule(plan: Plan) -> None:
    by_name = {t.name: t for t in plan.tensors}
    for cell in cells(page_of(plan)):
        tip = cell.all("span", "tip")[0].text
        t = by_name[cell.all("b")[0].text]
        label = cell.text.removesuffix(tip)
        assert label in (t.type.name, f"{t.name.removesuffix('.weight')} {t.type.name}")
        lines = [line.strip() for line in tip.splitlines()]
        assert lines[0] == t.name
        assert lines[1].endswith(f"{t.n_weights:,} weights")
        assert len(t.shape) == 1 or lines[1].startswith(" × ".join(map(str, t.shape)))
        size = f"{t.n_bytes:,} bytes, {t.type.bpw:g} bits per weight"
        assert lines[2] == f"{t.type.name}: {size}"
        assert lines[-1].startswith(f"rule: {t.rule}")
        assert ("fallback for" in tip) == (t.instead_of is not None)


@pytest.mark.slow
def test_fallback_is_marked_with_its_cost() -> None:
    found = [c for c in cells(page_of(experts_plan())) if "f" in c.classes]
    assert {c.all("b")[0].text for c in found} == {f"blk.{i}.attn_k_b.weight" for i in range(3)}
    assert all("fallback for Q4_K: +4 bits per weight" in c.text for c in found)


@pytest.mark.slow
def test_rule_is_shown_with_its_note() -> None:
    page = page_of(PLANS["small"])
    assert any("rule: recipes/hand.yaml:3: why not" in c.text for c in cells(page))


@pytest.mark.slow
def test_every_cell_can_be_reached_by_keyboard(plan: Plan) -> None:
    assert all(cell.attributes["tabindex"] == "0" for cell in cells(page_of(plan)))


@pytest.mark.slow
def test_bars_add_up_to_the_tensors(plan: Plan) -> None:
    parts = [e for e in page_of(plan).all("span") if "data-bytes" in e.attributes]
    assert sum(int(e.attributes["data-bytes"]) for e in parts) == plan.tensor_bytes


@pytest.mark.slow
def test_head_shows_model_recipe_size_and_bits(plan: Plan) -> None:
    head = page_of(plan).all("header")[0].text
    assert "Handmade by hand" in head
    assert "architecture llama" in head
    assert f"{plan.bits_per_weight:.3f}" in head
    assert size_text(plan.tensor_bytes) in head


@pytest.mark.slow
def test_types_are_counted_and_sorted_by_bits(plan: Plan) -> None:
    rows = [
        row.all("td") for row in page_of(plan).all("table", "list")[0].all("tbody")[0].all("tr")
    ]
    tags = [e.text for e in page_of(plan).all("table", "list")[0].all("span", "tag")]
    assert dict(zip(tags, (int(r[1].text) for r in rows), strict=True)) == plan.type_counts
    assert tags == sorted(tags, key=lambda name: ALL[name].bpw)


@pytest.mark.slow
def test_warnings_and_refusals_are_on_the_page() -> None:
    plan = plan_of(("blk.0.attn_q.weight", (8, 256)), default="IQ1_S")
    assert len(plan.refusals) == 1
    page = page_of(plan)
    assert f"cannot be converted: {plan.refusals[0]}" in page.text
    assert all(warning in page_of(experts_plan()).text for warning in experts_plan().warnings)


@pytest.mark.slow
def test_page_loads_nothing(plan: Plan) -> None:
    text = plan_html(plan, plan.data_bytes)
    page = read_page(text)
    for tag in ("link", "img", "iframe", "object", "embed", "base", "form", "a", "video", "audio"):
        assert not page.all(tag)
    loading = {"src", "href", "action", "background", "poster", "data", "srcset", "cite"}
    stack = [page]
    while stack:
        element = stack.pop()
        assert not loading & element.attributes.keys()
        stack += element.children
    assert not re.search(r"https?:|//[a-z]|url\(|@import|fetch\(|XMLHttpRequest|import\(", text)


@pytest.mark.slow
def test_same_plan_gives_the_same_page(plan: Plan) -> None:
    assert plan_html(plan, 1) == plan_html(plan, 1)


@pytest.mark.slow
def test_hostile_names_are_escaped() -> None:
    text = f"name: '{HOSTILE.replace(chr(39), chr(39) * 2)}'\ndescription: |\n  {HOSTILE}\n"
    text += f"default: Q8_0 # {HOSTILE}\n"
    made = parse_recipe(text, f"{HOSTILE}.yaml", "x")
    shapes = {f"{HOSTILE}.weight": (2, 32), f"blk.0.{HOSTILE}.weight": (2, 32)}
    tensors = tuple(computed_tensor(n, *s) for n, s in shapes.items())
    hostile = Model(HOSTILE, model().keys, tensors, {HOSTILE: HOSTILE}, deviations=(HOSTILE,))
    page = page_of(make_plan(hostile, made))
    assert len(page.all("script")) == 1
    assert "alert" not in page.all("script")[0].text
    assert "alert" not in page.all("style")[0].text
    assert {c.all("b")[0].text for c in cells(page)} == set(shapes)
    assert not any(HOSTILE in v for e in cells(page) for v in e.attributes.values())
    assert page.all("h1")[0].text.endswith(HOSTILE)
    assert page.all("pre")[0].text.strip() == text.strip()


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("name", [*ALL, *KEPT])
def test_types_are_readable_on_their_colours(name: str, theme: str) -> None:
    ground = shade((ALL | KEPT)[name], theme)
    assert contrast(ground, ink(ground)) >= 4.5  # WCAG 2 AA for text


def test_contrast_is_computed_as_by_wcag() -> None:
    # The usual two examples: black on white, and the lightest grey on white that passes.
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize(("theme", "sign"), [("light", -1), ("dark", 1)])
def test_more_bits_have_more_contrast_with_the_page(theme: str, sign: int) -> None:
    quantized = sorted((t for t in ALL.values() if not t.is_float), key=lambda t: t.bpw)
    white = (255, 255, 255)
    lights = [1 / contrast(shade(t, theme), white) for t in quantized]
    assert lights == sorted(lights, key=lambda light: sign * light)


def test_columns_follow_the_activations_for_any_order_of_the_file() -> None:
    groups = dict(make_grid(experts_plan().tensors).groups)
    assert list(groups) == ["attention", "experts", "shared_experts", SMALL]
    assert groups["attention"] == ("attn_q", "attn_kv_a_mqa", "attn_k_b")
    assert groups["experts"] == ("ffn_gate_exps", "ffn_up_exps", "ffn_down_exps")
    assert groups[SMALL] == ("ffn_norm", "attn_q.bias", "ffn_gate_inp")


def test_parts_of_a_model_have_separate_rows() -> None:
    plan = plan_of(
        ("enc.blk.10.attn_q.weight", (2, 32)),
        ("enc.blk.2.attn_q.weight", (2, 32)),
        ("dec.blk.2.cross_attn_q.weight", (2, 32)),
        ("dec.blk.2.attn_q.weight", (2, 32)),
        ("dec.output_norm.weight", (32,)),
        ("v.patch_embd.weight", (2, 32)),
    )
    grid = make_grid(plan.tensors)
    assert [row.label for row in grid.rows] == ["enc 2", "enc 10", "dec 2"]
    assert dict(grid.groups) == {"attention": ("attn_q", "cross_attn_q")}
    assert [t.name for t in grid.before] == ["v.patch_embd.weight"]
    assert [t.name for t in grid.after] == ["dec.output_norm.weight"]


@pytest.mark.slow
def test_names_with_the_same_row_and_column_have_a_cell_each() -> None:
    plan = plan_of(("blk.0.odd", (2, 32)), ("blk.0.odd.weight", (2, 32)), ("blk.00.odd", (2, 32)))
    assert len(cells(page_of(plan))) == 3


@pytest.mark.slow
def test_model_without_layers_has_a_page() -> None:
    assert len(cells(page_of(plan_of(("token_embd.weight", (2, 32)))))) == 1


def test_page_is_written_whole_and_not_over_another(tmp_path: Path) -> None:
    out = tmp_path / "plan.html"
    write_page("é\n", out, force=False)
    assert out.read_bytes() == "é\n".encode()
    with pytest.raises(ReportError, match="exists; replace it with --force"):
        write_page("other", out, force=False)
    assert out.read_text(encoding="utf-8") == "é\n"
    write_page("other", out, force=True)
    assert out.read_text() == "other"
    assert names(tmp_path) == ["plan.html"]


def test_page_must_not_be_a_model_or_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(ReportError, match=r"ends in \.html"):
        check_page(tmp_path / "model.safetensors", force=True)
    with pytest.raises(ReportError, match="not a regular file"):
        check_page(tmp_path / "folder.html", force=True)
    with pytest.raises(ReportError, match="is not a folder"):
        check_page(tmp_path / "nowhere" / "plan.html", force=True)


@pytest.mark.slow
def test_missing_parts_of_the_model_are_on_the_page() -> None:
    plan = replace(small_plan(), missing=("somewhere: no tokenizer; add one",))
    page = read_page(plan_html(plan, None))
    assert "cannot be converted: somewhere: no tokenizer; add one" in page.text
    assert "file size unknown" in page.text
