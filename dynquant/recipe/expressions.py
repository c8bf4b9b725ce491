"""Regular expressions for tensor names that cannot take for ever: what a recipe's author may write.

Python's own matcher tries one way after another, and `(a+)+$` has 2^62 ways through a name of 63
letters. So an expression that could take more than a few thousand steps is searched otherwise: not
one way at a time but all at once, as the set of places that a match can have come to. Each part
maps places to places; a name has at most 64, and a part is asked about each but once. Both give the
same answer (tests/test_recipe_expressions.py); whether it is found is all that a recipe asks.

What cannot be said of places alone (a group that refers back, possessive repeats) is left to
Python where it is quick, and refused where it is not.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from typing import Any, Protocol

from dynquant.errors import RecipeError
from dynquant.untrusted import shown

# The parser and compiler of the standard library, which have no public names, and no types.
op: Any = import_module("re._constants")
parser: Any = import_module("re._parser")
compiler: Any = import_module("re._compiler")

MAX_WAYS = 64
"""Through an expression, from one place: one part that repeats has as many in 64 letters. From all
places they cost Python's matcher 0.1 ms at most; the other way is quicker where there are more."""

_PLACES = 64
_NEVER = 1 << 40

Part = Callable[["_Name", int], int]
"""Maps places in a name, bits of a number, to the places that a part can end at."""


class Expression(Protocol):
    """What can be searched in a name."""

    def search(self, name: str, /) -> object:
        """Return something true if the expression is found anywhere in the name."""
        ...


def expression(text: str) -> Expression:
    """Return a /regular expression/ such that searching a name takes no longer than it should.

    Raises RecipeError for what is none, and for what can be neither bounded nor done otherwise.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that may mean more one day
            tree: Any = parser.parse(text[1:-1])
            compiled = re.compile(text[1:-1])
        if _ways(tree) <= MAX_WAYS:
            return compiled
        return _Places(_sequence(tree, tree.state))
    except (re.error, OverflowError) as e:
        raise RecipeError(f"{shown(text)} is not a regular expression: {e}") from e
    except RecursionError as e:
        raise RecipeError(f"{shown(text)} is nested too deep for a regular expression") from e
    except _Unbounded as e:
        raise RecipeError(
            f"{shown(text)} may take for ever: it has {e} beside parts that repeat; write it"
            " simpler"
        ) from e


class _Unbounded(Exception):  # noqa: N818  -- told as a RecipeError
    """A part that needs to know more than the place."""


def _ways(parts: Iterable[tuple[Any, Any]]) -> int:
    """Return at least how many ways a matcher may try from one place; _NEVER at most."""
    ways = 1
    for code, value in parts:
        ways *= _ways_of(code, value)
        if ways > MAX_WAYS:
            return _NEVER
    return ways


def _ways_of(code: Any, value: Any) -> int:
    if code in (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT):
        least, most, body = value
        if _ways(body) > 1:
            return _NEVER if most > 1 else _ways(body) + 1
        return min(most, _PLACES) - min(least, _PLACES) + 1
    if code is op.BRANCH:
        return sum(_ways(body) for body in value[1])
    if code is op.SUBPATTERN:
        return _ways(value[3])
    if code is op.ATOMIC_GROUP:
        return _ways(value)
    if code in (op.ASSERT, op.ASSERT_NOT):
        return _ways(value[1])
    if code is op.GROUPREF_EXISTS:
        return _ways(value[1]) + _ways(value[2] or ())
    return 1


@dataclass(frozen=True)
class _Name:
    """A name while it is searched.

    letters: the places of each letter
    known:   what parts found out, by their ids and a place
    """

    text: str
    letters: Mapping[str, int]
    known: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])


@lru_cache(1024)
def _letters(name: str) -> Mapping[str, int]:
    """Return the places of each letter; the rules of a recipe search a name one after another."""
    found: dict[str, int] = {}
    for at, letter in enumerate(name):
        found[letter] = found.get(letter, 0) | 1 << at
    return found


class _Places:
    """An expression that is searched by places."""

    def __init__(self, part: Part) -> None:
        self._part = part

    def search(self, name: str, /) -> bool:
        """Tell whether it is found anywhere in the name."""
        return bool(self._part(_Name(name, _letters(name)), (1 << len(name) + 1) - 1))


def _sequence(parts: Any, state: Any, flags: tuple[int, int] = (0, 0)) -> Part:
    made = [_part(code, value, state, flags) for code, value in parts]

    def follow(name: _Name, places: int) -> int:
        for part in made:
            if not places:
                break
            places = part(name, places)
        return places

    return follow


def _part(code: Any, value: Any, state: Any, flags: tuple[int, int]) -> Part:
    if code is op.LITERAL and not (state.flags | flags[0]) & re.IGNORECASE:
        return _literal(chr(value))
    if code in (op.LITERAL, op.NOT_LITERAL, op.ANY, op.IN):
        return _letter(_atom(code, value, state, flags))
    if code is op.AT:
        return _anywhere(_atom(code, value, state, flags))
    if code is op.BRANCH:
        return _either([_sequence(body, state, flags) for body in value[1]])
    if code is op.SUBPATTERN:
        _, more, less, body = value
        return _sequence(body, state, (flags[0] & ~less | more, flags[1] & ~more | less))
    if code in (op.MAX_REPEAT, op.MIN_REPEAT):
        least, most, body = value
        part = _repeat(_sequence(body, state, flags), least, most)
        return _each(part) if _ways(body) > 1 else part
    if code in (op.ASSERT, op.ASSERT_NOT):
        direction, body = value
        if direction > 0:
            wanted = code is op.ASSERT
            return _ahead(_each(_sequence(body, state, flags)), wanted)
        if _ways(body) <= MAX_WAYS:
            return _anywhere(_atom(code, value, state, flags))
        raise _Unbounded("a look backwards")
    what = {op.GROUPREF: "a group that refers back", op.GROUPREF_EXISTS: "a condition"}
    raise _Unbounded(what.get(code, "a possessive part"))


def _atom(code: Any, value: Any, state: Any, flags: tuple[int, int]) -> re.Pattern[str]:
    """Return a part alone as Python compiles it, with the flags it stands under."""
    alone = parser.SubPattern(state, [(code, value)])
    under = parser.SubPattern(state, [(op.SUBPATTERN, (None, *flags, alone))])
    return compiler.compile(under)


def _literal(letter: str) -> Part:
    return lambda name, places: (places & name.letters.get(letter, 0)) << 1


def _letter(atom: re.Pattern[str]) -> Part:
    """Return what goes on by a letter that an atom takes."""
    takes: dict[str, bool] = {}

    def step(name: _Name, places: int) -> int:
        key = (id(takes), 0)
        if key not in name.known:
            name.known[key] = 0
            for letter, where in name.letters.items():
                if letter not in takes:
                    takes[letter] = atom.fullmatch(letter) is not None
                if takes[letter]:
                    name.known[key] |= where
        return (places & name.known[key]) << 1

    return step


def _anywhere(atom: re.Pattern[str]) -> Part:
    """Return what stays where an atom without width holds."""

    def stay(name: _Name, places: int) -> int:
        return sum(bit for bit, at in _bits(places) if atom.match(name.text, at))

    return stay


def _either(parts: list[Part]) -> Part:
    def any_of(name: _Name, places: int) -> int:
        found = 0
        for part in parts:
            found |= part(name, places)
        return found

    return any_of


def _repeat(part: Part, least: int, most: int) -> Part:
    """Return what repeats; more often than a name has places changes nothing."""

    def again(name: _Name, places: int) -> int:
        often = len(name.text) + 1
        for _ in range(min(least, often)):
            places = part(name, places)
        found = fresh = places
        for _ in range(min(most - least, often)):
            fresh = part(name, fresh) & ~found
            if not fresh:
                break
            found |= fresh
        return found

    return again


def _ahead(part: Part, wanted: bool) -> Part:
    def look(name: _Name, places: int) -> int:
        return sum(bit for bit, _ in _bits(places) if bool(part(name, bit)) == wanted)

    return look


def _each(part: Part) -> Part:
    """Return a part that is asked about each place once; so repeats of repeats stay cheap."""

    def ask(name: _Name, places: int) -> int:
        found = 0
        for bit, at in _bits(places):
            key = (id(part), at)
            if key not in name.known:
                name.known[key] = part(name, bit)
            found |= name.known[key]
        return found

    return ask


def _bits(places: int) -> Iterable[tuple[int, int]]:
    """Yield the bits of a number, and which they are."""
    while places:
        bit = places & -places
        yield bit, bit.bit_length() - 1
        places ^= bit
