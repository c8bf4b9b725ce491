"""Everything that a plan is made of, read together, so that all faults are reported at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from dynquant.arch.base import Model
from dynquant.arch.load import Fetch, Mla, is_gguf_name, load_model
from dynquant.arch.load_projector import load_projector
from dynquant.arch.towers.whole import CLIP
from dynquant.checkpoint.hub import is_hub_name
from dynquant.errors import Problems, VocabError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.importance.moments import Moments, read_moments
from dynquant.importance.moments_fit import NEEDS_IMATRIX
from dynquant.importance.report import ImatrixAudit, audit_of
from dynquant.measure.grids import OnGrid, find_grids
from dynquant.plan.bind import bind_plan
from dynquant.plan.plan import Plan
from dynquant.plan.saved import SavedPlan, pre_tokenizer_of, read_plan
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.protection import protection
from dynquant.recipe.rules import Recipe


@dataclass(frozen=True)
class Inputs:
    """A model, a recipe and possibly an imatrix with second moments."""

    model: Model
    recipe: Recipe
    imatrix: Imatrix | None
    moments: Moments | None = None

    @cached_property
    def grids(self) -> dict[str, OnGrid]:
        """The grids that tensors of the model lie on; reads a few rows of each.

        Raises CheckpointError if rows cannot be read.
        """
        return find_grids(self.model.tensors, all_sources=self.recipe.has_keep)


def read_inputs(
    model: str | Path | Model,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    imatrix: str | Path | Imatrix | None = None,
    *,
    moments: str | Path | Moments | None = None,
    pre: str | None = None,
    mla: Mla | None = None,
    needs_vocab: bool = True,
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
    fetch: Fetch = "download",
) -> Inputs:
    """Read a recipe, an imatrix, moments and a model, in this order; each may be loaded already.

    A model of the Hub is fetched only if the others are valid: that may take hours.

    pre, mla, needs_vocab, leave_out, merge_adapter, base, fetch: as in `load_model`; all but
    needs_vocab and fetch are refused for a model that is loaded

    Raises DynquantError with the faults of all of them.
    """
    problems = Problems()
    rules = recipe if isinstance(recipe, Recipe) else problems.attempt(lambda: load_recipe(recipe))
    means = problems.attempt(lambda: _imatrix(imatrix))
    seconds = _moments(moments, imatrix, problems)
    loaded = _model(model, pre, mla, needs_vocab, leave_out, merge_adapter, base, fetch, problems)
    problems.raise_any()
    assert loaded is not None and rules is not None, "whatever is not read is a fault"
    return Inputs(loaded, rules, means, seconds)


def read_audit(
    imatrix: str | Path | Imatrix,
    model: str | Path | Model,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
    *,
    mla: Mla | None = None,
    leave_out: Sequence[str] = (),
) -> ImatrixAudit:
    """Read an imatrix and a model; return what the file has of the tensors that recipes quantize.

    recipe: for what it does about experts with few tokens; None for the default

    Raises DynquantError with the faults of all of them, ImportanceError for an imatrix of another
    model.
    """
    found = read_inputs(
        model,
        {"default": "Q8_0"} if recipe is None else recipe,
        imatrix,
        mla=mla,
        needs_vocab=False,
        leave_out=leave_out,
        fetch="stream",
    )
    assert found.imatrix is not None, "it is read or a fault"
    architecture = found.model.architecture
    wanted = [
        t.name
        for t in found.model.tensors
        if len(t.shape) > 1 and protection(t, architecture) is None
    ]
    return audit_of(found.imatrix, found.model.tensors, wanted, found.recipe.experts)


def load_plan(
    path: str | Path,
    model: str | Path | Model,
    imatrix: str | Path | Imatrix | None = None,
    moments: str | Path | Moments | None = None,
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
    fetch: Fetch = "download",
) -> Plan:
    """Read a saved plan, with the model, the imatrix and the moments that it was made for.

    merge_adapter, base, fetch: as in `load_model`

    Raises DynquantError with the faults of all of them, PlanError for a plan that does not fit.
    """
    path = Path(path)
    problems = Problems()
    saved = problems.attempt(lambda: read_plan(path))
    means = problems.attempt(lambda: _imatrix(imatrix))
    seconds = _moments(moments, imatrix, problems)
    loaded = model if isinstance(model, Model) else None
    if loaded is None and saved is not None:
        if is_hub_name(str(model)):
            problems.raise_any()
        loaded = problems.attempt(
            lambda: _model_of_plan(str(model), saved, merge_adapter, base, fetch)
        )
    problems.raise_any()
    assert loaded is not None and saved is not None, "whatever is not read is a fault"
    return bind_plan(saved, loaded, means, str(path), seconds)


def _imatrix(imatrix: str | Path | Imatrix | None) -> Imatrix | None:
    if imatrix is None or isinstance(imatrix, Imatrix):
        return imatrix
    return read_imatrix(Path(imatrix))


def _moments(
    moments: str | Path | Moments | None,
    imatrix: str | Path | Imatrix | None,
    problems: Problems,
) -> Moments | None:
    """Read moments; without an imatrix, they are a problem."""
    if moments is None:
        return None
    path = moments.path if isinstance(moments, Moments) else Path(moments)
    if imatrix is None:
        problems.add(f"{path}: {NEEDS_IMATRIX}")
    if isinstance(moments, Moments):
        return moments
    return problems.attempt(lambda: read_moments(path))


def _model(
    model: str | Path | Model,
    pre: str | None,
    mla: Mla | None,
    needs_vocab: bool,
    leave_out: Sequence[str],
    merge_adapter: Sequence[str | Path],
    base: str | Path | None,
    fetch: Fetch,
    problems: Problems,
) -> Model | None:
    if isinstance(model, Model):
        for name, value in (
            ("pre", pre),
            ("mla", mla),
            ("leave_out", leave_out or None),
            ("merge_adapter", merge_adapter or None),
            ("base", base),
        ):
            if value is not None:
                problems.add(
                    f"{name}={value!r} has no effect on a model that is loaded; give it to"
                    " load_model"
                )
        return model
    if is_hub_name(str(model)):
        problems.raise_any()
    return problems.attempt(
        lambda: load_model(
            model,
            pre=pre,
            mla=mla or "split",
            needs_vocab=needs_vocab,
            leave_out=leave_out,
            merge_adapter=merge_adapter,
            base=base,
            fetch=fetch,
        )
    )


def _model_of_plan(
    model: str,
    saved: SavedPlan,
    merge_adapter: Sequence[str | Path],
    base: str | Path | None,
    fetch: Fetch,
) -> Model:
    """Load a model as the plan has it; its keys name a pre-tokenizer that is not recognized."""
    if saved.architecture == CLIP and not is_gguf_name(model):
        return load_projector(model, fetch=fetch)
    load = partial(
        load_model,
        model,
        mla=saved.mla,
        leave_out=saved.leave_out,
        merge_adapter=merge_adapter,
        base=base,
        fetch=fetch,
    )
    pre = pre_tokenizer_of(saved)
    try:
        loaded = load()
    except VocabError:
        if pre is None:
            raise
        return load(pre=pre)
    key = loaded.keys.get("tokenizer.ggml.pre")
    is_other = loaded.is_gguf or loaded.architecture != saved.architecture
    if is_other or key is None or pre is None or key.value == pre:
        return loaded
    return load(pre=pre)
