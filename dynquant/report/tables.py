"""Tables of files, quant types and recipes for terminals."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod
from typing import Protocol

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynquant.arch.base import TensorName
from dynquant.checkpoint.gguf import GGUFFile
from dynquant.errors import CheckpointError
from dynquant.figures import counted, size_text
from dynquant.keys import KeyValue
from dynquant.quants.readers import READERS
from dynquant.quants.table import QuantType
from dynquant.report.grid import column_of

_SHOWN_ITEMS = 6
_SHOWN_RANGES = 6
_SHOWN_CHARACTERS = 72


def ranges(numbers: Iterable[int]) -> str:
    """Return sorted numbers as ranges, each number once: 0-3,5,8-9.

    Of many ranges only the first ones and the last are shown: 0-2,4-6,8-10,…,60-62.
    """
    parts: list[str] = []
    for _, run in groupby(enumerate(sorted(set(numbers))), key=lambda p: p[1] - p[0]):
        members = [n for _, n in run]
        ends = (members[0],) if len(members) == 1 else (members[0], members[-1])
        parts.append("-".join(map(str, ends)))
    if len(parts) > _SHOWN_RANGES:
        parts[3:-1] = ["…"]
    return ",".join(parts)


class _Sized(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def n_bytes(self) -> int: ...


@dataclass
class _Row:
    """Tensors of one role with the same type."""

    count: int
    layers: list[int]
    weights: int
    n_bytes: int


def tensor_table(tensors: Sequence[tuple[_Sized, str]]) -> Table:
    """Return a table of tensors, given with their type names: a line for each role and type."""
    rows: dict[tuple[str, str], _Row] = {}
    order: dict[str, int] = {}
    for tensor, type_name in tensors:
        role, layer = column_of(tensor.name), TensorName.parse(tensor.name).layer
        order.setdefault(role, len(order))
        row = rows.setdefault((role, type_name), _Row(0, [], 0, 0))
        row.count += 1
        row.weights += prod(tensor.shape)
        row.n_bytes += tensor.n_bytes
        if layer is not None:
            row.layers.append(layer)
    total = sum(r.n_bytes for r in rows.values())
    table = plain_table("role", "layers", "count>", "type", "weights>", "bytes>", "bpw>", "share>")
    for (role, type_name), row in sorted(rows.items(), key=lambda item: order[item[0][0]]):
        table.add_row(
            role,
            ranges(row.layers) or "-",
            str(row.count),
            type_name,
            f"{row.weights:,}",
            f"{row.n_bytes:,}",
            f"{8 * row.n_bytes / row.weights:.3f}" if row.weights else "-",
            f"{row.n_bytes / total:.1%}" if total else "-",
        )
    return table


def file_tables(file: GGUFFile) -> RenderableType:
    """Return tables of a GGUF file's keys, with long values shortened, and of its tensors."""
    keys = plain_table("key", "type", "value")
    for name, key in file.keys.items():
        keys.add_row(name, key_type(key), Text(_shortened(key)))
    n_bytes = sum(t.n_bytes for t in file.tensors)
    weights = sum(prod(t.shape) for t in file.tensors)
    total = f"{counted(len(file.tensors), 'tensor')}, {weights:,} weights, {size_text(n_bytes)}"
    if weights:
        total += f", {8 * n_bytes / weights:.3f} bits per weight"
    tensors = tensor_table([(t, t.type_name) for t in file.tensors])
    return Group(keys, Text(), tensors, Text(), Text(total))


def tensor_list(file: GGUFFile) -> Table:
    """Return a table with a line for each tensor of a GGUF file."""
    table = plain_table("tensor", "type", "shape", "bytes>", "offset>")
    for t in file.tensors:
        shape = " x ".join(map(str, t.shape))
        table.add_row(t.name, t.type_name, shape, f"{t.n_bytes:,}", f"{t.offset:,}")
    return table


def value_text(file: GGUFFile, name: str) -> str:
    """Return the whole value of a key as text; each value of an array on a line.

    Raises CheckpointError for a key that the file does not have, with the nearest one.
    """
    if name not in file.keys:
        near = difflib.get_close_matches(name, file.keys, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise CheckpointError(f"{file.path}: has no key {name!r}{hint}")
    value = file.keys[name].value
    return "\n".join(map(str, value)) if isinstance(value, tuple) else str(value)


def key_type(key: KeyValue) -> str:
    """Return the type of a key as text: UINT32, or STRING[151936] for an array."""
    if key.sub_type is None or not isinstance(key.value, tuple):
        return key.type.name
    return f"{key.sub_type.name}[{len(key.value)}]"


def _shortened(key: KeyValue) -> str:
    if isinstance(key.value, tuple):
        shown = ", ".join(repr(v) for v in key.value[:_SHOWN_ITEMS])
        more = ", …" if len(key.value) > _SHOWN_ITEMS else ""
        return _cut(f"[{shown}{more}]")
    return _cut(repr(key.value) if isinstance(key.value, str) else str(key.value))


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def type_table(types: Iterable[QuantType]) -> Table:
    """Return a table of quant types, with the readers that do not read each."""
    table = plain_table("type", "bpw>", "block>", "bytes>", "imatrix", "not read by", "description")
    for t in types:
        needs = "needed" if t.needs_importance else ""
        without = ", ".join(r.name for r in READERS.values() if not r.reads(t.name))
        table.add_row(
            t.name,
            f"{t.bpw:g}",
            str(t.block_size),
            str(t.type_size),
            needs,
            without or "-",
            t.description,
        )
    return table


def reading_lines(type_: QuantType) -> Iterator[Text]:
    """Yield the readers of a type, those that do not read it, and the architectures that differ."""
    since = {r.name: r.since.get(type_.name) for r in READERS.values()}
    readers = [
        f"{name} (since {first})" if first else name
        for name, first in since.items()
        if READERS[name].reads(type_.name)
    ]
    others = [r.name for r in READERS.values() if not r.reads(type_.name)]
    line = f"{type_.name}: read by {', '.join(readers)}"
    yield Text(f"{line}; not by {', '.join(others)}" if others else line)
    for r in READERS.values():
        if but := r.exceptions(type_.name):
            does = "does not read" if r.reads(type_.name) else "reads"
            yield Text(f"{type_.name}: {r.name} {does} it in {', '.join(but)} models")


def recipe_table(recipes: Iterable[tuple[str, str]]) -> Table:
    """Return a table of recipes, given as names and descriptions."""
    table = plain_table("recipe", "description")
    for name, description in recipes:
        table.add_row(name, Text(description.strip()))
    return table


def plain_table(*columns: str) -> Table:
    """Return an empty table without borders; a column name that ends in > is aligned right."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in columns:
        right = name.endswith(">")
        table.add_column(name.rstrip(">"), justify="right" if right else "left", overflow="fold")
    return table
