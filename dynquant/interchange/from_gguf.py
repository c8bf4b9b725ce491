"""Converts the types of a GGUF to a short recipe that gives each tensor the same type."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from math import prod
from pathlib import Path

from dynquant.arch.base import ModelTensor
from dynquant.checkpoint.gguf_shards import Shards, open_gguf
from dynquant.errors import RecipeError
from dynquant.figures import counted
from dynquant.interchange.compaction import Column, Taken, compact
from dynquant.interchange.grouping import named_roles
from dynquant.interchange.patterns import MAX_LAYERS, Header
from dynquant.interchange.recipe_text import WrittenRule, quoted, recipe_text
from dynquant.name_lists import grouped
from dynquant.quants.table import ALL, KEPT
from dynquant.recipe.facts import Facts, ahead, facts_of_tensors
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.match import assign
from dynquant.recipe.protection import protection
from dynquant.recipe.roles import ROLES


def recipe_of_gguf(path: Path) -> str:
    """Return the YAML of a recipe that gives every tensor of a model its type in a GGUF.

    path: the file, or any of its shards

    Raises CheckpointError for a damaged file, RecipeError with all tensors of types that dynquant
    does not encode.
    """
    shards = open_gguf(path)
    tensors = ((t.name, t.shape or (1,), t.type_name) for _, t in shards.tensors())
    return recipe_of_types(tensors, shards.path.name, prediction=_prediction(shards))


def recipe_of_types(
    tensors: Iterable[tuple[str, tuple[int, ...], str]],
    file: str,
    *,
    prediction: range = range(0),
) -> str:
    """Return the YAML of a short recipe that gives tensors their types.

    tensors:    name, shape (slowest dimension first) and type of each
    file:       the name of the file with the types; the recipe is named after it
    prediction: the prediction layers; patterns do not count them

    Raises RecipeError with all tensors of types that dynquant does not encode.
    """
    listed = list(tensors)
    types = {name: type_name for name, _, type_name in listed}
    RecipeError.raise_any(_unwritable(types, file))
    known = ALL | KEPT
    headers = [ModelTensor(n, Header(shape, known[t])) for n, shape, t in listed]
    beyond = [t.name for t in headers if (t.parts.layer or 0) >= MAX_LAYERS]
    RecipeError.raise_any(
        f"{file}: {name}: the layer exceeds the {MAX_LAYERS} layers that llama.cpp supports"
        for name in grouped(beyond)
    )
    columns = columns_of(headers, types)
    default = _most_frequent([t for t in headers if not protection(t)], types)
    facts = facts_of_tensors(headers, prediction)
    found = compact(columns, default, facts.n_layers)
    rules = [written(*each) for each in named_roles(found, columns, facts.n_layers)]
    n_bits = sum(8 * t.n_rows * known[types[t.name]].row_size(t.n_per_row) for t in headers)
    bpw = n_bits / max(1, sum(prod(t.shape) for t in headers))
    comments = [
        f"The types of {file}: {counted(len(headers), 'tensor')}, {bpw:.3f} bits per weight."
    ]
    keys = [("name", quoted(file.removesuffix(".gguf"))), ("default", default)]
    predicts = any(t.parts.layer in prediction for t in headers)
    more = [("prediction_layers", "keep")] if predicts else []
    text = recipe_text(comments, keys, rules, more)
    if wrong := _wrong(text, headers, types, facts):
        rules = [*by_name(wrong, types), *rules]
        text = recipe_text(comments, keys, rules, more)
        wrong = _wrong(text, headers, types, facts)
    assert not wrong, f"the recipe of {file} gives other types to {[t.name for t in wrong]}"
    return text


def _wrong(
    text: str, tensors: Sequence[ModelTensor], types: dict[str, str], facts: Facts
) -> list[ModelTensor]:
    """Return the tensors to which a recipe gives a different type."""
    given = assign(parse_recipe(text, "recipe", "recipe"), tensors, facts).assignments
    return [t for t in tensors if given[t.name].type.name != types[t.name]]


def by_name(tensors: Sequence[ModelTensor], types: dict[str, str]) -> Iterator[WrittenRule]:
    """Yield rules by name, for tensors that no other selector distinguishes."""
    by_type: dict[tuple[str, bool], list[str]] = {}
    for t in tensors:
        key = (types[t.name], protection(t) is not None)
        by_type.setdefault(key, []).append(f"/^{re.escape(t.name)}$/")
    for (type_name, guarded), names in by_type.items():
        yield WrittenRule(type_name, names=tuple(names), override=guarded)


def written(rule: Taken, roles: tuple[str, ...]) -> WrittenRule:
    """Return a rule as it is written, with the names of its roles."""
    names = tuple(dict.fromkeys(column.name for column in rule.columns if column.name))
    layers = tuple(map(str, rule.items or ()))
    return WrittenRule(rule.type, roles, layers, names, rule.columns[0].override)


def _prediction(shards: Shards) -> range:
    """Return the prediction layers, by the file's keys."""
    architecture = shards.keys.get("general.architecture")
    numbers: list[int] = []
    for key in ("nextn_predict_layers", "block_count"):
        found = architecture and shards.keys.get(f"{architecture.value}.{key}")
        numbers.append(found.value if found and isinstance(found.value, int) else 0)
    return ahead(*numbers)


def _unwritable(types: dict[str, str], file: str) -> Iterator[str]:
    """Yield an error for each type that dynquant does not encode."""
    names: dict[str, list[str]] = {}
    for name, type_name in types.items():
        if type_name not in ALL and type_name not in KEPT:
            names.setdefault(type_name, []).append(name)
    for type_name, some in names.items():
        shown = grouped(some)
        more = f" and {len(shown) - 4} more" if len(shown) > 4 else ""
        count = f"{len(some)} tensor{'s' if len(some) > 1 else ''}"
        yield (
            f"{file}: {', '.join(shown[:4])}{more} ({count}): dynquant does not"
            f" encode {type_name}, so no recipe can give it (`dynquant types` lists the types)"
        )


def _most_frequent(tensors: Sequence[ModelTensor], types: dict[str, str]) -> str:
    """Return the type of most tensors; if several are equal, the one with most weights."""
    counts = Counter(types[t.name] for t in tensors)
    weights = Counter[str]()
    for t in tensors:
        weights[types[t.name]] += prod(t.shape)
    return max(counts, key=lambda t: (counts[t], weights[t], t), default="F32")


def columns_of(tensors: Sequence[ModelTensor], types: dict[str, str]) -> list[Column]:
    """Return the columns for rules: roles, or parts of roles if a role has several types.

    Protected tensors are included if their type differs from the protection's; tensors of fixed
    types are not included.
    """
    by_role: dict[tuple[str, bool], list[ModelTensor]] = {}
    free_roles = {t.parts.role for t in tensors if not protection(t)}
    for t in tensors:
        guard = protection(t)
        if not (guard and guard.fixed):
            by_role.setdefault((t.parts.role, bool(guard)), []).append(t)
    columns: list[Column] = []
    for (role, guarded), some in by_role.items():
        if guarded and all(types[t.name] == "F32" for t in some):
            continue
        alone = not (guarded and role in free_roles)
        for name, part in _parts(role, some, types, alone=alone).items():
            cells = {t.parts.layer: types[t.name] for t in part}
            if not guarded or set(cells.values()) != {"F32"}:
                some_role = role if role in ROLES else ""
                columns.append(Column(some_role, tuple(cells.items()), name, guarded))
    return columns


def _parts(
    role: str, tensors: list[ModelTensor], types: dict[str, str], *, alone: bool
) -> dict[str, list[ModelTensor]]:
    """Return the tensors of a role, grouped by a name pattern that distinguishes them.

    The pattern is "" if the role suffices: its tensors in a layer have one type, and all are of one
    kind. A model of two parts has `enc.blk.0.attn_q.weight` and `dec.blk.0.attn_q.weight`, and a
    matrix may have a bias.
    """
    if role in ROLES and alone and _agree(tensors, types):
        return {"": tensors}
    parts: dict[str, list[ModelTensor]] = {}
    for t in tensors:
        head, at, tail = t.name.partition(f"blk.{t.parts.layer}.")
        if role in ROLES:
            glob = f"{head}blk.*.{tail}" if at else t.name
        else:
            number = r"blk\.\d+\." if at else ""
            glob = f"/^{re.escape(head)}{number}{re.escape(tail)}$/"
        parts.setdefault(glob, []).append(t)
    return parts


def _agree(tensors: Iterable[ModelTensor], types: dict[str, str]) -> bool:
    cells: dict[int | None, str] = {}
    return all(cells.setdefault(t.parts.layer, types[t.name]) == types[t.name] for t in tensors)
