"""Reasons to refuse a plan: names, shapes, quantized sources, missing importance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.towers.whole import CLIP
from dynquant.importance.audit import Importance, missing
from dynquant.importance.imatrix import Imatrix
from dynquant.measure.grids import OnGrid
from dynquant.name_lists import grouped
from dynquant.quants.encoder import is_copied
from dynquant.recipe.assignment import Assigned, Assignment

MAX_NAME_BYTES = 63
"""ggml stores a tensor's name in 64 bytes, including the final zero (GGML_MAX_NAME)."""

MAX_DIMS = 4
"""ggml's limit of dimensions (GGML_MAX_DIMS)."""


def importance_remedy(architecture: str) -> str:
    """Return what to do about missing importance, for messages; architecture: of the model."""
    if architecture == CLIP:
        return "no program writes an imatrix of a projector, so name a larger type, such as Q4_K"
    return "give the model's imatrix (--imatrix FILE)"


def changing(tensors: tuple[ModelTensor, ...], assigned: Assigned) -> dict[str, Assignment]:
    """Return the assignments of the tensors that change their type."""
    found = [(t, assigned.assignments.get(t.name)) for t in tensors]
    return {
        t.name: chosen
        for t, chosen in found
        if chosen and not is_copied(t.source.stored, chosen.type)
    }


def tensor_problems(tensors: tuple[ModelTensor, ...]) -> list[str]:
    """Return a message for each name and shape that GGUF cannot hold."""
    problems = [] if tensors else ["the model has no tensors; there is nothing to write"]
    for name, count in Counter(t.name for t in tensors).items():
        if count > 1:
            problems.append(f"tensor {name!r} exists {count} times; names must be unique")
    for t in tensors:
        if (n_bytes := len(t.name.encode())) > MAX_NAME_BYTES:
            problems.append(
                f"tensor {t.name!r}: the name has {n_bytes} bytes, llama.cpp reads names of at"
                f" most {MAX_NAME_BYTES}"
            )
        if not 1 <= len(t.shape) <= MAX_DIMS:
            problems.append(
                f"tensor {t.name!r}: shape {t.shape} has {len(t.shape)} dimensions, GGUF holds 1 to"
                f" {MAX_DIMS}"
            )
        elif min(t.shape) < 1:
            problems.append(f"tensor {t.name!r}: shape {t.shape} has no weights")
    return problems


SPECIAL_TYPES = ("TQ1_0", "TQ2_0", "Q1_0", "Q2_0")
"""Types for models that are trained with weights of one or two bits, or of three values."""


def special_types(
    path: str, changed: Mapping[str, Assignment], grids: Mapping[str, OnGrid]
) -> list[str]:
    """Return a warning for each type that only specially trained models bear.

    path: of the recipe, for messages; changed: the tensors that do not keep their type
    grids: the grids that tensors lie on, which show how they were trained

    A fallback is no choice, and few tensors need one.
    """
    found: dict[str, list[str]] = {}
    for name, given in changed.items():
        if name in grids and grids[name].is_reproduced_by(given.type):
            continue
        if given.type.name in SPECIAL_TYPES and given.instead_of is None:
            found.setdefault(given.type.name, []).append(name)
    return [
        f"{path}: {type_} is for models that are trained with such weights; others answer nonsense:"
        f" {', '.join(grouped(names))}"
        for type_, names in found.items()
    ]


def open_choices(assignments: Mapping[str, Assignment]) -> Iterator[str]:
    """Yield a message for the first rule whose `choose` no size has decided."""
    open_rules = dict.fromkeys(given.rule for given in assignments.values() if given.choice)
    for rule in list(open_rules)[:1]:
        more = f" (and {len(open_rules) - 1} more rules)" if len(open_rules) > 1 else ""
        yield (
            f"{rule}: `choose` leaves the type to the size of the file{more}; give a size"
            " (--target-size, --target-bpw or --fit, or `target:` in the recipe)"
        )


def lost_grids(
    path: str, assignments: Mapping[str, Assignment], grids: Mapping[str, OnGrid]
) -> Iterator[str]:
    """Yield a warning for each grid whose tensors get a type that does not reproduce them.

    path: of the recipe, for messages; F16 and BF16 do not change weights beyond their own rounding
    """
    lost: dict[str, dict[str, list[str]]] = {}
    for name, grid in grids.items():
        given = assignments.get(name)
        if given and not (given.type.is_float or grid.is_reproduced_by(given.type)):
            lost.setdefault(grid.type.name, {}).setdefault(given.type.name, []).append(name)
    for grid, types in lost.items():
        names = [name for some in types.values() for name in some]
        yield (
            f"{path}: {', '.join(types)} for weights that lie on the grid of {grid}"
            f" ({', '.join(grouped(names))}); the model was probably trained for {grid}: `keep:"
            f" true` or `type: {grid}` gives the same weights"
        )


def requantized(model: Model, changed: Mapping[str, Assignment]) -> Iterator[str]:
    """Yield a message for each rule that would requantize quantized tensors of a GGUF.

    Rounding weights twice loses more than rounding them once.
    """
    groups: dict[tuple[str, str, str], list[str]] = {}
    for t in model.tensors if model.is_gguf else ():
        if t.name in changed and not t.source.stored.is_float:
            chosen = changed[t.name]
            key = (chosen.rule, chosen.type.name, t.source.stored.name)
            groups.setdefault(key, []).append(t.name)
    for (rule, wanted, stored), names in groups.items():
        yield (
            f"{rule}: {wanted} for weights that are quantized already ({stored}):"
            f" {', '.join(grouped(names))}; use a GGUF in F16, BF16 or F32, or accept the loss"
            " (--allow-requantize)"
        )


def importance_problems(
    changed: Mapping[str, Assignment],
    imatrix: Imatrix | None,
    known: Mapping[str, Importance],
    architecture: str,
) -> Iterator[str]:
    """Yield a message for each rule that gives a type needing importance to tensors without it.

    architecture: of the model
    """
    groups: dict[tuple[str, str], list[str]] = {}
    needing = [n for n, chosen in changed.items() if chosen.type.needs_importance]
    for name in missing(needing, known):
        chosen = changed[name]
        groups.setdefault((chosen.rule, chosen.type.name), []).append(name)
    has, remedy = (
        (f"{imatrix.path} has", "give an imatrix that covers them")
        if imatrix
        else ("there is", importance_remedy(architecture))
    )
    for (rule, type_name), names in groups.items():
        yield (
            f"{rule}: {type_name} needs importance, and {has} none for"
            f" {', '.join(grouped(names))}; {remedy}, or use another type"
        )


def unseen_problems(
    path: str, quantized: Iterable[str], imatrix: Imatrix, known: Mapping[str, Importance]
) -> Iterator[str]:
    """Yield a message if tensors or experts have no data, which the recipe refuses.

    path:      of the recipe, for messages
    quantized: names of the tensors that are to be quantized
    """
    names = list(quantized)
    faults = [f"none for {', '.join(grouped(absent))}"] if (absent := missing(names, known)) else []
    partial = [n for n in names if n in known and known[n].without]
    if partial:
        n_without = sum(len(known[n].without) for n in partial)
        n_all = sum(known[n].n_matrices for n in partial)
        faults.append(f"none for {n_without} of {n_all} experts in {', '.join(grouped(partial))}")
    if faults:
        yield (
            f"{path}: needs importance for all tensors and experts (unseen: error), and"
            f" {imatrix.path} has {', '.join(faults)}; make an imatrix with more text, or set"
            " `unseen: mean`"
        )
