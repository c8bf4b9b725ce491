"""Every tensor's type, size and place, and every key, known before a byte is written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

from gguf import GGUF_DEFAULT_ALIGNMENT

from dynquant.arch.base import Model, ModelTensor
from dynquant.errors import DynquantError, ImportanceError, PlanError, RecipeError
from dynquant.importance.audit import Importance, audit, gaps
from dynquant.importance.imatrix import Imatrix
from dynquant.keys import Keys, KeyValue
from dynquant.plan.checks import (
    changing,
    importance_problems,
    is_copied,
    requantized,
    tensor_problems,
)
from dynquant.plan.quantizer_keys import quantizer_keys, with_ours
from dynquant.plan.resolve import resolve
from dynquant.plan.set_keys import apply_settings, key_problems
from dynquant.plan.shards import Shard, Split, shards_of
from dynquant.quants.search import EFFORTS, Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.assignment import Assigned, Assignment
from dynquant.recipe.rules import Recipe
from dynquant.tensors import ShardFile, parts_of

ALIGNMENT = GGUF_DEFAULT_ALIGNMENT
"""Bytes that every tensor's offset is a multiple of: GGUF's default, which needs no key."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output.

    shape:      as in numpy, slowest dimension first
    offset:     bytes from the start of its file's data section
    n_bytes:    bytes of all its blocks, without the padding that follows
    rule:       where its type comes from, as people look it up ("recipes/small.yaml:14")
    instead_of: the rule's type, where rows do not divide into its blocks and the fallback stands in
    importance: what the encoder knows of the input channels: "yes", or of which of the experts;
                None where it weighs all alike, and for types that store each weight alone
    note:       what the rule says of itself
    shard:      the file that it is in, counted from 0
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType
    offset: int
    n_bytes: int
    rule: str
    instead_of: QuantType | None = None
    importance: str | None = None
    note: str = ""
    shard: int = 0

    @property
    def n_weights(self) -> int:
        """Weights in the tensor."""
        return prod(self.shape)

    @property
    def n_per_row(self) -> int:
        """Weights in a row."""
        return self.shape[-1]


class Totals:
    """What the tensors of a whole output come to."""

    tensors: tuple[TensorPlan, ...]

    @property
    def n_weights(self) -> int:
        """Weights of all tensors."""
        return sum(t.n_weights for t in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a weight over all tensors."""
        return 8 * self.tensor_bytes / self.n_weights


@dataclass(frozen=True)
class Plan(Totals):
    """A whole output as data: `keys` and `tensors` in the order they are written in.

    shards:     its files, one or several
    sources:    the rows of each tensor, by its name
    ignored:    stored tensors that the output leaves out, with the reason
    files:      files of the model that must not be written, besides those of `sources`
    importance: what each encoder is to know of the input channels, by tensor, from the imatrix
    effort:     how much the encoders search
    prediction: layers among the tensors that predict further ahead
    missing:    why it cannot be carried out, as in `Model`; its tensors and their sizes hold
    refusals:   why the file is not to be written, of a draft: importance that is missing
    """

    architecture: str
    recipe: Recipe
    keys: Keys
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    sources: dict[str, ModelTensor] = field(repr=False)
    warnings: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    files: tuple[Path, ...] = ()
    imatrix: Imatrix | None = None
    importance: Mapping[str, Importance] = field(default_factory=dict[str, Importance], repr=False)
    effort: Effort = "normal"
    prediction: range = range(0)
    missing: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()

    @cached_property
    def source_files(self) -> tuple[Path, ...]:
        """The files that the tensors are read from, each once, in order of first use."""
        sources = (self.sources[t.name].source for t in self.tensors)
        return tuple({f.path: None for s in sources for f in parts_of(s, ShardFile)})

    @property
    def unweighed(self) -> tuple[str, ...]:
        """Names of the tensors whose encoder weighs all channels alike."""
        return tuple(
            t.name
            for t in self.tensors
            if not (t.type.is_float or t.importance or is_copied(self.sources[t.name], t.type))
        )

    @property
    def data_bytes(self) -> int:
        """Bytes of the data sections: the tensors, each padded to the alignment."""
        return sum(shard.n_bytes for shard in self.shards)

    @property
    def type_counts(self) -> dict[str, int]:
        """Number of tensors of each type, the most frequent first."""
        return dict(Counter(t.type.name for t in self.tensors).most_common())


def padded(n_bytes: int) -> int:
    """Return n_bytes rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def make_plan(
    model: Model,
    recipe: Recipe,
    *,
    imatrix: Imatrix | None = None,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    draft: bool = False,
) -> Plan:
    """Resolve a recipe for a model into the plan of one GGUF file.

    imatrix:  what weighs the errors of the encoders; without one, all channels weigh alike
    effort:   how much the encoders search: "fast", "normal" or "best"; None leaves it to the
              recipe, which has "normal" where it says nothing
    allow_requantize: let tensors that are blocks in a GGUF become blocks of another type
    set_keys: keys to change or to add; text is read as `--set KEY=VALUE` reads it, in the type
              that the key has already
    split:    how to cut the output into files; None leaves it to the recipe
    draft:    return the plan also where importance is missing that it needs; its `refusals` say
              so, and it cannot be converted

    Raises RecipeError if the recipe does not fit the model, ImportanceError if the imatrix is
    another model's, PlanError for names, shapes and keys that GGUF cannot hold, for types of too
    few bits to do without importance, for weights that were quantized already, and where more than
    one of these is the case; all messages at once.
    """
    effort = effort or recipe.effort or "normal"
    misfits: list[DynquantError] = []
    problems: list[str] = []
    refusals: list[str] = []
    warnings: list[str] = []
    if effort not in EFFORTS:
        problems.append(f"{effort!r} is not an effort; take one of {', '.join(EFFORTS)}")
    if recipe.importance == "required" and imatrix is None:
        refusals.append(
            f"{recipe.path}: needs importance (importance: required); give the model's imatrix"
            " (--imatrix FILE)"
        )
    if recipe.importance == "ignored" and imatrix is not None:
        warnings.append(
            f"{recipe.path}: ignores the imatrix {imatrix.path.name} (importance: ignored)"
        )
        imatrix = None
    assigned = Assigned({}, ())
    known: dict[str, Importance] = {}
    told: tuple[str, ...] = ()
    try:
        resolved = resolve(model, recipe, importance=imatrix is not None)
        model, assigned = resolved.model, resolved.assigned
        warnings += resolved.warnings
    except (RecipeError, PlanError) as e:
        misfits.append(e)
    problems = [*tensor_problems(model.tensors), *problems]
    changed = changing(model.tensors, assigned)
    quantized = [n for n, chosen in changed.items() if not chosen.type.is_float]
    if not allow_requantize:
        problems += requantized(model, changed)
    try:
        known, told = audit(imatrix, model.tensors) if imatrix else (known, told)
        refusals += importance_problems(changed, imatrix, known)
    except ImportanceError as e:
        misfits.append(e)
    importance = {name: known[name] for name in quantized if name in known}
    weights: Counter[QuantType] = Counter()
    for t in model.tensors:
        if t.name in assigned.assignments:
            weights[assigned.assignments[t.name].type] += prod(t.shape)
    keys = with_ours(model.keys, quantizer_keys(recipe, effort, weights, imatrix))
    keys, key_faults = apply_settings(keys, recipe.metadata, f"{recipe.path}: metadata")
    problems += key_faults
    keys, key_faults = apply_settings(keys, set_keys or {}, "--set")
    problems += [*key_faults, *key_problems(keys)]
    if not draft:
        problems += refusals
    if len(misfits) == 1 and not problems:
        raise misfits[0]
    PlanError.raise_any([*(m for e in misfits for m in e.messages), *problems])
    if imatrix:
        told += tuple(gaps(imatrix, quantized, importance))
    tensors, shards = lay_out_tensors(
        _ordered(model.tensors, recipe),
        assigned.assignments,
        importance,
        split or Split(recipe.output.shard_bytes),
    )
    return Plan(
        architecture=model.architecture,
        recipe=recipe,
        keys=keys,
        tensors=tensors,
        shards=shards,
        sources={t.name: t for t in model.tensors},
        warnings=(*model.deviations, *warnings, *told),
        ignored=model.ignored,
        files=model.files,
        imatrix=imatrix,
        importance=importance,
        effort=effort,
        prediction=model.prediction.layers if model.prediction else range(0),
        missing=model.missing,
        refusals=tuple(refusals),
    )


def _ordered(tensors: tuple[ModelTensor, ...], recipe: Recipe) -> tuple[ModelTensor, ...]:
    """Return tensors in the order that the recipe wants them written in."""
    if recipe.output.tensor_order == "model":
        return tensors
    # As llama-quantize writes them: those of no layer first, each layer's by name.
    return tuple(
        sorted(tensors, key=lambda t: (-1 if t.parts.layer is None else t.parts.layer, t.name))
    )


def lay_out_tensors(
    tensors: tuple[ModelTensor, ...],
    assignments: Mapping[str, Assignment],
    importance: Mapping[str, Importance],
    split: Split,
) -> tuple[tuple[TensorPlan, ...], tuple[Shard, ...]]:
    """Return every tensor with its place, and the files that they are in."""
    types = [assignments[t.name].type for t in tensors]
    sizes = [t.n_rows * q.row_size(t.n_per_row) for t, q in zip(tensors, types, strict=True)]
    shards = shards_of([padded(n) for n in sizes], split)
    plans: list[TensorPlan] = []
    for number, shard in enumerate(shards):
        offset = 0
        for i in range(shard.start, shard.stop):
            t, chosen = tensors[i], assignments[tensors[i].name]
            plans.append(
                TensorPlan(
                    t.name,
                    t.shape,
                    types[i],
                    offset,
                    sizes[i],
                    chosen.rule,
                    chosen.instead_of,
                    importance[t.name].coverage if t.name in importance else None,
                    chosen.note,
                    number,
                )
            )
            offset += padded(sizes[i])
    return tuple(plans), shards
