"""Reads and writes files for `--tensor-type-file` of llama-quantize: words of PATTERN=TYPE.

Words are separated by white space, and there are no comments. A pattern is converted to lower case
and searched in the tensor's name (std::regex, ECMAScript). The first word that matches decides, for
tensors that llama-quantize quantizes (those that are not protected). Tensors that no word matches
get their type from llama-quantize's mixture. Source: tools/quantize/quantize.cpp, llama-quant.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from dynquant.arch.base import ModelTensor
from dynquant.errors import RecipeError
from dynquant.interchange.compaction import Column, Taken, compact
from dynquant.interchange.items import Base, Item, Typed, read_items, recipe_of
from dynquant.interchange.layersets import digits
from dynquant.name_lists import grouped
from dynquant.quants.table import KEPT, QuantType
from dynquant.recipe.protection import protection

# The fallback for rows that do not divide: tensor_type_fallback in llama-quant.cpp. F16 is next.
_STANDS_IN = {
    **dict.fromkeys(
        ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
    ),
    **dict.fromkeys(("Q2_0", "Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}


def recipe_of_tensor_types(text: str, path: str, base: Base) -> str:
    """Return the YAML of a recipe for a file, with llama-quantize's fallback.

    path: the file's name in messages

    Raises RecipeError with all words that cannot be converted, as read_items does.
    """
    items = [
        Item(word, path, "line", number)
        for number, line in enumerate(text.splitlines(), 1)
        for word in line.split()
    ]
    typed = read_items(items, lower=True)
    return recipe_of(typed, base, path, "--tensor-type-file", _fallback(typed, base))


def _fallback(typed: Sequence[Typed], base: Base) -> Iterator[tuple[str, str]]:
    """Yield llama-quantize's fallback for the types of a list."""
    used = dict.fromkeys(one.type for one in typed)
    if base.default:
        used[base.default] = None
    chains = [f"{t.name}: [{_STANDS_IN[t.name]}, F16]" for t in used if t.name in _STANDS_IN]
    chains += (
        ["any: F16"] if any(t.block_size > 1 and t.name not in _STANDS_IN for t in used) else []
    )
    if chains:
        yield "fallback", "{" + ", ".join(chains) + "}"


def tensor_types(tensors: Sequence[ModelTensor], types: Mapping[str, QuantType]) -> str:
    """Return the file with which llama-quantize gives every tensor of a model its type.

    tensors: all tensors of the file
    types:   by name

    The file decides every tensor that llama-quantize quantizes, so its mixture decides none. The
    type on its command line must be a quantized one, or it ignores the file.

    Raises RecipeError with all tensors that llama-quantize keeps in their stored type, but to which
    the recipe gives a type other than F32.
    """
    reached = [t for t in tensors if not _left_alone(t)]
    RecipeError.raise_any(_out_of_reach(tensors, types))
    cells: dict[str, list[tuple[int | None, str]]] = {}
    for t in reached:
        cells.setdefault(_template(t), []).append((t.parts.layer, types[t.name].name))
    columns = [Column(template, tuple(some)) for template, some in cells.items()]
    n_layers = 1 + max((t.parts.layer for t in tensors if t.parts.layer is not None), default=-1)
    words = [word for rule in compact(columns, "", n_layers) for word in _words(rule)]
    RecipeError.raise_any(_misread(words, reached, types))
    return "".join(f"{word}\n" for word in words)


def _left_alone(tensor: ModelTensor) -> bool:
    """Whether llama-quantize keeps the stored type of a tensor in any case.

    It does so for tensors that the built-in rules protect, except the router of a shared expert
    (a vector in most models), and for matrices of one row.
    """
    if prod(tensor.shape[:-1]) == 1:
        return True
    return protection(tensor) is not None and tensor.parts.role != "ffn_gate_inp_shexp"


def _out_of_reach(tensors: Sequence[ModelTensor], types: Mapping[str, QuantType]) -> Iterator[str]:
    """Yield an error for each type of tensors that llama-quantize does not quantize."""
    names: dict[str, list[str]] = {}
    for t in tensors:
        if _left_alone(t) and types[t.name].name not in ("F32", *KEPT):
            names.setdefault(types[t.name].name, []).append(t.name)
    for type_name, some in names.items():
        yield (
            f"{', '.join(grouped(some))}: the recipe gives {type_name}, but llama-quantize keeps"
            " the stored type of such tensors; give them F32, or convert with dynquant"
        )


def _template(tensor: ModelTensor) -> str:
    """Return a name with {} in place of the layer."""
    layer = tensor.parts.layer
    return tensor.name if layer is None else tensor.name.replace(f"blk.{layer}.", "blk.{}.", 1)


def _words(rule: Taken) -> Iterator[str]:
    """Yield PATTERN=TYPE for a rule: a word for tensors in layers, and one for the others.

    A model in two parts needs a word for the layers of each part.
    """
    heads: dict[str, dict[str, None]] = {}
    for column in rule.columns:
        head, layered, tail = column.role.partition("blk.{}.")
        heads.setdefault(_escaped(head + "blk.") if layered else "", {})[tail or head] = None
    number = "[0-9]+" if rule.items is None else digits(rule.wanted)
    for head, tails in heads.items():
        begin = f"{head}{number}\\." if head else ""
        yield f"^{begin}{_one_of(list(tails))}$={rule.type.lower()}"


def _one_of(names: Sequence[str]) -> str:
    """Return an expression for names, most of which end in .weight."""
    stems = [name.removesuffix(".weight") for name in names]
    if len(names) == 1 or any(stem == name for stem, name in zip(stems, names, strict=True)):
        found = "|".join(map(_escaped, names))
        return found if len(names) == 1 else f"({found})"
    return f"({'|'.join(map(_escaped, stems))})\\.weight"


def _escaped(text: str) -> str:
    """Return an expression for a name, without the characters that a word cannot contain.

    Capitals would become lower case, `=` and white space would end the word, and std::regex reads
    other characters as bytes.
    """
    safe = r"[a-z0-9_]"
    parts = re.findall(r"[a-z0-9_]+|[!-~]|.", text, re.DOTALL)
    return "".join(
        part
        if re.match(safe, part)
        else ".+"
        if not part.isascii()
        else "."
        if part.isspace() or part.isupper() or part == "="
        else f"\\{part}"
        for part in parts
    )


def _misread(
    words: Sequence[str], tensors: Sequence[ModelTensor], types: Mapping[str, QuantType]
) -> Iterator[str]:
    """Yield an error for each tensor with a wrong type: names may differ only in case."""
    read = [(re.compile(p), t) for p, _, t in (word.rpartition("=") for word in words)]
    for t in tensors:
        found = next((type_name for p, type_name in read if p.search(t.name)), None)
        if found != types[t.name].name.lower():
            yield (
                f"{t.name!r} and another tensor match the same pattern: llama-quantize converts"
                " patterns to lower case; convert with dynquant"
            )
