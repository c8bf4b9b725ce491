"""The tensors of the output, each with the stored tensors that it is to be made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dynquant.arch.base import Architecture, Form, Row, Via
from dynquant.checkpoint.packed import Weight

_EXPERT = "{expert}"


@dataclass(frozen=True)
class Wanted:
    """A tensor of the output, to be made of stored tensors of this shape.

    layout:   of the form in which the checkpoint stores it, see Form
    oriented: whether the stored names show that rows are outputs
    again:    stored tensors that hold it a second time, in another form
    has_forms: whether the table has other forms of it
    """

    stored_names: tuple[str, ...]
    name: str
    shape: tuple[int, ...]
    is_stack: bool
    optional: bool
    via: Via | None
    layout: str = ""
    oriented: bool = True
    again: tuple[str, ...] = ()
    has_forms: bool = False


_AHEAD = ("mtp.fc.weight", "mtp.layers.0.eh_proj.weight")
"""A tensor of prediction layers that are stored apart from the model's own layers; by family."""

_TRUNK = re.compile(r"(model|backbone)\.$")
"""The last part of the prefix in place of `model.`, which the head does not have."""


@dataclass(frozen=True)
class Spelling:
    """The prefix that a checkpoint has in place of `model.` in the names of the tensor table.

    Base models without a head have none. Larger models put the name of their language model before
    or after `model.`. Other names, such as the head's, have the prefix before `model.`, or none.
    Names of prediction layers (`mtp.`) have any of these (`ahead`).
    """

    stored: Collection[str]
    trunk: str
    ahead: str = ""

    @classmethod
    def of(cls, stored: Collection[str], anchor: str) -> Spelling:
        """Derive the prefix from one tensor of the table; the table's own if it is not stored."""
        tail = anchor.removeprefix("model.")
        return cls(
            stored,
            _prefix(stored, tail, default=anchor.removesuffix(tail)),
            next(filter(None, (_prefix(stored, one, default="") for one in _AHEAD)), ""),
        )

    def __call__(self, name: str) -> str:
        """Return a name of the table as the checkpoint spells it."""
        if name.startswith("model."):
            return self.trunk + name.removeprefix("model.")
        if name.startswith("mtp."):
            return self.ahead + name
        before = _TRUNK.sub("", self.trunk)
        is_prefix = before != self.trunk and before.endswith(".") and name not in self.stored
        return before + name if is_prefix else name


def _prefix(stored: Collection[str], tail: str, default: str) -> str:
    """Return the shortest prefix that a stored name has before a tail."""
    found = [name.removesuffix(tail) for name in stored if name.endswith(tail)]
    fitting = [p for p in found if not p or p.endswith(".")]
    return min(fitting, key=lambda p: (len(p), p), default=default)


def wanted_of(
    architecture: Architecture, spell: Spelling, stored: Mapping[str, Weight]
) -> Iterator[Wanted]:
    """Yield the tensors of the table in the order of the output, layer by layer.

    Each has the form in which the checkpoint stores it, which may differ from layer to layer.
    """
    rows = architecture.rows
    layered = [row for row in rows if "{}" in row.name]
    first = rows.index(layered[0]) if layered else len(rows)
    yield from (_expand(architecture, row, spell) for row in rows[:first])
    ahead = architecture.prediction.layers if architecture.prediction else ()
    for layer in (*range(architecture.n_layers), *ahead):
        own = range(architecture.n_layers)
        there = [row for row in layered if layer in (own if row.layers is None else row.layers)]
        yield from _in_stored_form(
            [
                [_expand(architecture, row, spell, layer, f) for f in (None, *row.forms)]
                for row in there
            ],
            stored,
        )
    yield from (_expand(architecture, r, spell) for r in rows[first:] if r not in layered)


def _expand(
    architecture: Architecture,
    row: Row,
    spell: Spelling,
    layer: int | None = None,
    form: Form | None = None,
) -> Wanted:
    stored = spell((form or row).stored.replace("{}", str(layer)))
    is_stack = _EXPERT in stored
    experts = range(architecture.n_experts) if is_stack else range(1)
    return Wanted(
        tuple(stored.replace(_EXPERT, str(expert)) for expert in experts),
        row.name.replace("{}", str(layer)),
        architecture.dimensions((form or row).shape),
        is_stack,
        row.optional,
        form.via if form else architecture.via_of(row),
        form.layout if form else "",
        form is None or form.oriented,
        has_forms=bool(row.forms),
    )


def _in_stored_form(rows: Sequence[list[Wanted]], stored: Mapping[str, Weight]) -> Iterator[Wanted]:
    """Yield each row in the form that is stored; if none is, in the form of the rows beside it.

    Forms share names: the one that most rows have is meant, then the one whose shapes most have.
    """
    found = [
        [form for form in forms if len(forms) > 1 and any(n in stored for n in form.stored_names)]
        for forms in rows
    ]
    layouts = [form for forms in found for form in forms if form.layout]
    n_rows = Counter(form.layout for form in layouts)
    n_fitting = Counter(form.layout for form in layouts if _fits(form, stored))
    for forms, present in zip(rows, found, strict=True):
        like = [form for form in forms if form.layout in n_rows]
        by_rows = [
            sorted(group, key=lambda f: (-n_rows[f.layout], -n_fitting[f.layout]))
            for group in (present, like)
        ]
        chosen = (*by_rows[0], *by_rows[1], *forms)[0]
        names = dict.fromkeys(name for form in present for name in form.stored_names)
        again = tuple(n for n in names if n in stored and n not in chosen.stored_names)
        yield replace(chosen, again=again) if again else chosen


def _fits(form: Wanted, stored: Mapping[str, Weight]) -> bool:
    return all(n in stored and stored[n].shape == form.shape for n in form.stored_names)
