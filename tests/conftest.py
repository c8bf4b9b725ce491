"""Markers of the tests, and how to run a part of them.

    pytest                            all tests
    pytest -m "not slow"              the core behavior of every part, in half a minute on two cores
    pytest -m "not oracle"            tests that do not need the xllamacpp wheel
    pytest tests/quants -m "not slow" one part

slow:   a test that takes more than about half a second, or one of many cases of a test whose other
        cases are the fast subset (`slow_except` in support/subsets.py)
oracle: a test that compares with llama.cpp, through the xllamacpp wheel
shared: a test that reads real files from ../shared/data, which most checkouts do not have; it is
        skipped without them

`pytest --without-posix tests/conversion` runs tests with the calls that Windows has, and its rules
for files that are open (support/without_posix.py).

A test has its markers in its own file, as decorators or as `pytestmark`. Tests do not assert
seconds: they count calls, rows or bytes. scripts/bench shows how long something takes.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--without-posix", action="store_true", help="use the portable calls instead of POSIX's"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--without-posix"):
        from without_posix import forget_posix

        forget_posix()
