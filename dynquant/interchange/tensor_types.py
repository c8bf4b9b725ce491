"""Files of `--tensor-type-file` of llama-quantize: words of PATTERN=TYPE, read and written.

Words are separated by white space, and there are no comments. A pattern is made lower-case and
searched in the tensor's name (std::regex, ECMAScript); the first word that is found decides, for
tensors that llama-quantize quantizes at all (those that no recipe protects). What no word takes
gets what llama-quantize's mixture gives it. Source: tools/quantize/quantize.cpp, llama-quant.cpp.
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

# What stands in where rows do not divide: tensor_type_fallback in llama-quant.cpp. F16 comes next.
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
    """Return the YAML of the recipe that a file stands for, with llama-quantize's fallback.

    path: what messages call the file

    Raises RecipeError with all words that cannot be taken over, as read_items does.
    """
    items = [
        Item(word, path, "line", number)
        for number, line in enumerate(text.splitlines(), 1)
        for word in line.split()
    ]
    typed = read_items(items, lower=True)
    return recipe_of(typed, base, path, "--tensor-type-file", _fallback(typed, base))


def _fallback(typed: Sequence[Typed], base: Base) -> Iterator[tuple[str, str]]:
    """Yield the fallback for the types that a list gives, as llama-quantize has it."""
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

    tensors: of the model, all that the file has
    types:   by name

    It decides every tensor that llama-quantize quantizes, so that its mixture decides none; the
    type that is named on its command line has to be a quantized one, or no word has an effect.

    Raises RecipeError, all at once, for tensors that llama-quantize leaves in the type that they
    are stored in, and to which the recipe gives another one than F32.
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
    """Whether llama-quantize leaves a tensor in its stored type, whatever it is told.

    It does so with what the built-in rules protect, but for the router of a shared expert, which
    most models have as a vector; and with matrices of one row.
    """
    if prod(tensor.shape[:-1]) == 1:
        return True
    return protection(tensor) is not None and tensor.parts.role != "ffn_gate_inp_shexp"


def _out_of_reach(tensors: Sequence[ModelTensor], types: Mapping[str, QuantType]) -> Iterator[str]:
    """Say which types llama-quantize cannot be created to give."""
    names: dict[str, list[str]] = {}
    for t in tensors:
        if _left_alone(t) and types[t.name].name not in ("F32", *KEPT):
            names.setdefault(types[t.name].name, []).append(t.name)
    for type_name, some in names.items():
        yield (
            f"{', '.join(grouped(some))}: {type_name} by the recipe, and llama-quantize leaves such"
            " tensors as they are stored; give them F32, or convert with dynquant"
        )


def _template(tensor: ModelTensor) -> str:
    """Return a name with {} in place of the layer."""
    layer = tensor.parts.layer
    return tensor.name if layer is None else tensor.name.replace(f"blk.{layer}.", "blk.{}.", 1)


def _words(rule: Taken) -> Iterator[str]:
    """Yield PATTERN=TYPE for a rule: one word for what is outside of the layers, one for them.

    A model in two parts has layers of both, and a word for each part.
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
    """Return an expression for names, which mostly all end in .weight."""
    stems = [name.removesuffix(".weight") for name in names]
    if len(names) == 1 or any(stem == name for stem, name in zip(stems, names, strict=True)):
        found = "|".join(map(_escaped, names))
        return found if len(names) == 1 else f"({found})"
    return f"({'|'.join(map(_escaped, stems))})\\.weight"


def _escaped(text: str) -> str:
    """Return an expression for a name, without what a word cannot hold.

    Its capitals would become small, = would end it, and so would white space; of other letters
    std::regex sees bytes.
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
    """Say to which tensors words give another type than theirs: names can differ in case alone."""
    read = [(re.compile(p), t) for p, _, t in (word.rpartition("=") for word in words)]
    for t in tensors:
        found = next((type_name for p, type_name in read if p.search(t.name)), None)
        if found != types[t.name].name.lower():
            yield (
                f"{t.name!r} cannot be told from another tensor: llama-quantize makes patterns"
                " lower-case; convert with dynquant"
            )
