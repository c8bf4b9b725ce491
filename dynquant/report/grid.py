"""The tensors of a plan in a grid: layers from top to bottom, roles from left to right."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dynquant.arch.base import TensorName
from dynquant.plan.plan import TensorPlan
from dynquant.recipe.roles import GROUPS

SMALL = "norms, routers, biases"

_GROUPS = ("attention", "ssm", "dense_ffn", "experts", "shared_experts", "mtp", "other", SMALL)
"""Groups of columns from left to right; names of role groups are those of recipes."""

_FLOW = (
    *("attn_qkv", "attn_q_a", "attn_q_b", "attn_q", "attn_kv_a_mqa", "attn_kv_b"),
    *("attn_k_b", "attn_v_b", "attn_k", "attn_v", "attn_gate", "attn_output"),
    *("ffn_gate_up", "ffn_gate", "ffn_up", "ffn_down"),
)
"""Roles from left to right within a group, whatever the order of the file; others follow."""

_EXPERTS = re.compile(r"_(exps|shexp|chexps)$")
_LAST = re.compile(r"(\w+\.)?(output|cls)\w*\..*")
"""Names of tensors that come after the layers; others outside the layers come before."""


@dataclass(frozen=True)
class Row:
    """The tensors of one layer; `cells` has as many entries as the grid has columns."""

    label: str
    cells: tuple[tuple[TensorPlan, ...], ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of the layer."""
        return sum(t.n_bytes for cell in self.cells for t in cell)


@dataclass(frozen=True)
class Grid:
    """Every tensor of a plan once: before the layers, in the row of its layer, or after the layers.

    groups: groups of columns from left to right, each with its roles
    """

    before: tuple[TensorPlan, ...]
    groups: tuple[tuple[str, tuple[str, ...]], ...]
    rows: tuple[Row, ...]
    after: tuple[TensorPlan, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The roles from left to right."""
        return tuple(role for _, roles in self.groups for role in roles)

    @property
    def starts(self) -> frozenset[int]:
        """Indices of the first columns of groups."""
        sizes = [len(roles) for _, roles in self.groups]
        return frozenset(sum(sizes[:i]) for i in range(len(sizes)))

    @property
    def first_small(self) -> int:
        """Index of the first column of SMALL; without that group, the number of columns."""
        return sum(len(roles) for group, roles in self.groups if group != SMALL)

    def column(self, index: int) -> tuple[TensorPlan, ...]:
        """Return the tensors of one column."""
        return tuple(t for row in self.rows for t in row.cells[index])


def column_of(name: str) -> str:
    """Return the column of a tensor: its role, or the name within the layer if it is not a weight.

    `blk.3.attn_q.weight` is attn_q, and the bias beside it attn_q.bias.
    """
    return _place(name)[1]


def is_small(tensor: TensorPlan) -> bool:
    """Whether a tensor is a norm, router, bias or the like, which recipes seldom select."""
    role = TensorName.parse(tensor.name).role
    is_small_role = role in GROUPS["norms"] or role in GROUPS["router"]
    return is_small_role or len(tensor.shape) < 2 or tensor.name.endswith(".bias")


def make_grid(tensors: Sequence[TensorPlan]) -> Grid:
    """Arrange tensors: layers by number, parts of a model (`enc`, `dec`) in order of appearance."""
    outside: list[TensorPlan] = []
    layers: dict[tuple[str, int], dict[str, list[TensorPlan]]] = {}
    parts: dict[str, int] = {}
    for tensor in tensors:
        row, column = _place(tensor.name)
        if row is None:
            outside.append(tensor)
            continue
        parts.setdefault(row[0], len(parts))
        layers.setdefault(row, {}).setdefault(column, []).append(tensor)
    groups = _groups(t for t in tensors if _place(t.name)[0] is not None)
    columns = [role for _, roles in groups for role in roles]
    return Grid(
        before=tuple(t for t in outside if not _LAST.fullmatch(t.name)),
        groups=groups,
        rows=tuple(
            Row(_label(row), tuple(tuple(layers[row].get(c, ())) for c in columns))
            for row in sorted(layers, key=lambda row: (parts[row[0]], row[1]))
        ),
        after=tuple(t for t in outside if _LAST.fullmatch(t.name)),
    )


def _place(name: str) -> tuple[tuple[str, int] | None, str]:
    """Return the row (part of the model, layer; None outside the layers) and column of a tensor."""
    layer = TensorName.parse(name).layer
    part, _, rest = name.partition("blk.")
    row = None if layer is None else (part.rstrip("."), layer)
    column = name if layer is None else rest.partition(".")[2]
    return row, column.removesuffix(".weight")


def _label(row: tuple[str, int]) -> str:
    return f"{row[0]} {row[1]}".strip()


def _groups(tensors: Iterable[TensorPlan]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    by_column: dict[str, list[TensorPlan]] = {}
    for tensor in tensors:
        by_column.setdefault(column_of(tensor.name), []).append(tensor)
    found: dict[str, list[str]] = {}
    for column, members in by_column.items():
        group = SMALL if all(map(is_small, members)) else _group(column)
        found.setdefault(group, []).append(column)
    return tuple((g, tuple(sorted(found[g], key=_flow))) for g in _GROUPS if g in found)


def _group(column: str) -> str:
    if column.startswith("nextn."):
        return "mtp"
    role = column.removeprefix("cross_")
    return next((g for g in _GROUPS if role in GROUPS.get(g, ())), "other")


def _flow(column: str) -> int:
    stem = _EXPERTS.sub("", column)
    return _FLOW.index(stem) if stem in _FLOW else len(_FLOW)
