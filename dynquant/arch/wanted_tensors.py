"""The tensors of the output, each with the stored tensors that it is to be made of."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from dynquant.arch.base import JOINED, Architecture, Form, Row, Via
from dynquant.checkpoint.packed import Weight

_WORD = re.compile(r"\{(\w+)\}")
"""A word in a stored name that stands for each of several tensors: `{expert}`, `{head}`."""

_TRUNKS = ("model.", "transformer.", "gpt_neox.")
"""What the names of a language model without its head begin with, in the tables of families."""


@dataclass(frozen=True)
class Wanted:
    """A tensor of the output, to be made of stored tensors of this shape.

    is_joined: whether it is made of their rows; the shape is then that of all together
    layout:   of the form in which the checkpoint stores it, see Form
    oriented: whether the stored names show that rows are outputs
    again:    stored tensors that hold it a second time, in another form
    has_forms: whether the table has other forms of it
    factor:   the shape of the last stored tensor if it is the first's factor
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
    is_joined: bool = False
    factor: tuple[int, ...] | None = None

    def shape_of(self, name: str) -> tuple[int, ...]:
        """Return the shape of a stored tensor; of all together if their rows are joined."""
        is_last = name == self.stored_names[-1]
        return self.factor if self.factor is not None and is_last else self.shape

    def is_of(self, name: str, found: tuple[int, ...]) -> bool:
        """Return whether a stored tensor may have this shape."""
        if not self.is_joined:
            return found == self.shape_of(name)
        return len(found) > 1 and found[1:] == self.shape[1:]

    def fits(self, stored: Mapping[str, Weight]) -> bool:
        """Return whether all tensors that it is made of are stored, in their shapes."""
        return (
            all(n in stored and self.is_of(n, stored[n].shape) for n in self.stored_names)
            and self.n_missing_rows(stored) == 0
        )

    def n_missing_rows(self, stored: Mapping[str, Weight]) -> int:
        """Return how many rows the stored parts have too few; zero if it is not joined."""
        if not self.is_joined:
            return 0
        return self.shape[0] - sum(stored[n].shape[0] for n in self.stored_names)


_AHEAD = ("mtp.fc.weight", "mtp.layers.0.eh_proj.weight")
"""A tensor of prediction layers that are stored apart from the model's own layers; by family."""

_TRUNK = re.compile(r"(model|backbone|transformer|gpt_neox)\.$")
"""The last part of a prefix, which the head does not have."""


@dataclass(frozen=True)
class Spelling:
    """The prefix that a checkpoint has in place of `model.` in the names of the tensor table.

    Base models without a head have none. Larger models put the name of their language model before
    or after `model.`. Other names, such as the head's, have the prefix before `model.`, or none.
    Names of prediction layers (`mtp.`) have any of these (`ahead`).

    table: the prefix in the table: `model.`, or another word of older families
    """

    stored: Collection[str]
    trunk: str
    ahead: str = ""
    table: str = "model."

    @classmethod
    def of(cls, stored: Collection[str], anchor: str) -> Spelling:
        """Derive the prefix from one tensor of the table; the table's own if it is not stored."""
        table = next((trunk for trunk in _TRUNKS if anchor.startswith(trunk)), "model.")
        tail = anchor.removeprefix(table)
        return cls(
            stored,
            _prefix(stored, tail, default=anchor.removesuffix(tail)),
            next(filter(None, (_prefix(stored, one, default="") for one in _AHEAD)), ""),
            table,
        )

    def __call__(self, name: str) -> str:
        """Return a name of the table as the checkpoint spells it."""
        if name.startswith(self.table):
            return self.trunk + name.removeprefix(self.table)
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

    def forms(row: Row, layer: int | None = None) -> list[Wanted]:
        return [_expand(architecture, row, spell, layer, f) for f in (None, *row.forms)]

    yield from _in_stored_form([forms(row) for row in rows[:first]], stored)
    ahead = architecture.prediction.layers if architecture.prediction else ()
    for layer in (*range(architecture.n_layers), *ahead):
        own = range(architecture.n_layers)
        there = [row for row in layered if layer in (own if row.layers is None else row.layers)]
        yield from _in_stored_form([forms(row, layer) for row in there], stored)
    yield from _in_stored_form([forms(row) for row in rows[first:] if row not in layered], stored)


def _expand(
    architecture: Architecture,
    row: Row,
    spell: Spelling,
    layer: int | None = None,
    form: Form | None = None,
) -> Wanted:
    stored = spell((form or row).stored.replace("{}", str(layer)))
    found = _WORD.search(stored)
    word = found[1] if found else ""
    n = architecture.n_parts(word, row) if word else 1
    factors = (spell(row.times[0].replace("{}", str(layer))),) if row.times else ()
    return Wanted(
        (*(_WORD.sub(str(part), stored) for part in range(n)), *factors),
        row.name.replace("{}", str(layer)),
        architecture.dimensions((form or row).shape),
        word not in ("", JOINED),
        row.optional,
        form.via if form else architecture.via_of(row),
        form.layout if form else "",
        form is None or form.oriented,
        has_forms=bool(row.forms),
        is_joined=word == JOINED,
        factor=architecture.dimensions(row.times[1]) if row.times else None,
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
    n_fitting = Counter(form.layout for form in layouts if form.fits(stored))
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
