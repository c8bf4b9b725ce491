"""Lists of PATTERN=TYPE, the format of several tools, converted to rules.

In all of them, a pattern is a regular expression that is searched in a tensor's name, and the first
pattern that matches decides. The tool decides the types of other tensors.
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
    """One PATTERN=TYPE as text; kind and number: `line` 7 or `item` 3 of the file."""

    text: str
    path: str
    kind: str
    number: int

    @property
    def place(self) -> str:
        """The place of the item, for messages."""
        return f"{self.path}:{'' if self.kind == 'line' else f' {self.kind} '}{self.number}"

    @property
    def pattern(self) -> str:
        """The text before the first `=`, where all tools split."""
        return self.text.partition("=")[0].strip()

    @property
    def type(self) -> str:
        """The text after the first `=`."""
        return self.text.partition("=")[2].strip()


@dataclass(frozen=True)
class Base:
    """The type of tensors that no pattern matches, or the recipe to extend, which decides it.

    path: the path of the new recipe; the recipe to extend is found from its folder
    """

    default: QuantType | None = None
    extends: str | None = None
    path: str = "recipe.yaml"


@dataclass(frozen=True)
class Typed:
    """A pattern that Python can search, and its type."""

    pattern: str
    type: QuantType


def read_items(items: Sequence[Item], *, lower: bool = False) -> list[Typed]:
    """Return the patterns of items with their types.

    lower: whether the tool converts patterns to lower case

    Raises RecipeError with all items that are not PATTERN=TYPE, all patterns that Python reads
    differently, and all types that dynquant does not encode.
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
        yield f"{quoted} is not PATTERN=TYPE: the = is missing"
        return
    if not item.pattern:
        yield f"{quoted} has no pattern; add one before the ="
    if not item.type:
        yield f"{quoted} has no type; add one after the ="
    for difference in differences(item.pattern):
        yield f"{shown(item.pattern)} cannot be converted: {difference}"
    if lower and (found := re.search(r"\\[A-Z]", item.pattern)):
        yield (
            f"{shown(item.pattern)} cannot be converted: llama-quantize converts patterns to lower"
            f" case, and {found[0]} becomes {found[0].lower()}; write a class in brackets instead"
        )


def _unknown(items: Sequence[Item]) -> str:
    """Return the message for items with the same unknown type."""
    first = items[0]
    if _IK_TYPE.fullmatch(first.type):
        what = (
            f"{first.type!r} is a type of ik_llama.cpp, which neither dynquant nor llama.cpp"
            " supports; choose another type (`dynquant types` lists them)"
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
    """Return the YAML of a recipe that gives every matrix its type in a list.

    path:     the list's name in messages; form: the list's format, for a comment in the recipe
    fallback: the tool's fallback as keys of a recipe; not used if the recipe extends another

    Raises RecipeError if the type of tensors that no pattern matches is not given, or if the recipe
    to extend cannot be read.
    """
    typed, default, unreached = _cut(typed, base)
    if default is None and base.extends is None:
        raise RecipeError(
            f"{path}: the type of tensors that no pattern matches is not given; add --default TYPE"
            " or --extends RECIPE"
        )
    rules, protected = _rules(typed)
    comments = [f"The types of {Path(path).name} ({form}): {_patterns(len(typed))}."]
    if protected:
        comments.append(
            f"Left out: {_patterns(protected)} for norms, routers and biases, F32 in every recipe."
        )
    if unreached:
        comments.append(f"Left out: {_patterns(unreached)} after one that matches every tensor.")
    keys = [("extends", quoted(base.extends))] if base.extends else []
    keys += [("default", default.name)] if default else []
    text = recipe_text(comments, keys, rules, () if base.extends else fallback)
    parse_recipe(text, base.path, "recipe")
    return text


def _patterns(n: int) -> str:
    return f"{n} pattern" if n == 1 else f"{n} patterns"


def _cut(typed: Sequence[Typed], base: Base) -> tuple[list[Typed], QuantType | None, int]:
    """Return the patterns up to one that matches everything, the default, and the number left."""
    end = next((i for i, one in enumerate(typed) if one.pattern in EVERYTHING), None)
    if end is None:
        return list(typed), base.default, 0
    unreached = len(typed) - end - 1
    if base.extends:  # the extended rules would come before the default
        return list(typed[: end + 1]), base.default, unreached
    return list(typed[:end]), typed[end].type, unreached


def _rules(typed: Sequence[Typed]) -> tuple[list[WrittenRule], int]:
    """Return the rules for patterns, in their order, and the number of patterns without a rule.

    Adjacent patterns of one type and the same layers become one rule.
    """
    rules: list[WrittenRule] = []
    protected = 0
    parts = names_parts(one.pattern for one in typed)
    for one in typed:
        meant = meaning(one.pattern, parts=parts)
        if meant and not meant.roles:
            protected += 1
            continue
        # F32 tensors may be protected by their shape; then the rule applies to no tensor
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
