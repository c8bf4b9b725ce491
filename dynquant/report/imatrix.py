"""The audit of an imatrix as tables, JSON and an HTML page: `dynquant imatrix audit`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynquant.figures import counted
from dynquant.importance.experts import Policy
from dynquant.importance.report import FEW_TOKENS, OUTLIER, ImatrixAudit, TensorAudit
from dynquant.report.grid import column_of
from dynquant.report.html import page_environment
from dynquant.report.tables import plain_table, ranges

_TEMPLATE = "imatrix.html.jinja"


@dataclass(frozen=True)
class Row:
    """Tensors of one role with the same use of their data; names as in `TensorAudit`."""

    role: str
    use: str
    tensors: tuple[TensorAudit, ...]

    @property
    def layers(self) -> str:
        """Their layers, or a dash."""
        return ranges(t.parts.layer for t in self.tensors if t.parts.layer is not None) or "-"

    @property
    def with_data(self) -> str:
        """How many of their matrices have data."""
        n_all = sum(t.n_matrices for t in self.tensors)
        return f"{n_all - sum(t.without for t in self.tensors):,} of {n_all:,}"

    @property
    def tokens(self) -> str:
        """Smallest and largest count of tokens, and the median of the tensors' medians."""
        found = [t.counts for t in self.tensors if t.counts]
        if not found:
            return "-"
        middle = sorted(c[1] for c in found)[len(found) // 2]
        numbers = dict.fromkeys((min(c[0] for c in found), middle, max(c[2] for c in found)))
        return " / ".join(f"{n:,}" for n in numbers)

    @property
    def few(self) -> int:
        """Matrices with data of few tokens."""
        return sum(t.few for t in self.tensors)

    @property
    def zero(self) -> str:
        """The share of channels that are zero."""
        return _share(sum(t.zero for t in self.tensors), self._channels)

    @property
    def outliers(self) -> str:
        """The share of channels that are outliers."""
        return _share(sum(t.outliers for t in self.tensors), self._channels)

    @property
    def largest(self) -> str:
        """The largest share of one channel in the sum of its matrix."""
        return _share(max(t.largest for t in self.tensors), 1) if self._channels else "-"

    @property
    def mixed(self) -> str:
        """The largest share of what experts have in common."""
        share = max(t.mixed for t in self.tensors)
        return _share(share, 1) if share else "-"

    @property
    def _channels(self) -> int:
        return sum((t.n_matrices - t.without) * t.n_per_row for t in self.tensors)


def _share(part: float, whole: float) -> str:
    if not whole:
        return "-"
    share = part / whole
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"


def rows_of(tensors: Sequence[TensorAudit]) -> list[Row]:
    """Return a row for each role and use, in the order of the model."""
    groups: dict[tuple[str, str], list[TensorAudit]] = {}
    for tensor in tensors:
        groups.setdefault((column_of(tensor.name), tensor.use), []).append(tensor)
    roles = list(dict.fromkeys(role for role, _ in groups))
    return [
        Row(role, use, tuple(found))
        for (role, use), found in sorted(groups.items(), key=lambda g: roles.index(g[0][0]))
    ]


def audit_tables(audit: ImatrixAudit, *, each: bool = False) -> RenderableType:
    """Return the problems and figures of an imatrix.

    each: show a line for each tensor instead of a line for each role
    """
    rows = [Row(t.name, t.use, (t,)) for t in audit.tensors] if each else rows_of(audit.tensors)
    problems = [f"problem: {p}" for p in audit.problems] or ["no problems"]
    about = [Text(f"{name}: {value}") for name, value in facts(audit)]
    lines = [*map(Text, problems), Text(), *about, Text(), _table(rows, each=each)]
    return Group(*lines)


def _table(rows: Sequence[Row], *, each: bool) -> Table:
    """Return a table without the columns of figures that are zero or unknown for all rows."""
    figures = {
        "data>": [r.with_data for r in rows],
        "tokens>": [r.tokens for r in rows],
        "zero>": [r.zero for r in rows],
        "outliers>": [r.outliers for r in rows],
        "largest>": [r.largest for r in rows],
        "mixed>": [r.mixed for r in rows],
    }
    shown = {name: column for name, column in figures.items() if {*column} - {"-", "0.0%"}}
    table = plain_table(*(("tensor",) if each else ("role", "layers")), *shown, "use")
    table.columns[0].no_wrap = True
    for number, r in enumerate(rows):
        names = (r.role,) if each else (r.role, r.layers)
        values = (column[number] for column in shown.values())
        table.add_row(*map(Text, names), *values, Text(r.tensors[0].short_use))
    return table


def facts(audit: ImatrixAudit) -> Iterator[tuple[str, str]]:
    """Yield what is known of a file, and how it is used, as names and texts."""
    covered = sum(t.is_covered for t in audit.tensors)
    signed = sum(t.signed for t in audit.tensors)
    form = "older format (.dat)" if audit.is_older else "GGUF"
    yield "file", f"{audit.file}, {form}, sha256 {audit.sha256}"
    if audit.datasets:
        yield "texts", ", ".join(audit.datasets)
    if audit.chunk_count is not None:
        size = f" of {audit.chunk_size:,} tokens" if audit.chunk_size else ""
        yield "windows", f"{audit.chunk_count:,}{size}"
    yield from audit.made.items()
    yield "tensors", f"data of {covered} of {len(audit.tensors)}, signed sums of {signed}"
    if any("_exps." in t.name for t in audit.tensors):
        yield "experts", policy_text(audit.policy)


def policy_text(policy: Policy) -> str:
    """Return a policy in words."""
    own = (
        f"mixed with what they have in common, which counts as {counted(policy.shrink, 'token')}"
        if policy.shrink
        else "as they are"
    )
    others = {
        "mean": "the layer's mean, ffn_down weighted equally",
        "uniform": "weighted equally",
        "error": "refused",
    }
    return f"with data: {own}; without: {others[policy.unseen]}"


def audit_json(audit: ImatrixAudit) -> dict[str, Any]:
    """Return an audit as `dynquant imatrix audit --json` prints it; scripts depend on this form."""
    return {
        "file": audit.file,
        "sha256": audit.sha256,
        "format": "dat" if audit.is_older else "gguf",
        "datasets": list(audit.datasets),
        "chunk_count": audit.chunk_count,
        "chunk_size": audit.chunk_size,
        "made": dict(audit.made),
        "policy": {"shrink": audit.policy.shrink, "unseen": audit.policy.unseen},
        "problems": list(audit.problems),
        "unused": list(audit.unused),
        "tensors": [
            {
                "name": t.name,
                "use": t.use,
                "of": t.role or None,
                "channels": t.n_per_row,
                "matrices": t.n_matrices,
                "without_data": t.without,
                "tokens": list(t.counts) if t.counts else None,
                "few_tokens": t.few,
                "constant": t.constant,
                "zero_channels": t.zero,
                "outliers": t.outliers,
                "largest_share": t.largest,
                "signed": t.signed,
                "impossible": t.impossible,
                "mixed_share": t.mixed,
            }
            for t in audit.tensors
        ],
    }


def audit_html(audit: ImatrixAudit, model: str) -> str:
    """Return an audit as an HTML page; the same input gives the same text. The page loads nothing.

    model: its name
    """
    return (
        page_environment(1)
        .get_template(_TEMPLATE)
        .render(
            audit=audit,
            model=model,
            facts=list(facts(audit)),
            rows=rows_of(audit.tensors),
            tensors=[Row(t.name, t.use, (t,)) for t in audit.tensors],
            few=FEW_TOKENS,
            outlier=OUTLIER,
        )
    )
