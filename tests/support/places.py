"""Where tests find their files."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""

TESTS = ROOT / "tests"
DATA = TESTS / "data"
REFERENCES = TESTS / "references"
TINY_BOOKS = DATA / "tiny-books"
VOCABULARIES = DATA / "vocabularies"

SHARED = ROOT.parent / "shared" / "data"
"""Real files that the repository does not carry; most checkouts have none."""


def shared(path: str) -> Path:
    """Return a file of ../shared/data, or skip the test."""
    found = SHARED / path
    if not found.exists():
        pytest.skip(f"{path} is in ../shared/data, which is not beside this checkout")
    return found
