"""Parsers of a recipe's values: layers, conditions, sizes, choices.

Each function takes a value's text. It raises RecipeError with the fault and the correct form.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import TypeVar

from gguf import MODEL_ARCH_NAMES

from dynquant.errors import RecipeError
from dynquant.importance.experts import Unseen
from dynquant.quants.search import EFFORTS, Effort
from dynquant.recipe.feedback import MAX_SWEEPS, MIN_DAMPING, FeedbackUse
from dynquant.recipe.layers import Bound, LayerRange, PercentRange
from dynquant.recipe.newer_names import NEWER_ARCHITECTURES
from dynquant.recipe.roles import GROUPS, ROLES, role_name
from dynquant.recipe.rules import Comparison, TensorOrder, Use, name_pattern
from dynquant.recipe.yaml_nodes import nearest

T = TypeVar("T", bound=str)

VERSION = "1"
"""Version of the recipe language."""

LAYERS = re.compile(r"(0|-?[1-9]\d{0,3})(-(0|-?[1-9]\d{0,3})?)?")
_PERCENT = r"(\d{1,3}(?:\.\d{1,6})?)%"
PERCENTS = re.compile(f"{_PERCENT}-{_PERCENT}")
BOUND = re.compile(rf"{_PERCENT}(?:\+(\d{{1,4}}))?|(0|[1-9]\d{{0,3}})")
COMPARISON = re.compile(r"(==|!=|<=|>=|<|>)? ?(0|[1-9]\d{0,5})")
MAX_TOKENS = 10**9 - 1
_TOKENS = re.compile(r"0|[1-9]\d{0,8}")
_DAMPING = re.compile(r"\d{1,9}(\.\d{1,18})?([eE][+-]?\d{1,2})?")
_BITS = re.compile(r"\d{1,2}(\.\d{1,9})?")
_COUNT = re.compile(r"[1-9]\d{0,14}")
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(TB|TiB|GB|GiB|MB|MiB|kB|KiB|T|G|M)?")

# As llama-gguf-split reads --split-max-size: G and M are decimal.
_UNITS = {
    None: 1,
    "kB": 10**3,
    "KiB": 2**10,
    "M": 10**6,
    "MB": 10**6,
    "MiB": 2**20,
    "G": 10**9,
    "GB": 10**9,
    "GiB": 2**30,
    "T": 10**12,
    "TB": 10**12,
    "TiB": 2**40,
}

ARCHITECTURES = sorted({*MODEL_ARCH_NAMES.values(), *NEWER_ARCHITECTURES})


def one_of(words: Sequence[T], text: str) -> T:
    """Return the text as one of the words."""
    for word in words:
        if text == word:
            return word
    listed = f"{', '.join(words[:-1])} or {words[-1]}"
    raise RecipeError(f"{text!r} is not {listed}{nearest(text, words)}")


def choice(*words: T) -> Callable[[str], T]:
    """Return a parser for one of the words."""
    return lambda text: one_of(words, text)


def version(text: str) -> str:
    """Read `dynquant: 1`."""
    if text != VERSION:
        raise RecipeError(
            f"version {text!r} of the recipe language; this dynquant reads version {VERSION}"
        )
    return text


def truth(text: str) -> bool:
    """Read true or false; YAML 1.1's other words, such as yes and off, are errors."""
    if text not in ("true", "false"):
        raise RecipeError(f"{text!r} is neither true nor false; write true or false")
    return text == "true"


def yes(text: str) -> bool:
    """Read true, the only value of `keep` and `drop`."""
    if not truth(text):
        raise RecipeError("the default is false; set it to true or remove the key")
    return True


def keep_or_drop(text: str) -> bool:
    """Read `drop` or `keep`; return whether it is `keep`."""
    return one_of(("drop", "keep"), text) == "keep"


def use(text: str) -> Use:
    """Read the use of an imatrix."""
    words: tuple[Use, ...] = ("required", "optional", "ignored")
    return one_of(words, text)


def unseen(text: str) -> Unseen:
    """Read what experts without data have."""
    words: tuple[Unseen, ...] = ("mean", "uniform", "error")
    return one_of(words, text)


def tokens(text: str) -> int:
    """Read a number of tokens, which may be 0."""
    if not _TOKENS.fullmatch(text):
        raise RecipeError(f"{text!r} is not a number of tokens; write 0, or a number such as 64")
    return int(text)


def feedback_use(text: str) -> FeedbackUse:
    """Read the use of second moments; YAML 1.1 reads `off` as false."""
    words: tuple[FeedbackUse, ...] = ("auto", "off", "required")
    return "off" if text == "false" else one_of(words, text)


def damping(text: str) -> float:
    """Read the damping of error feedback."""
    if not _DAMPING.fullmatch(text) or not MIN_DAMPING <= float(text) <= 1:
        raise RecipeError(
            f"{text!r} is not a damping; write a number from {MIN_DAMPING} to 1, such as 0.2"
        )
    return float(text)


def sweeps(text: str) -> int:
    """Read the number of sweeps of error feedback."""
    if text not in map(str, range(MAX_SWEEPS + 1)):
        raise RecipeError(
            f"{text!r} is not a number of sweeps; write a whole number from 0 to {MAX_SWEEPS}"
        )
    return int(text)


def effort(text: str) -> Effort:
    """Read how hard the encoders search."""
    return one_of(EFFORTS, text)


def tensor_order(text: str) -> TensorOrder:
    """Read the order in which tensors are written."""
    words: tuple[TensorOrder, ...] = ("model", "layer")
    return one_of(words, text)


def layer_range(text: str) -> LayerRange | PercentRange:
    """Read `3`, `-1`, `0-3`, `-4--1`, `10-` (to the last) or `0%-12.5%`."""
    if found := PERCENTS.fullmatch(text):
        first, last = Fraction(found[1]), Fraction(found[2])
        if not first < last <= 100:
            raise RecipeError(
                f"{text!r} is not a part of the depth; write a range such as 0%-12.5%"
            )
        return PercentRange(first, last)
    found = LAYERS.fullmatch(text)
    if not found:
        raise RecipeError(
            f"{text!r} is not a layer; write a number (3, or -1 for the last) or a range"
            " (0-3, 10-, -4--1, 0%-25%)"
        )
    first = int(found[1])
    last = int(found[3] or -1) if found[2] else first
    if last < first and (first < 0) == (last < 0):
        raise RecipeError(f"{text!r} is reversed; write {LayerRange(last, first)}")
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
    """Read a comparison: `8` or `>= 4`."""
    found = COMPARISON.fullmatch(text)
    if not found:
        raise RecipeError(
            f"{text!r} is not a condition; write a number, or a comparison such as '>= 4'"
        )
    for operator in ("==", "!=", "<", "<=", ">", ">="):
        if operator == (found[1] or "=="):
            return Comparison(operator, int(found[2]))
    raise AssertionError("the pattern has no other operators")


def size(text: str) -> int:
    """Read a size in bytes: `50GB`, `46.5GiB`, `800M`."""
    found = SIZE.fullmatch(text)
    n_bytes = int(Fraction(found[1]) * _UNITS[found[2]]) if found else 0
    if n_bytes < 1:
        raise RecipeError(f"{text!r} is not a size; write a size such as 50GB or 46GiB")
    return n_bytes


def bits(text: str) -> float:
    """Read a mean number of bits of a weight."""
    if not _BITS.fullmatch(text) or not 0 < float(text) <= 32:
        raise RecipeError(f"{text!r} is not a number of bits of a weight; write one such as 2.7")
    return float(text)


def single_role(text: str) -> str:
    """Read the role of a matrix: neither a group nor a glob."""
    if "*" in text or (text not in ROLES and text in GROUPS):
        raise RecipeError(f"{text!r} is not a single role; name roles such as attn_q")
    return role_name(text)


def architecture(text: str) -> str:
    """Read a value of general.architecture."""
    if text not in ARCHITECTURES:
        raise RecipeError(
            f"{text!r} is not a GGUF architecture{nearest(text, ARCHITECTURES)}"
            " (the first line of `dynquant plan` shows a model's)"
        )
    return text


def name(text: str) -> str:
    """Read a glob or a /regular expression/."""
    name_pattern(text)
    return text
