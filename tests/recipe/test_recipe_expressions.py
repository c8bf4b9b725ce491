"""Expressions that could take for ever find what Python's matcher finds, which is the oracle."""

from __future__ import annotations

import re
import warnings

import pytest
from counting import calls_of
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from dynquant.errors import RecipeError
from dynquant.recipe import expressions
from dynquant.recipe.expressions import expression

LEAVES = ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\w", r"\d", "^", "$", r"\b", r"\B", "A", "1"]


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Expressions made of smaller ones."""
    repeats = ("*", "+", "?", "*?", "{2}", "{0,2}", "{1,}", "{2,3}?")
    around = ("(?:{})", "({})", "(?={})", "(?!{})", "(?i:{})", "(?s:{})")
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("(?:{})".format),
        st.tuples(inner, st.sampled_from(repeats)).map(lambda p: f"(?:{p[0]}){p[1]}"),
        st.tuples(inner, st.sampled_from(around)).map(lambda p: p[1].format(p[0])),
    )


PATTERNS = st.recursive(st.sampled_from(LEAVES), grown, max_leaves=8)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=600)
@given(PATTERNS, st.lists(st.text("aAb.1\n", max_size=7), min_size=1, max_size=4))
def test_places_find_what_pythons_matcher_finds(pattern: str, names: list[str]) -> None:
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        patch.setattr(expressions, "MAX_WAYS", 0)
        found = expression(f"/{pattern}/")
        assert not isinstance(found, re.Pattern)
        for name in names:
            assert bool(found.search(name)) == bool(re.search(pattern, name)), (pattern, name)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(PATTERNS, st.text("aAb.1", max_size=7))
def test_what_python_takes_is_taken(pattern: str, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assume(len(pattern) < 60)
        assert bool(expression(f"/{pattern}/").search(name)) == bool(re.search(pattern, name))


@pytest.mark.parametrize(
    "pattern",
    [
        r"(a+)+$",
        r"^(\w+\.?)+!$",
        r"(a|a)*!",
        ".*" * 12 + "!",
        "(.|.)" * 60 + "!",
        r"((((a*)*)*)*)*!",
        r"(a{0,60}){0,60}!",
        r"(?=(a+)+!).",
        r"(?i)(A+)+!",
        r"(?<!a)(a|a)+!",
        r"((a?){60}){60}!",
    ],
)
def test_no_expression_takes_long_with_a_name(pattern: str) -> None:
    searched, name = expression(f"/{pattern}/"), "a" * 62 + "b"
    # The last takes 154,000 calls, others a tenth of that; trying all ways takes 2 to the 62.
    assert calls_of(lambda: searched.search(name)) < 200_000
    assert not searched.search(name)


def test_backreferences_and_possessive_parts_are_pythons_where_they_are_quick() -> None:
    assert expression(r"/blk\.(\d)\1\.x/").search("blk.33.x")
    assert not expression(r"/(a)\1/").search("aba")
    assert expression(r"/a++b/").search("aab")


@pytest.mark.parametrize("pattern", [r"(\w+)+\1", r"(a*+)*b*c*", r"(a)(?(1)b|c)(\w*)*"])
def test_what_cannot_be_bounded_is_refused(pattern: str) -> None:
    with pytest.raises(RecipeError, match="may take for ever: it has"):
        expression(f"/{pattern}/")
