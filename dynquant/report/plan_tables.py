"""Tables of a plan for terminals: the bytes of each role or tensor, totals and notes."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dynquant.feedback.factors import memory_of
from dynquant.figures import counted, size_text
from dynquant.importance.equal import DATASET
from dynquant.importance.imatrix import Imatrix
from dynquant.name_lists import grouped
from dynquant.plan.feedback import may_have_feedback, settings_text
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants.readers import readers_text
from dynquant.report.imatrix import policy_text
from dynquant.report.tables import plain_table, ranges, tensor_table
from dynquant.report.totals import Fallback, by_reason, fallbacks, grid_lines, needing

_SHOWN = 6


def plan_tables(plan: Plan, file_bytes: int | None, *, each: bool = False) -> RenderableType:
    """Return the tables and totals of a plan.

    file_bytes: size of the file; None if it is not known
    each:       show a line for each tensor, with its rule, instead of a line for each role
    """
    what = "projector (clip)" if plan.architecture == "clip" else plan.architecture
    title = (
        f"{what} by recipe {plan.recipe.name}, effort {plan.effort}:"
        f" {counted(len(plan.tensors), 'tensor')}, {plan.n_weights:,} weights"
    )
    tensors = _each(plan) if each else tensor_table([(t, t.type.name) for t in plan.tensors])
    lines = [*_totals(plan, file_bytes), *_importance(plan), *_ignored(plan)]
    return Group(Text(title), Text(), tensors, Text(), *map(Text, lines))


def _each(plan: Plan) -> Table:
    notes = ["note"] if any(t.note for t in plan.tensors) else []
    feedback = ["feedback"] if plan.feedback else []
    table = plain_table(
        "tensor", "shape", "type", "bytes>", "bpw>", "importance", *feedback, "rule", *notes
    )
    unweighted = frozenset(plan.unweighted)
    for t in plan.tensors:
        table.add_row(
            Text(t.name),
            "x".join(map(str, t.shape)),
            t.type.name,
            f"{t.n_bytes:,}",
            f"{t.type.bpw:.3f}",
            t.importance or ("none" if t.name in unweighted else "-"),
            *(str(plan.feedback.get(t.name, "-")) for _ in feedback),
            Text(_decided(t)),
            *(Text(t.note) for _ in notes),
        )
    return table


def _decided(tensor: TensorPlan) -> str:
    if tensor.instead_of is None:
        return tensor.rule
    return f"{tensor.rule}, fallback for {tensor.instead_of.name}"


def _totals(plan: Plan, file_bytes: int | None) -> Iterator[str]:
    yield f"tensors {size_text(plan.tensor_bytes)}, {plan.bits_per_weight:.3f} bits per weight"
    yield f"file    {'size unknown' if file_bytes is None else size_text(file_bytes)}"
    if len(plan.shards) > 1:
        sizes = ", ".join(size_text(shard.n_bytes) for shard in plan.shards[:_SHOWN])
        more = ", …" if len(plan.shards) > _SHOWN else ""
        yield f"shards  {len(plan.shards)}: {sizes}{more}"
    yield f"types   {', '.join(f'{name} {count}' for name, count in plan.type_counts.items())}"
    readers = readers_text(plan.type_counts, plan.architecture, is_adapter=plan.is_adapter)
    yield f"readers {readers}"
    used = fallbacks(plan.tensors)
    for fallback in used:
        yield _fallback(fallback)
    if len(used) > 1:
        extra = sum(f.extra_bytes for f in used)
        yield (
            f"all fallbacks: {counted(sum(len(f.names) for f in used), 'tensor')},"
            f" {_more(extra)},"
            f" {8 * extra / plan.n_weights:+.4f} bits per weight of the model"
        )
    for line in grid_lines(plan):
        yield f"grid    {line}"
    if plan.prediction:
        yield f"layers {ranges(plan.prediction)} are for multi-token prediction (nextn)"


def _fallback(used: Fallback) -> str:
    return (
        f"fallback {used.taken.name} for {used.wanted.name}: {counted(len(used.names), 'tensor')},"
        f" {used.extra_bits:+.4g} bits per weight, {_more(used.extra_bytes)}:"
        f" {_some(used.names)}"
    )


def _more(n_bytes: int) -> str:
    return f"{size_text(abs(n_bytes))} {'less' if n_bytes < 0 else 'more'}"


def _importance(plan: Plan) -> Iterator[str]:
    """Yield the types that need importance, and the tensors that the imatrix does not cover."""
    if needed := needing(plan):
        names = ", ".join(dict.fromkeys(t.type.name for t in needed))
        without = [t.name for t in needed if not t.importance]
        covered = f"missing for {_some(without)}" if without else "available for all"
        yield f"importance needed by {counted(len(needed), 'tensor')} ({names}), {covered}"
    if plan.imatrix:
        yield _imatrix(plan, plan.imatrix)
    if any(i.common for i in plan.importance.values()):
        yield f"importance of experts {policy_text(plan.experts)}"
    yield from _feedback(plan)
    borrowed: dict[str, list[str]] = {}
    for name, importance in plan.importance.items():
        if importance.role:
            borrowed.setdefault(importance.role, []).append(name)
    if borrowed:
        each = (f"{', '.join(grouped(names))} from {role}" for role, names in borrowed.items())
        yield f"importance of tensors with the same inputs: {'; '.join(each)}"


def _feedback(plan: Plan) -> Iterator[str]:
    """Yield how many tensors have error feedback, and those without moments."""
    if plan.moments is None:
        return
    line = (
        f"moments {plan.moments.path.name}: error feedback for"
        f" {counted(len(plan.feedback), 'tensor')} ({settings_text(plan.feedback)}),"
        f" {size_text(memory_of(plan.moments.inputs[name] for name in plan.feedback))} of memory"
    )
    absent = [
        t.name
        for t in plan.tensors
        if t.importance and t.name not in plan.moments.inputs and may_have_feedback(t.name, t.type)
    ]
    yield f"{line}, no moments for {_some(absent)}" if absent else line


def _imatrix(plan: Plan, imatrix: Imatrix) -> str:
    """Return how many tensors an imatrix covers, and the others but the embedding."""
    source = f" ({DATASET})" if DATASET in imatrix.datasets else ""
    covered = counted(len(plan.importance), "tensor")
    line = f"imatrix {imatrix.path.name}{source}: importance for {covered}"
    if without := sum(len(i.without) for i in plan.importance.values()):
        line += f" ({without} of their experts have none)"
    missing = [n for n in plan.unweighted if n != "token_embd.weight"]
    return f"{line}, none for {', '.join(grouped(missing))}" if missing else line


def _ignored(plan: Plan) -> Iterator[str]:
    """Yield the tensors that are ignored and why; long lists are shortened, but not in JSON."""
    for reason, names in by_reason(plan.ignored).items():
        yield f"ignored: {_some(names)}: {reason}"


def _some(names: list[str] | tuple[str, ...]) -> str:
    """Return names, grouped by their numbers; if there are many, the first and how many more."""
    lines = grouped(names)
    if len(lines) > _SHOWN:
        return f"{lines[0]} and {len(lines) - 1} more"
    return ", ".join(lines)
