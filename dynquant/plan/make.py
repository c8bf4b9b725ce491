"""Makes the plan of a recipe and a model: everything that can fail fails here, at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.gguf_files import projector_needs
from dynquant.errors import ImportanceError, PlanError, Problems, RecipeError
from dynquant.importance.audit import Importance, audit, gaps
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.keys import Keys, KeyValue
from dynquant.measure.grids import OnGrid
from dynquant.plan.checks import (
    changing,
    importance_problems,
    importance_remedy,
    lost_grids,
    open_choices,
    requantized,
    special_types,
    tensor_problems,
    unseen_problems,
)
from dynquant.plan.feedback import (
    Fed,
    decide_feedback,
    feedback_keys,
    required_problems,
    unmet_problems,
)
from dynquant.plan.left_out import left_out
from dynquant.plan.plan import Plan, RecipeText, TensorPlan, padded
from dynquant.plan.quantizer_keys import quantizer_keys, with_ours
from dynquant.plan.resolve import resolve
from dynquant.plan.set_keys import apply_settings, key_problems, unknown_settings
from dynquant.plan.shards import Shard, Split, shards_of
from dynquant.quants.search import EFFORTS, Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.assignment import Assigned, Assignment, with_types
from dynquant.recipe.rules import Recipe
from dynquant.vocab.loading import loading_problems, loading_warnings


def make_plan(
    model: Model,
    recipe: Recipe,
    *,
    imatrix: Imatrix | None = None,
    moments: Moments | None = None,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    draft: bool = False,
    grids: Mapping[str, OnGrid] = MappingProxyType({}),
    decided: Mapping[str, QuantType] | None = None,
) -> Plan:
    """Resolve a recipe for a model into the plan of one output.

    imatrix:  weights the errors of the encoders; without one, all input channels count equally
    moments:  the second moments of the inputs, for error feedback; they need an imatrix
    effort:   how much the encoders search: "fast", "normal" or "best"; None leaves it to the
              recipe, whose default is "normal"
    allow_requantize: allow tensors that are quantized in a GGUF to get another type
    set_keys: keys to change or to add; text is read as `--set KEY=VALUE` reads it, in the type
              that the key has already
    split:    how to cut the output into files; None leaves it to the recipe
    draft:    return the plan even if importance that it needs is missing; its `refusals` say so,
              and it cannot be converted
    grids:    the grids that tensors of floats lie on, by name, of `find_grids`
    decided:  types of tensors that a rule leaves open (`choose`); those that are not in it get the
              one of the most bits. None refuses such rules

    Raises RecipeError if the recipe does not fit the model, ImportanceError if the imatrix is
    another model's or the moments are, PlanError for names, shapes and keys that GGUF cannot hold,
    for types that need importance, for weights that are quantized already, and if more than one of
    these is the case; all messages at once.
    """
    effort = effort or recipe.effort or "normal"
    problems = Problems()
    refusals: list[str] = []
    warnings: list[str] = []
    if recipe.importance == "required" and imatrix is None:
        refusals.append(
            f"{recipe.path}: needs importance (importance: required);"
            f" {importance_remedy(model.architecture)}"
        )
    if recipe.importance == "ignored" and imatrix is not None:
        warnings.append(
            f"{recipe.path}: ignores the imatrix {imatrix.path.name} (importance: ignored)"
        )
        imatrix = None
    resolved = problems.attempt(
        lambda: resolve(model, recipe, importance=imatrix is not None, grids=grids),
        RecipeError,
        PlanError,
    )
    assigned = Assigned({}, ())
    if resolved:
        model, assigned = resolved.model, resolved.assigned
        warnings += resolved.warnings
    open_types = assigned.open
    if decided is None:
        problems.add(*open_choices(assigned.assignments))
    else:
        assigned = with_types(assigned, decided)
    problems.add(*tensor_problems(model.tensors))
    if effort not in EFFORTS:
        problems.add(f"{effort!r} is not an effort; use one of {', '.join(EFFORTS)}")
    changed = changing(model.tensors, assigned)
    quantized = [n for n, chosen in changed.items() if not chosen.type.is_float]
    if not allow_requantize:
        problems.add(*requantized(model, changed))
    known: Mapping[str, Importance] = {}
    imatrix_warnings: tuple[str, ...] = ()
    if imatrix is None:
        refusals += importance_problems(changed, None, {}, model.architecture)
    elif audited := problems.attempt(
        lambda: audit(imatrix, model.tensors, recipe.experts), ImportanceError
    ):
        known, imatrix_warnings = audited
        refusals += importance_problems(changed, imatrix, known, model.architecture)
        if recipe.experts.unseen == "error":
            refusals += unseen_problems(recipe.path, quantized, imatrix, known)
    importance = {name: known[name] for name in quantized if name in known}
    refusals += required_problems(recipe, moments, changed)
    feedback = Fed()
    if moments:
        feedback = (
            problems.attempt(
                lambda: decide_feedback(
                    recipe, moments, imatrix, model.tensors, changed, importance
                ),
                ImportanceError,
            )
            or feedback
        )
        refusals += unmet_problems(recipe, moments, changed, feedback)
    grids = {t.name: grids[t.name] for t in model.tensors if t.name in grids}
    warnings += special_types(recipe.path, changed, grids)
    warnings += lost_grids(recipe.path, assigned.assignments, grids)
    warnings += unknown_settings(recipe.metadata, f"{recipe.path}: metadata")
    warnings += unknown_settings(set_keys or (), "--set")
    keys, faults = _keys(model, recipe, effort, assigned, imatrix, feedback, set_keys or {})
    problems.add(*faults, *loading_problems(keys))
    if not draft:
        problems.add(*refusals)
    problems.raise_any(PlanError)
    if imatrix:
        imatrix_warnings += tuple(gaps(imatrix, quantized, importance))
    tensors, shards = lay_out_tensors(
        _ordered(model.tensors, recipe),
        assigned.assignments,
        importance,
        split or Split(recipe.output.shard_bytes),
    )
    return Plan(
        architecture=model.architecture,
        recipe=RecipeText.of(recipe),
        keys=keys,
        tensors=tensors,
        shards=shards,
        sources={t.name: t for t in model.tensors},
        warnings=(
            *model.deviations,
            *loading_warnings(keys, model.trims, model.keys),
            *left_out(model.ignored),
            *warnings,
            *imatrix_warnings,
            *feedback.warnings,
        ),
        ignored=model.ignored,
        files=model.files,
        imatrix=imatrix,
        importance=importance,
        experts=recipe.experts,
        moments=feedback.moments,
        feedback=feedback.settings,
        effort=effort,
        prediction=model.prediction.layers if model.prediction else range(0),
        set_keys=frozenset(n for n, key in keys.items() if model.keys.get(n) != key),
        allow_requantize=allow_requantize,
        missing=model.missing,
        refusals=tuple(refusals),
        leave_out=model.leave_out,
        grids=grids,
        choices=open_types,
    )


def _keys(
    model: Model,
    recipe: Recipe,
    effort: Effort,
    assigned: Assigned,
    imatrix: Imatrix | None,
    feedback: Fed,
    set_keys: Mapping[str, KeyValue | str],
) -> tuple[Keys, list[str]]:
    """Return the keys of the output, and what is wrong with those that were set."""
    weights: Counter[QuantType] = Counter()
    for t in model.tensors:
        if t.name in assigned.assignments:
            weights[assigned.assignments[t.name].type] += t.n_rows * t.n_per_row
    ours = quantizer_keys(recipe, effort, weights, imatrix)
    ours |= feedback_keys(feedback.moments, feedback.settings)
    keys = with_ours(model.keys, ours)
    keys, of_recipe = apply_settings(keys, recipe.metadata, f"{recipe.path}: metadata")
    keys, of_options = apply_settings(keys, set_keys, "--set")
    of_projector = projector_needs.value_problems(keys)
    return keys, [*of_recipe, *of_options, *key_problems(keys), *of_projector]


def _ordered(tensors: tuple[ModelTensor, ...], recipe: Recipe) -> tuple[ModelTensor, ...]:
    """Return tensors in the order of the file that the recipe asks for."""
    if recipe.output.tensor_order == "model":
        return tensors
    # As llama-quantize writes them: those of no layer first, each layer's by name.
    return tuple(
        sorted(tensors, key=lambda t: (-1 if t.parts.layer is None else t.parts.layer, t.name))
    )


def lay_out_tensors(
    tensors: Sequence[ModelTensor],
    assignments: Mapping[str, Assignment],
    importance: Mapping[str, Importance],
    split: Split,
) -> tuple[tuple[TensorPlan, ...], tuple[Shard, ...]]:
    """Return every tensor with its place, and the files that they are in, cut as `split` says."""
    sizes = (padded(_size(t, assignments)) for t in tensors)
    cut = [shard.start for shard in shards_of(tuple(sizes), split)]
    return place_tensors(tensors, assignments, importance, cut)


def place_tensors(
    tensors: Sequence[ModelTensor],
    assignments: Mapping[str, Assignment],
    importance: Mapping[str, Importance],
    cut: Sequence[int],
) -> tuple[tuple[TensorPlan, ...], tuple[Shard, ...]]:
    """Return every tensor with its place, and the files that they are in.

    cut: numbers of the tensors that begin a file

    Raises EncodeError if a type's block size does not divide a tensor's rows.
    """
    plans: list[TensorPlan] = []
    shards: list[Shard] = []
    for number, (start, stop) in enumerate(pairwise((*cut, len(tensors)))):
        offset = 0
        for t in tensors[start:stop]:
            chosen, size = assignments[t.name], _size(t, assignments)
            plans.append(
                TensorPlan(
                    t.name,
                    t.shape,
                    chosen.type,
                    offset,
                    size,
                    chosen.rule,
                    chosen.instead_of,
                    importance[t.name].coverage if t.name in importance else None,
                    chosen.note,
                    number,
                    chosen.on_grid,
                )
            )
            offset += padded(size)
        shards.append(Shard(start, stop, offset))
    return tuple(plans), tuple(shards)


def _size(tensor: ModelTensor, assignments: Mapping[str, Assignment]) -> int:
    return tensor.n_rows * assignments[tensor.name].type.row_size(tensor.n_per_row)
