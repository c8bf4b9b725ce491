"""Lists of PATTERN=TYPE, as several tools have them: read with all their faults, written as rules.

In all of them a pattern is a regular expression that is searched in a tensor's name, and the first
one that is found decides. What no pattern takes is decided elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dynquant.errors import EncodeError, RecipeError
from dynquant.interchange.ecmascript import differences
from dynquant.interchange.layersets import numbers
from dynquant.interchange.patterns import EVERYTHING, meaning, names_parts
from dynquant.interchange.recipe_text import WrittenRule, quoted, recipe_text
from dynquant.quants.table import QuantType, quant_type, unknown_type
from dynquant.recipe.loader import parse_recipe
from dynquant.untrusted import shown

# iq4_ks, iq2_kt, q6_0 and the interleaved ones (_r4, _r8): ggml.h of ik_llama.cpp.
_IK_TYPE = re.compile(r"iq\d_(k|ks|kss|kl|kt|bn)(_r\d+)?|\w+_r\d+|q6_0|q8_kv", re.IGNORECASE)


@dataclass(frozen=True)
class Item:
    """One PATTERN=TYPE as it was found; kind and number: `line` 7, or `item` 3, of the file."""

    text: str
    path: str
    kind: str
    number: int

    @property
    def place(self) -> str:
        """What messages begin with."""
        return f"{self.path}:{'' if self.kind == 'line' else f' {self.kind} '}{self.number}"

    @property
    def pattern(self) -> str:
        """What stands before the first `=`, where all tools split."""
        return self.text.partition("=")[0].strip()

    @property
    def type(self) -> str:
        """What stands after the first `=`."""
        return self.text.partition("=")[2].strip()


@dataclass(frozen=True)
class Base:
    """What decides the tensors that no pattern takes: a type, or the recipe to extend.

    path: of the recipe to be, as messages call it; what it extends is found from its folder
    """

    default: QuantType | None = None
    extends: str | None = None
    path: str = "recipe.yaml"


@dataclass(frozen=True)
class Typed:
    """A pattern, ready to be searched by Python, and its type."""

    pattern: str
    type: QuantType


def read_items(items: Sequence[Item], *, lower: bool = False) -> list[Typed]:
    """Return the patterns of items with their types.

    lower: whether the tool makes patterns lower-case before it uses them

    Raises RecipeError, all at once, for items that are not PATTERN=TYPE, for patterns that do not
    mean the same to Python, and for types that cannot be written.
    """
    read: list[Typed] = []
    faults: list[tuple[int, str]] = []
    unknown: dict[str, list[int]] = {}
    for at, item in enumerate(items):
        faults += [(at, f"{item.place}: {fault}") for fault in _faults(item, lower=lower)]
        if not item.pattern or not item.type:
            continue
        try:
            qtype = quant_type(item.type)
        except EncodeError:
            unknown.setdefault(item.type.lower(), []).append(at)
        else:
            read.append(Typed(item.pattern.lower() if lower else item.pattern, qtype))
    faults += [(some[0], _unknown([items[at] for at in some])) for some in unknown.values()]
    RecipeError.raise_any(message for _, message in sorted(faults))
    return read


def _faults(item: Item, *, lower: bool) -> Iterator[str]:
    quoted = repr(item.text if len(item.text) <= 80 else item.text[:77] + "...")
    if "=" not in item.text:
        yield f"{quoted} is not PATTERN=TYPE; it has no ="
        return
    if not item.pattern:
        yield f"{quoted} has no pattern; write one before the ="
    if not item.type:
        yield f"{quoted} has no type; write one after the ="
    for difference in differences(item.pattern):
        yield f"{shown(item.pattern)} cannot be taken over: {difference}"
    if lower and (found := re.search(r"\\[A-Z]", item.pattern)):
        yield (
            f"{shown(item.pattern)} cannot be taken over: llama-quantize makes patterns lower-case,"
            f" and {found[0]} becomes {found[0].lower()}; write what it stands for as a class"
        )


def _unknown(items: Sequence[Item]) -> str:
    """Return the message for items that all have one type that cannot be written."""
    first = items[0]
    if _IK_TYPE.fullmatch(first.type):
        what = (
            f"{first.type!r} is a type of ik_llama.cpp, which dynquant does not write and llama.cpp"
            " does not read; give another one (`dynquant types` lists them)"
        )
    else:
        what = unknown_type(first.type)
    if len(items) == 1:
        return f"{first.place}: {what}"
    where = numbers([item.number for item in items])
    return f"{first.place}: {what}; {len(items)} patterns have it ({first.kind}s {where})"


def recipe_of(
    typed: Sequence[Typed],
    base: Base,
    path: str,
    form: str,
    fallback: Iterable[tuple[str, str]] = (),
) -> str:
    """Return the YAML of a recipe that gives every matrix the type that a list gives it.

    path:     what messages call the list; form: whose it is, for the recipe's head
    fallback: what the tool does where rows do not divide, as the recipe says it; not if it extends

    Raises RecipeError where nothing decides what no pattern takes, or where the recipe to extend
    cannot be read.
    """
    typed, default, unreached = _cut(typed, base)
    if default is None and base.extends is None:
        raise RecipeError(
            f"{path}: nothing says the type of tensors that no pattern takes; give --default TYPE"
            " or --extends RECIPE"
        )
    rules, protected = _rules(typed)
    comments = [f"The types of {Path(path).name} ({form}): {_patterns(len(typed))}."]
    if protected:
        comments.append(
            f"Left out: {_patterns(protected)} for norms, routers and biases, F32 in every recipe."
        )
    if unreached:
        comments.append(f"Left out: {_patterns(unreached)} after one that takes everything.")
    keys = [("extends", quoted(base.extends))] if base.extends else []
    keys += [("default", default.name)] if default else []
    text = recipe_text(comments, keys, rules, () if base.extends else fallback)
    parse_recipe(text, base.path, "recipe")
    return text


def _patterns(n: int) -> str:
    return f"{n} pattern" if n == 1 else f"{n} patterns"


def _cut(typed: Sequence[Typed], base: Base) -> tuple[list[Typed], QuantType | None, int]:
    """Return the patterns up to one that takes everything, the default, and how many follow."""
    end = next((i for i, one in enumerate(typed) if one.pattern in EVERYTHING), None)
    if end is None:
        return list(typed), base.default, 0
    unreached = len(typed) - end - 1
    if base.extends:  # whose rules would come before its default
        return list(typed[: end + 1]), base.default, unreached
    return list(typed[:end]), typed[end].type, unreached


def _rules(typed: Sequence[Typed]) -> tuple[list[WrittenRule], int]:
    """Return the rules for patterns, in their order, and how many patterns need none.

    Neighbours of one type become one rule where they have the same layers: which of them decides
    makes no difference.
    """
    rules: list[WrittenRule] = []
    protected = 0
    parts = names_parts(one.pattern for one in typed)
    for one in typed:
        meant = meaning(one.pattern, parts=parts)
        if meant and not meant.roles:
            protected += 1
            continue
        # what is F32 here may be protected by its shape, and then there is nothing to take
        optional = one.type.name == "F32"
        if meant is None:
            rule = WrittenRule(one.type.name, names=(f"/{one.pattern}/",), optional=optional)
        else:
            rule = WrittenRule(one.type.name, meant.roles, meant.layers, optional=optional)
        last = rules[-1] if rules else None
        if last and rule == replace(last, roles=rule.roles) and last.roles and rule.roles:
            rules[-1] = replace(last, roles=tuple(dict.fromkeys((*last.roles, *rule.roles))))
        else:
            rules.append(rule)
    return rules, protected
