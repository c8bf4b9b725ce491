"""Regular expressions of recipes match as in Python, the oracle."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynquant.errors import RecipeError
from dynquant.recipe.expressions import MAX_LETTERS, expression

LEAVES = ["a", "b", r"\.", ".", "[ab]", "[^a]", r"\w", r"\d", "^", "$", r"\b", r"\B", "A", "1"]


def grown(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return larger expressions made of smaller ones."""
    repeats = ("*", "+", "?", "*?", "{2}", "{0,2}", "{1,}", "{2,3}?")
    around = ("(?:{})", "({})", "(?i:{})", "(?s:{})")
    return st.one_of(
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map("|".join).map("(?:{})".format),
        st.tuples(inner, st.sampled_from(repeats)).map(lambda p: f"(?:{p[0]}){p[1]}"),
        st.tuples(inner, st.sampled_from(around)).map(lambda p: p[1].format(p[0])),
    )


PATTERNS = st.recursive(st.sampled_from(LEAVES), grown, max_leaves=8)


@pytest.mark.slow
@settings(deadline=None, derandomize=True, max_examples=600)
@given(PATTERNS, st.lists(st.text("aAb.1", min_size=1, max_size=7), min_size=1, max_size=4))
def test_expressions_match_the_same_names_as_in_python(pattern: str, names: list[str]) -> None:
    found = expression(f"/{pattern}/")
    for name in names:
        assert bool(found.search(name)) == bool(re.search(pattern, name)), (pattern, name)


@pytest.mark.parametrize(
    ("pattern", "name"),
    [
        (r"blk\.(0|1|2)\.attn_.*", "blk.2.attn_q.weight"),
        (r"blk\.\d+\.ffn_(up|gate)_exps", "blk.60.ffn_gate_exps.weight"),
        (r"(?i)ATTN_V", "blk.2.attn_v.weight"),
        (r"^.*blk.*\.ffn_.*_exps\.weight.*$", "blk.60.ffn_gate_exps.weight"),
        (r"(\w+\.)+weight", "blk.60.ffn_gate_exps.weight"),
    ],
)
def test_typical_expressions_are_supported(pattern: str, name: str) -> None:
    assert expression(f"/{pattern}/").search(name)


@pytest.mark.parametrize(
    "pattern",
    [r"(a+)+$", r"^(\w+\.?)+!$", r"(a|a)*!", ".*" * 12 + "!", "(.|.)" * 60 + "!", r"(((a*)*)*)*!"],
)
def test_expressions_with_exponential_backtracking_are_searched(pattern: str) -> None:
    # Python's matcher would take practically forever.
    assert bool(expression(f"/{pattern}/").search("a" * 62 + "b")) is False


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        (r"(\w+)+\1", r"back references are not supported"),
        (r"(?=a)b", "lookaround, comments and conditions are not supported"),
        (r"(?<!a)b", "lookaround, comments and conditions are not supported"),
        (r"a++b", "possessive repeats are not supported"),
        (r"((a?){60}){60}!", "repeats of more than 1000"),
        (r"[a", "missing ]"),
        (r"(a", "missing )"),
        ("a" * (MAX_LETTERS + 1), f"at most {MAX_LETTERS}"),
    ],
)
def test_unsupported_expressions_are_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(reason)):
        expression(f"/{pattern}/")
