"""Messages, help, comments, documentation and tests use the words of the field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import ROOT

PRIVATE = {
    r"(?<!\.)\btells?\b(?!\()|\btold\b|\btelling\b": "report, warn, state, record",
    r"(?<![\"`])\black(s|ed|ing)?\b(?![\"`])": "is missing, has no",
    r"\b(?-i:what (is|are) none|(?<!there )(is|are) none)\b": "is not valid, is not one",
    r"\bturn(ed|s)? (it |them )?round\b|\bturned\b": "transposed, reversed",
    r"\bweigh(s|ed)?( all| both)? alike\b": "weighted equally, unweighted",
    r"\banew\b": "again, restart",
    r"\bbroken off\b|\bbreaks? off\b|\bbroke off\b": "interrupted",
    r"\bgo(es)? on\b|\bwent on\b": "resume, continue",
    r"\bto be had\b": "supported, available",
    r"\bgates? (does|do|did) not hold\b|\bboth hold\b": "the check failed, both checks pass",
    r"\bby itself\b|\bby themselves\b": "standalone, separately, automatically",
    r"\bpass(es)? by\b": "is streamed",
    r"\bmend(s|ed|ing)?\b|\bheal(s|ed)?\b": "fix",
    r"\botherwise (of|than)\b|\b(says?|said|tells) otherwise\b": "differently from",
    r"\ba word of\b|\bwhat of (it|them)\b|\bof (its|their|his) own\b": "(say the thing)",
    r"\bstrangers?\b": "untrusted input, other people",
    r"\bthe peer('s)?\b|\bpeers\b": "llama.cpp (name it)",
    r"\bdecides? the bytes\b": "determine the output",
}
"""Private words as regular expressions, each with what to write instead."""

ANY = re.compile("|".join(PRIVATE), re.IGNORECASE)

IN_IDENTIFIER = re.compile(r"(?<=[^\W_])_+(?=[^\W_])")
"""Underscores between the words of an identifier; names of tests are sentences."""

EXEMPT = {
    "grids.h": "generated tables",
    "test_english.py": "this list",
}

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
FILES = sorted(
    path
    for path in [
        *(ROOT / "dynquant").rglob("*.py"),
        *(ROOT / "dynquant").rglob("*.[ch]"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "recipes").rglob("*.yaml"),
        *(ROOT / ".github").rglob("*.yml"),
        *(ROOT / "scripts").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        *(page for page in PAGES if page.exists()),
    ]
    if path.name not in EXEMPT
)


def private_words(path: Path) -> list[str]:
    """Return a line for each private word in a file: where it is, and what to write instead."""
    found: list[str] = []
    text = path.read_text("utf-8")
    if "tests" in path.relative_to(ROOT).parts:
        text = IN_IDENTIFIER.sub(" ", text)
    if not ANY.search(text):
        return found
    for number, line in enumerate(text.splitlines(), 1):
        for pattern, better in PRIVATE.items():
            if match := re.search(pattern, line, re.IGNORECASE):
                place = f"{path.relative_to(ROOT)}:{number}"
                found.append(f"{place}: {match[0]!r}; write: {better}\n    {line.strip()}")
    return found


@pytest.mark.slow
def test_no_private_words() -> None:
    problems = [problem for path in FILES for problem in private_words(path)]
    assert not problems, "\n".join(problems)


def test_private_words_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("The plan says so.\nThe rest is told, and weighs alike.\n")
    assert len(private_words(page)) == 2
    names = tmp_path / "tests" / "test_names.py"
    names.parent.mkdir()
    names.write_text("def test_failed_call_is_told_and_run_is_resumed() -> None: ...\n")
    assert len(private_words(names)) == 1
