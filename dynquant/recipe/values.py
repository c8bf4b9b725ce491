"""The words of a recipe: what a text means as a layer, a condition, a size, a choice.

Each function takes a value's text and raises RecipeError with what is wrong and what to write.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

from gguf import MODEL_ARCH_NAMES

from dynquant.errors import RecipeError
from dynquant.quants.search import EFFORTS, Effort
from dynquant.recipe.layers import Bound, LayerRange, PercentRange
from dynquant.recipe.rules import Comparison, TensorOrder, Use, name_pattern
from dynquant.recipe.yaml_nodes import nearest

T = TypeVar("T", bound=str)

VERSION = "1"
"""Of the language."""

LAYERS = re.compile(r"(0|-?[1-9]\d{0,3})(?:-(0|-?[1-9]\d{0,3}))?")
_PERCENT = r"(\d{1,3}(?:\.\d{1,6})?)%"
PERCENTS = re.compile(f"{_PERCENT}-{_PERCENT}")
BOUND = re.compile(rf"{_PERCENT}(?:\+(\d{{1,4}}))?|(0|[1-9]\d{{0,3}})")
COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)? ?(0|[1-9]\d{0,5})")
_COUNT = re.compile(r"[1-9]\d{0,14}")
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(GB|GiB|MB|MiB|G|M)?")

# As llama-gguf-split reads --split-max-size: G and M are decimal.
_UNITS = {None: 1, "M": 10**6, "MB": 10**6, "MiB": 2**20, "G": 10**9, "GB": 10**9, "GiB": 2**30}

ARCHITECTURES = sorted(MODEL_ARCH_NAMES.values())


def one_of(words: Sequence[T], text: str) -> T:
    """Return the text as one of the words."""
    for word in words:
        if text == word:
            return word
    listed = f"{', '.join(words[:-1])} or {words[-1]}"
    raise RecipeError(f"{text!r} is not {listed}{nearest(text, words)}")


def choice(*words: T) -> Callable[[str], T]:
    """Return what reads one of some words."""
    return lambda text: one_of(words, text)


def version(text: str) -> str:
    """Read `dynquant: 1`."""
    if text != VERSION:
        raise RecipeError(f"version {text!r} of the language; this dynquant reads {VERSION}")
    return text


def truth(text: str) -> bool:
    """Read true or false; YAML's other words for them are texts here."""
    if text not in ("true", "false"):
        raise RecipeError(f"{text!r} is neither true nor false; write one of them")
    return text == "true"


def yes(text: str) -> bool:
    """Read true, of a key that is left out where it is not."""
    if not truth(text):
        raise RecipeError("'false' is what it is without this key; write true or leave it out")
    return True


def keep_or_drop(text: str) -> bool:
    """Read whether something is kept."""
    return one_of(("drop", "keep"), text) == "keep"


def use(text: str) -> Use:
    """Read what becomes of an imatrix."""
    words: tuple[Use, ...] = ("required", "optional", "ignored")
    return one_of(words, text)


def effort(text: str) -> Effort:
    """Read how much the encoders search."""
    return one_of(EFFORTS, text)


def tensor_order(text: str) -> TensorOrder:
    """Read the order in which tensors are written."""
    words: tuple[TensorOrder, ...] = ("model", "layer")
    return one_of(words, text)


def layer_range(text: str) -> LayerRange | PercentRange:
    """Read `3`, `-1`, `0-3`, `-4--1` or `0%-12.5%`."""
    if found := PERCENTS.fullmatch(text):
        first, last = Fraction(found[1]), Fraction(found[2])
        if not first < last <= 100:
            raise RecipeError(f"{text!r} is no part of the depth; write one such as 0%-12.5%")
        return PercentRange(first, last)
    found = LAYERS.fullmatch(text)
    if not found:
        raise RecipeError(
            f"{text!r} is not a layer; write a number (3, or -1 for the last) or a range"
            " (0-3, -4--1, 0%-25%)"
        )
    first, last = int(found[1]), int(found[2] or found[1])
    if last < first and (first < 0) == (last < 0):
        raise RecipeError(f"{text!r} runs backwards; write {LayerRange(last, first)}")
    return LayerRange(first, last)


def bound(text: str) -> Bound:
    """Read a position or a number of layers: `3`, `12.5%`, `12.5%+2`."""
    found = BOUND.fullmatch(text)
    if not found or (found[1] and Fraction(found[1]) > 100):
        raise RecipeError(f"{text!r} is not a number of layers; write 3, 12.5% or 12.5%+2")
    if found[3]:
        return Bound(int(found[3]))
    return Bound(int(found[2] or 0), Fraction(found[1]))


def count(text: str) -> int:
    """Read a whole number above 0."""
    if not _COUNT.fullmatch(text):
        raise RecipeError(f"{text!r} is not a whole number above 0")
    return int(text)


def comparison(text: str) -> Comparison:
    """Read `8`, or `>= 4` and the like."""
    found = COMPARISON.fullmatch(text)
    if not found:
        raise RecipeError(f"{text!r} is not a condition; write a number, or one such as '>= 4'")
    for operator in ("==", "!=", "<", "<=", ">", ">="):
        if operator == (found[1] or "=="):
            return Comparison(operator, int(found[2]))
    raise AssertionError("the pattern has no other operators")


def size(text: str) -> int:
    """Read bytes: `50GB`, `46.5GiB`, `800M`."""
    found = SIZE.fullmatch(text)
    n_bytes = int(Fraction(found[1]) * _UNITS[found[2]]) if found else 0
    if n_bytes < 1:
        raise RecipeError(f"{text!r} is not a size; write one such as 50GB or 46GiB")
    return n_bytes


def architecture(text: str) -> str:
    """Read a name as general.architecture has it."""
    if text not in ARCHITECTURES:
        raise RecipeError(
            f"{text!r} is not an architecture of GGUF{nearest(text, ARCHITECTURES)}"
            " (general.architecture, which `dynquant plan` begins with)"
        )
    return text


def name(text: str) -> str:
    """Read a glob or a /regular expression/."""
    name_pattern(text)
    return text
