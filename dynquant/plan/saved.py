"""A plan as a JSON document: reviewed by a person, or carried out on another machine.

The document holds every type, size, offset and key, and names the model, the recipe and the imatrix
by their hashes. It holds no weights and nothing of the machine. `bind_plan` joins it with the model
again and refuses, by name, anything that does not fit any more.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dynquant.arch.base import ModelTensor
from dynquant.checkpoint.source_file import source_facts
from dynquant.distribution import our_version
from dynquant.errors import PlanError
from dynquant.importance.experts import ALONE, Unseen
from dynquant.json_documents import (
    MAX_FAULTS,
    Count,
    FileName,
    Part,
    Sha256,
    document_schema,
    document_text,
    parse_document,
    plain,
    read_document,
    repeated,
)
from dynquant.keys import KeyValue, packed
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants.encoder import ENCODER_REVISION
from dynquant.quants.search import Effort
from dynquant.recipe.feedback import MAX_SWEEPS
from dynquant.tensors import ShardFile, parts_of

VERSION = 1


class PlanMaker(Part):
    """The dynquant that made the plan; another one may write other bytes."""

    version: str
    encoder_revision: Count


class PlanRecipe(Part):
    """The recipe that chose the types."""

    name: str
    description: str
    sha256: Sha256
    """of its text and the texts that it extends, joined by zero bytes"""
    text: str
    extends: list[str]
    """texts of the recipes that it extends, in the order of their rules"""


class PlanImportance(Part):
    """The imatrix that weights the errors."""

    file: FileName
    sha256: Sha256
    shrink: Count = ALONE.shrink
    """tokens that what experts have in common counts as when it is mixed with each"""
    unseen: Unseen = ALONE.unseen
    """importance of experts without data: the layer's mean, equal weights, or there are none"""


class PlanMoments(Part):
    """The second moments of the inputs, for error feedback."""

    file: FileName
    header_sha256: Sha256
    """of all bytes before the first array, which hold the hashes of all arrays"""


class PlanFeedback(Part):
    """How the errors of a tensor are fed back."""

    damping: Annotated[float, Field(ge=0, le=1)]
    """more damping feeds back less of each error"""
    sweeps: Annotated[int, Field(ge=0, le=MAX_SWEEPS)]
    """passes over all columns that improve the codes afterwards"""


class PlanSource(Part):
    """A file that tensors are read from."""

    name: FileName
    bytes: Count
    header_sha256: Sha256
    """of all bytes before the first tensor of a safetensors file, of the first MiB of a GGUF"""


class PlanKey(Part):
    """A key of the output."""

    type: str
    """GGUF's name of its type, such as UINT32; an array is ARRAY"""
    sha256: Sha256
    """of type and value as the GGUF holds them"""
    value: bool | int | float | str | None
    """null for arrays and for numbers that JSON cannot hold"""
    set: bool
    """whether the plan sets it; all others come from the model"""


class PlanTensor(Part):
    """A tensor of the output."""

    name: str
    type: str
    shape: list[Count]
    """as in numpy, the slowest dimension first"""
    bytes: Count
    file: Count
    """number of the output file that it is in, from 0"""
    offset: Count
    """of its first byte, from the beginning of that file's data section"""
    rule: str
    """where the type comes from: file and line of a recipe, or a built-in rule"""
    instead_of: str | None
    """the rule's type, if its block size does not divide the rows"""
    importance: str | None
    """which input channels have importance; null if all are weighted equally"""
    note: str
    on_grid: bool = False
    """whether the type is the grid that the stored floats lie on; conversion checks every row"""
    feedback: PlanFeedback | None = None
    """how its errors are fed back; null without error feedback"""


class SavedPlan(Part):
    """A plan of dynquant: every tensor of an output before it is written."""

    plan: Literal[1]
    """version of this form"""
    dynquant: PlanMaker
    architecture: str
    mla: Literal["split", "merged"]
    """how latent attention is stored; split for models without it"""
    recipe: PlanRecipe
    effort: Effort
    importance: PlanImportance | None
    moments: PlanMoments | None = None
    """null if no tensor is encoded with error feedback"""
    allow_requantize: bool
    tensor_bytes: Count
    """of all tensors, without headers and padding"""
    sources: list[PlanSource]
    """in the order of first use"""
    keys: dict[str, PlanKey]
    """in the order of the file"""
    tensors: Annotated[list[PlanTensor], Field(min_length=1)]
    """in the order of the files"""
    prediction_layers: list[Count]
    """layers among the tensors that predict further ahead"""
    ignored: dict[str, str]
    """stored tensors that the output leaves out, each with the reason"""
    leave_out: list[str] = Field(default_factory=list[str])
    """globs of stored names that the user left out"""
    warnings: list[str]

    @model_validator(mode="after")
    def _agrees(self) -> SavedPlan:
        """Raise ValueError if the parts contradict each other."""
        problems = [
            f"tensor {n!r} is listed {k} times" for n, k in repeated(t.name for t in self.tensors)
        ]
        files = [t.file for t in self.tensors]
        if files != sorted(files) or set(files) != set(range(max(files) + 1)):
            problems.append("the tensors are not in the order of their files, counted from 0")
        if (total := sum(t.bytes for t in self.tensors)) != self.tensor_bytes:
            problems.append(f"tensor_bytes is {self.tensor_bytes}, the tensors have {total}")
        if problems:
            raise ValueError("; ".join(problems[:MAX_FAULTS]))
        return self


def saved_plan(plan: Plan) -> SavedPlan:
    """Return a plan as a document.

    Raises PlanError for a draft, from which no file can be written, CheckpointError if a source
    file cannot be read.
    """
    PlanError.raise_any((*plan.missing, *plan.refusals))
    short = plan.recipe.short
    return SavedPlan(
        plan=VERSION,
        dynquant=PlanMaker(version=our_version(), encoder_revision=ENCODER_REVISION),
        architecture=plain(plan.architecture),
        mla="merged" if _has_role(plan.tensors, "attn_kv_b") else "split",
        recipe=PlanRecipe(
            name=plain(plan.recipe.name),
            description=plan.recipe.description,
            sha256=plan.recipe.sha256,
            text=plan.recipe.text,
            extends=list(plan.recipe.texts),
        ),
        effort=plan.effort,
        importance=_importance(plan),
        moments=_moments(plan),
        allow_requantize=plan.allow_requantize,
        tensor_bytes=plan.tensor_bytes,
        sources=list(plan_sources(plan.sources[t.name] for t in plan.tensors)),
        keys={plain(n): _saved_key(k, n in plan.set_keys) for n, k in plan.keys.items()},
        tensors=[
            PlanTensor(
                name=plain(t.name),
                type=t.type.name,
                shape=list(t.shape),
                bytes=t.n_bytes,
                file=t.shard,
                offset=t.offset,
                rule=plain(short(t.rule)),
                instead_of=t.instead_of.name if t.instead_of else None,
                importance=t.importance,
                note=t.note,
                on_grid=t.on_grid,
                feedback=_feedback(plan, t.name),
            )
            for t in plan.tensors
        ],
        prediction_layers=list(plan.prediction),
        ignored={plain(n): plain(short(reason)) for n, reason in plan.ignored.items()},
        leave_out=list(map(plain, plan.leave_out)),
        warnings=[plain(_local(plan, short(w))) for w in plan.warnings],
    )


def _importance(plan: Plan) -> PlanImportance | None:
    if plan.imatrix is None:
        return None
    return PlanImportance(
        file=plain(plan.imatrix.path.name),
        sha256=plan.imatrix.sha256,
        shrink=plan.experts.shrink,
        unseen=plan.experts.unseen,
    )


def _moments(plan: Plan) -> PlanMoments | None:
    if plan.moments is None:
        return None
    return PlanMoments(file=plain(plan.moments.path.name), header_sha256=plan.moments.header_sha256)


def _feedback(plan: Plan, name: str) -> PlanFeedback | None:
    setting = plan.feedback.get(name)
    return PlanFeedback(damping=setting.damping, sweeps=setting.sweeps) if setting else None


def _local(plan: Plan, text: str) -> str:
    """Return a warning that names the imatrix and the moments without their folders."""
    for file in (plan.imatrix, plan.moments):
        if file:
            text = text.replace(f"{file.path}:", f"{file.path.name}:")
    return text


def plan_text(plan: SavedPlan) -> str:
    """Return a plan as it is written: JSON in ASCII, a line for each tensor and key."""
    return document_text(plan)


def check_plan_path(path: Path, *, force: bool) -> None:
    """Raise PlanError if a plan cannot be written there, before time is spent on making it."""
    if not path.parent.is_dir():
        raise PlanError(f"{path.parent}: is not a folder; create it first, or name another file")
    if path.is_dir():
        raise PlanError(f"{path}: is a folder; name the file to write")
    if path.exists() and not force:
        raise PlanError(f"{path}: exists; replace it with --force, or name another file")


def write_plan(plan: Plan, path: Path, *, force: bool = False) -> None:
    """Save a plan, the whole file or none of it.

    Raises PlanError for a draft, and if the file exists without `force` or cannot be written.
    """
    text = plan_text(saved_plan(plan))
    check_plan_path(path, force=force)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text, "ascii", newline="\n")
        part.replace(path)
    except OSError as e:
        raise PlanError(f"{path}: cannot be written: {e.strerror}") from e


def read_plan(path: Path) -> SavedPlan:
    """Read a saved plan; raise PlanError, with the places of its faults, if it is not one."""
    return read_document(path, SavedPlan, "plan", VERSION, PlanError)


def parse_plan(content: bytes, where: str) -> SavedPlan:
    """Read a plan's bytes; where: what messages call them. Raises as `read_plan`."""
    return parse_document(content, where, SavedPlan, "plan", VERSION, PlanError)


def plan_schema() -> dict[str, Any]:
    """Return the form of a saved plan as a JSON Schema, draft 2020-12."""
    return document_schema(SavedPlan, "dynquant plan")


def pre_tokenizer_of(saved: SavedPlan) -> str | None:
    """Return llama.cpp's name of the pre-tokenizer that a plan's keys hold, if they do."""
    key = saved.keys.get("tokenizer.ggml.pre")
    return key.value if key and isinstance(key.value, str) else None


def plan_sources(tensors: Iterable[ModelTensor]) -> Iterator[PlanSource]:
    """Yield the files that tensors are read from, each once."""
    files = {f.path: f.file for t in tensors for f in parts_of(t.source, ShardFile)}
    for path, file in files.items():
        facts = source_facts(file)
        yield PlanSource(
            name=plain(path.name), bytes=facts.n_bytes, header_sha256=facts.header_sha256
        )


def _saved_key(key: KeyValue, is_set: bool) -> PlanKey:
    value = None if isinstance(key.value, tuple) else key.value
    if isinstance(value, float) and not math.isfinite(value):
        value = None
    if isinstance(value, str):
        value = plain(value)
    return PlanKey(type=key.type.name, sha256=key_sha256(key), value=value, set=is_set)


def key_sha256(key: KeyValue) -> str:
    """Return the hash of a key's type and value."""
    return hashlib.sha256(packed(key)).hexdigest()


def _has_role(tensors: tuple[TensorPlan, ...], role: str) -> bool:
    return any(f".{role}." in t.name for t in tensors)
