"""The texts that are part of dynquant: small, known byte by byte, and in no evaluation."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
from evaluated import PROMPTS, TEXTS

from dynquant.calibrate.shipped import shipped_texts
from dynquant.evaluate.prompts import shipped_prompts

CORPUS = Path(str(resources.files("dynquant.calibrate").joinpath("corpus")))

SHA256 = {
    "dynquant-code.txt": "aaef00eec57f318f52cf125ea8279a7ad393ace9a4fc1c614a8913e244c96563",
    "dynquant-english.txt": "dede84f88dc9131df9d00a11d80e018573a43e6a20c2750486e87f53207606f4",
    "dynquant-languages.txt": "3d2b9e1c4246fb0408d1d272c0ad127041a07900c3702f03f225f4102b7d3773",
}
"""A change of a text changes the imatrix of every model: it needs a line in the changelog."""

MAX_BYTES = 1 << 20


def test_the_texts_are_those_that_are_known() -> None:
    assert {text.name: text.sha256 for text in shipped_texts()} == SHA256


def test_each_text_file_is_in_one_of_the_texts() -> None:
    files = sorted(CORPUS.glob("*.txt"))
    assert len(files) > 40
    for file in files:
        assert sum(text.content.count(file.read_bytes()) for text in shipped_texts()) == 1


def test_the_texts_are_small_and_utf8() -> None:
    assert sum(file.stat().st_size for file in CORPUS.iterdir()) < MAX_BYTES
    for text in shipped_texts():
        text.content.decode()


def test_their_licence_is_stated_beside_them() -> None:
    assert "MIT" in (CORPUS / "README.md").read_text("utf-8")


# ---- no evaluation reads them ----

WORDS = 8
"""Words in a row that two texts share only by quotation."""

LETTERS = 30
"""The same for scripts without spaces between words."""


def runs(text: str) -> set[tuple[str, ...] | str]:
    """Return all runs of words and of letters, without case and punctuation."""
    words = re.findall(r"\w+", text.casefold())
    letters = "".join(words)
    found: set[tuple[str, ...] | str] = {
        tuple(words[i : i + WORDS]) for i in range(len(words) - WORDS + 1)
    }
    return found | {letters[i : i + LETTERS] for i in range(len(letters) - LETTERS + 1)}


def shipped_runs() -> set[tuple[str, ...] | str]:
    return runs("\n".join(text.content.decode() for text in shipped_texts()))


EVALUATED = {
    "prompts of eval": "\n".join(shipped_prompts()),
    "texts of the tests of eval": "\n".join((*TEXTS, *PROMPTS)),
}


@pytest.mark.parametrize("name", EVALUATED)
def test_they_share_no_sentence_with_an_evaluation(name: str) -> None:
    assert len(runs(EVALUATED[name])) > 1000
    assert not shipped_runs() & runs(EVALUATED[name])


def test_a_shared_sentence_would_be_found() -> None:
    sentence = shipped_texts()[1].content.decode()[2000:2200]
    assert runs(f"Something else. {sentence.upper()}") & shipped_runs()
