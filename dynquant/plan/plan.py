"""Every tensor's type, size and place, and every key, known before a byte is written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

from gguf import GGML_QUANT_VERSION, GGUF_DEFAULT_ALIGNMENT, LlamaFileType

from dynquant.arch.base import Model, ModelTensor
from dynquant.errors import DynquantError, ImportanceError, PlanError, RecipeError
from dynquant.importance.audit import Importance, audit, gaps
from dynquant.importance.imatrix import Imatrix
from dynquant.keys import Keys, KeyValue, string, u32
from dynquant.plan.checks import (
    changing,
    importance_problems,
    is_copied,
    requantized,
    tensor_problems,
)
from dynquant.plan.kept import keep_blocks
from dynquant.plan.prediction import own_layers, settle_prediction
from dynquant.plan.settings import apply_settings, key_problems
from dynquant.quants.search import EFFORTS, Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.language import Recipe
from dynquant.recipe.match import Assigned, assign

ALIGNMENT = GGUF_DEFAULT_ALIGNMENT
"""Bytes that every tensor's offset is a multiple of: GGUF's default, which needs no key."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output.

    shape:      as in numpy, slowest dimension first
    offset:     bytes from the start of the file's data section
    n_bytes:    bytes of all its blocks, without the padding that follows
    rule:       where its type comes from, as people look it up ("recipes/small.yaml:14")
    instead_of: the rule's type, where rows do not divide into its blocks and the fallback stands in
    importance: what the encoder knows of the input channels: "yes", or of which of the experts;
                None where it weighs all alike, and for types that store each weight alone
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType
    offset: int
    n_bytes: int
    rule: str
    instead_of: QuantType | None = None
    importance: str | None = None

    @property
    def n_weights(self) -> int:
        """Weights in the tensor."""
        return prod(self.shape)

    @property
    def n_per_row(self) -> int:
        """Weights in a row."""
        return self.shape[-1]


@dataclass(frozen=True)
class Plan:
    """A whole output file as data: `keys` and `tensors` in the order they are written in.

    sources:    the rows of each tensor, by its name
    ignored:    stored tensors that the output leaves out, with the reason
    files:      files of the model that must not be written, besides those of `sources`
    importance: what each encoder is to know of the input channels, by tensor, from the imatrix
    effort:     how much the encoders search
    prediction: layers among the tensors that predict further ahead
    lacks:      why it cannot be carried out, as in `Model`; its tensors and their sizes hold
    """

    architecture: str
    recipe: Recipe
    keys: Keys
    tensors: tuple[TensorPlan, ...]
    sources: dict[str, ModelTensor] = field(repr=False)
    warnings: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    files: tuple[Path, ...] = ()
    imatrix: Imatrix | None = None
    importance: Mapping[str, Importance] = field(default_factory=dict[str, Importance], repr=False)
    effort: Effort = "normal"
    prediction: range = range(0)
    lacks: tuple[str, ...] = ()

    @property
    def unweighed(self) -> tuple[str, ...]:
        """Names of the tensors whose encoder weighs all channels alike."""
        return tuple(
            t.name
            for t in self.tensors
            if not (t.type.is_float or t.importance or is_copied(self.sources[t.name], t.type))
        )

    @property
    def n_weights(self) -> int:
        """Weights of all tensors."""
        return sum(t.n_weights for t in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def data_bytes(self) -> int:
        """Bytes of the data section: the tensors, each padded to the alignment."""
        return sum(padded(t.n_bytes) for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a weight over all tensors."""
        return 8 * self.tensor_bytes / self.n_weights

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
    effort: Effort = "normal",
    allow_requantize: bool = False,
    set_keys: Mapping[str, KeyValue | str] | None = None,
) -> Plan:
    """Resolve a recipe for a model into the plan of one GGUF file.

    imatrix:  what weighs the errors of the encoders; without one, all channels weigh alike
    effort:   how much the encoders search: "fast", "normal" or "best"
    allow_requantize: let tensors that are blocks in a GGUF become blocks of another type
    set_keys: keys to change or to add; text is read as `--set KEY=VALUE` reads it, in the type
              that the key has already

    Raises RecipeError if the recipe does not fit the model, ImportanceError if the imatrix is
    another model's, PlanError for names, shapes and keys that GGUF cannot hold, for types of too
    few bits to do without importance, for weights that were quantized already, and where more than
    one of these is the case; all messages at once.
    """
    model = settle_prediction(model, keep=recipe.keeps_prediction)
    misfits: list[DynquantError] = []
    problems = tensor_problems(model.tensors)
    if effort not in EFFORTS:
        problems.append(f"{effort!r} is not an effort; take one of {', '.join(EFFORTS)}")
    assigned = Assigned({}, ())
    known: dict[str, Importance] = {}
    warnings: tuple[str, ...] = ()
    try:
        assigned = assign(recipe, model.tensors, own_layers(model))
        whole = keep_blocks(model, assigned)
        if whole is not model:
            model = whole
            assigned = assign(recipe, model.tensors, own_layers(model))
    except RecipeError as e:
        misfits.append(e)
    changed = changing(model.tensors, assigned)
    quantized = [n for n, chosen in changed.items() if not chosen.type.is_float]
    if not allow_requantize:
        problems += requantized(model, changed)
    try:
        known, warnings = audit(imatrix, model.tensors) if imatrix else (known, warnings)
        problems += importance_problems(changed, imatrix, known)
    except ImportanceError as e:
        misfits.append(e)
    importance = {name: known[name] for name in quantized if name in known}
    weights: Counter[QuantType] = Counter()
    for t in model.tensors:
        if t.name in assigned.assignments:
            weights[assigned.assignments[t.name].type] += prod(t.shape)
    ours = _quantizer_keys(recipe, effort, weights, imatrix)
    keys, key_faults = apply_settings(_with_ours(model.keys, ours), set_keys or {})
    problems += [*key_faults, *key_problems(keys)]
    if len(misfits) == 1 and not problems:
        raise misfits[0]
    PlanError.raise_any([*(m for e in misfits for m in e.messages), *problems])
    if imatrix:
        warnings += tuple(gaps(imatrix, quantized, importance))
    return Plan(
        architecture=model.architecture,
        recipe=recipe,
        keys=keys,
        tensors=_lay_out(model.tensors, assigned, importance),
        sources={t.name: t for t in model.tensors},
        warnings=(*model.deviations, *assigned.warnings, *warnings),
        ignored=model.ignored,
        files=model.files,
        imatrix=imatrix,
        importance=importance,
        effort=effort,
        prediction=model.prediction.layers if model.prediction else range(0),
        lacks=model.lacks,
    )


def _lay_out(
    tensors: tuple[ModelTensor, ...], assigned: Assigned, importance: Mapping[str, Importance]
) -> tuple[TensorPlan, ...]:
    plans: list[TensorPlan] = []
    offset = 0
    for t in tensors:
        chosen = assigned.assignments[t.name]
        n_bytes = t.n_rows * chosen.type.row_size(t.n_per_row)
        plans.append(
            TensorPlan(
                t.name,
                t.shape,
                chosen.type,
                offset,
                n_bytes,
                chosen.rule,
                chosen.instead_of,
                importance[t.name].coverage if t.name in importance else None,
            )
        )
        offset += padded(n_bytes)
    return tuple(plans)


def file_type(weights: Mapping[QuantType, int]) -> LlamaFileType:
    """Return llama.cpp's file type for the quant type that holds most weights.

    Float types count only where nothing is quantized: norms are F32 in every file. Of the names
    that llama.cpp gives to mixtures, the medium one is taken (Q4_K: MOSTLY_Q4_K_M).
    """
    quantized = {t: n for t, n in weights.items() if not t.is_float} or weights
    if not quantized:
        return LlamaFileType.GUESSED
    name = max(quantized, key=lambda t: (quantized[t], t.name)).name
    for candidate in (f"ALL_{name}", f"MOSTLY_{name}", f"MOSTLY_{name}_M", f"MOSTLY_{name}_MOE"):
        if candidate in LlamaFileType.__members__:
            return LlamaFileType[candidate]
    return LlamaFileType.GUESSED


def _quantizer_keys(
    recipe: Recipe, effort: Effort, weights: Mapping[QuantType, int], imatrix: Imatrix | None
) -> Keys:
    """Return what the quantizer says of itself."""
    keys = {
        "general.file_type": u32(int(file_type(weights))),
        "general.quantization_version": u32(GGML_QUANT_VERSION),
    }
    # quantize.imatrix.* in the names and types of llama-quantize; its paths are not to be told.
    if imatrix:
        keys["quantize.imatrix.file"] = string(imatrix.path.name)
        if imatrix.datasets:
            keys["quantize.imatrix.dataset"] = string(imatrix.datasets[0])
        keys["quantize.imatrix.entries_count"] = u32(len(imatrix.entries))
        if imatrix.chunk_count is not None:
            keys["quantize.imatrix.chunks_count"] = u32(imatrix.chunk_count)
    keys |= {
        "dynquant.version": string(version("dynquant")),
        "dynquant.recipe": string(recipe.name),
        "dynquant.recipe_sha256": string(hashlib.sha256(recipe.text.encode()).hexdigest()),
        "dynquant.effort": string(effort),
    }
    if imatrix:
        keys["dynquant.imatrix_sha256"] = string(imatrix.sha256)
    return keys


def _with_ours(model_keys: Keys, ours: Keys) -> Keys:
    """Return the file's keys; what the quantizer says comes before tokenizer.*, as in llama.cpp."""
    theirs = [(k, v) for k, v in model_keys.items() if k not in ours]
    first = next((i for i, (k, _) in enumerate(theirs) if k.startswith("tokenizer.")), len(theirs))
    return dict(theirs[:first]) | ours | dict(theirs[first:])


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return the plan as `dynquant plan --json` prints it; scripts rely on this form."""
    return {
        "architecture": plan.architecture,
        "recipe": plan.recipe.name,
        "effort": plan.effort,
        "imatrix": plan.imatrix.path.name if plan.imatrix else None,
        "tensor_bytes": plan.tensor_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "weights": plan.n_weights,
        "type_counts": plan.type_counts,
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.type.name,
                "bytes": t.n_bytes,
                "offset": t.offset,
                "rule": t.rule,
                "instead_of": t.instead_of.name if t.instead_of else None,
                "importance": t.importance,
            }
            for t in plan.tensors
        ],
        "warnings": list(plan.warnings),
        "ignored": dict(plan.ignored),
        "prediction_layers": list(plan.prediction),
        "lacks": list(plan.lacks),
    }
