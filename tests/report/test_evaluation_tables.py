"""Tables of an evaluation in terminals of any width: they wrap, and no character is cut off."""

from __future__ import annotations

import io

import pytest
from handmade_evaluations import COST, answers, evaluation, result, two_texts
from rich.console import Console

from dynquant.report.evaluation import evaluation_tables

NAMES = ("a-model-with-a-long-name-Q4_K_M.gguf", "a-model-with-a-long-name-Q4_K_S.gguf")


@pytest.mark.parametrize("width", [40, 60, 80, 120, 250])
def test_names_and_figures_are_whole_at_any_width(width: int) -> None:
    files = [
        result(name, 1000, kld, domains=two_texts(kld, "wiki.txt", "code.txt"), answers=[answers()])
        for name, kld in zip(NAMES, (0.123456, 0.234567), strict=True)
    ]
    files = [file.model_copy(update={"cost": COST}) for file in files]
    found = evaluation(*files, texts=("wiki.txt", "code.txt"))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    console.print(*evaluation_tables(found))
    text = console.file.getvalue()
    assert "…" not in text
    assert all(len(line) <= width for line in text.splitlines())
    assert characters(text) == characters(unbounded(evaluation_tables(found)))


def unbounded(tables: object) -> str:
    console = Console(file=io.StringIO(), width=1000, color_system=None)
    console.print(*tables)
    return console.file.getvalue()


def characters(text: str) -> list[str]:
    """Return all characters but spaces, sorted: folded cells are in another order."""
    return sorted("".join(text.split()))
