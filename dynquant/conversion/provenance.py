"""Makes the manifest of a finished conversion."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from re import fullmatch
from typing import Literal

from dynquant.arch.adapters.merge import MERGED_KEY
from dynquant.conversion.manifest import (
    Adapter,
    Errors,
    Feedback,
    ImportancePart,
    Maker,
    Manifest,
    ModelPart,
    MomentsPart,
    OutputFile,
    OutputPart,
    RecipePart,
    Source,
    Tensor,
)
from dynquant.conversion.result import Result
from dynquant.conversion.reuse.origin import origin_of
from dynquant.conversion.work import Work
from dynquant.distribution import our_version
from dynquant.json_documents import plain
from dynquant.keys import Keys
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.encoder import ENCODER_REVISION
from dynquant.quants.error import TensorError

_DIGITS = 6
"""Digits of an error: a resumed run adds the sums behind it in another order."""


def manifest_of(result: Result, work: Work, sources: Sequence[Source]) -> Manifest:
    """Return the manifest of an output.

    sources: of each of the work's source files
    """
    plan, layout = result.plan, work.layout
    files = {f.path: s.content for f, s in zip(work.source_files, sources, strict=True)}
    return Manifest(
        manifest=1,
        dynquant=Maker(
            version=our_version(),
            isa=codec.active_isa(),
            encoder_revision=ENCODER_REVISION,
        ),
        output=OutputPart(
            architecture=plain(plan.architecture),
            weights=plan.n_weights,
            tensor_bytes=plan.tensor_bytes,
            bits_per_weight=plan.bits_per_weight,
            type_counts=plan.type_counts,
            files=[
                OutputFile(name=plain(path.name), bytes=file.file_bytes, sha256=sha256)
                for path, file, sha256 in zip(
                    result.paths, layout.files, result.sha256, strict=True
                )
            ],
        ),
        recipe=RecipePart(
            name=plain(plan.recipe.name),
            sha256=plan.recipe.sha256,
            text=plan.recipe.text,
            extends=list(plan.recipe.texts),
        ),
        effort=plan.effort,
        importance=_importance(plan),
        moments=_moments(plan),
        sources=list(sources),
        model=_model(plan),
        tensors=[
            Tensor(
                name=plain(t.name),
                type=t.type.name,
                shape=list(t.shape),
                bytes=t.n_bytes,
                file=t.shard,
                offset=layout.files[t.shard].position(t),
                xxh64=result.xxh64[t.name],
                rule=plain(plan.recipe.short(t.rule)),
                instead_of=t.instead_of.name if t.instead_of else None,
                importance=t.importance,
                error=_errors(result.errors.get(t.name)),
                feedback=_feedback(result, t.name),
                origin=origin_of(its.source, files),
            )
            for t, its in zip(plan.tensors, work.tensors, strict=True)
        ],
        ignored={
            plain(name): plain(plan.recipe.short(reason)) for name, reason in plan.ignored.items()
        },
        leave_out=list(map(plain, plan.leave_out)),
        merged_adapters=_adapters(plan),
    )


def _adapters(plan: Plan) -> list[Adapter]:
    record = plan.keys.get(MERGED_KEY)
    return [Adapter(**entry) for entry in json.loads(str(record.value))] if record else []


def _importance(plan: Plan) -> ImportancePart | None:
    if plan.imatrix is None:
        return None
    return ImportancePart(
        file=plain(plan.imatrix.path.name),
        sha256=plan.imatrix.sha256,
        datasets=[plain(name) for name in plan.imatrix.datasets],
        chunks=plan.imatrix.chunk_count,
        shrink=plan.experts.shrink,
        unseen=plan.experts.unseen,
    )


def _moments(plan: Plan) -> MomentsPart | None:
    if plan.moments is None:
        return None
    its = plan.moments.metadata
    tokens = its.get("tokens_sha256", "")
    return MomentsPart(
        file=plain(plan.moments.path.name),
        header_sha256=plan.moments.header_sha256,
        model=plain(its["model"]) if "model" in its else None,
        tokens_sha256=tokens if fullmatch("[0-9a-f]{64}", tokens) else None,
    )


def _feedback(result: Result, name: str) -> Feedback | None:
    setting, gain = result.plan.feedback.get(name), result.gains.get(name)
    if setting is None or gain is None:
        return None
    return Feedback(
        damping=setting.damping,
        sweeps=setting.sweeps,
        matrices=gain.n_matrices,
        taken=gain.n_taken,
        error_plain=gain.plain,
        error_feedback=gain.feedback,
    )


def _model(plan: Plan) -> ModelPart:
    roles = {t.name.split(".")[-2] for t in plan.tensors if "." in t.name}
    mla: Literal["split", "merged"] | None = None
    if "attn_k_b" in roles:
        mla = "split"
    elif "attn_kv_b" in roles:
        mla = "merged"
    commit = _key(plan.keys, "dynquant.source_revision") or ""
    is_commit = 7 <= len(commit) <= 64 and not set(commit) - set("0123456789abcdef")
    return ModelPart(
        repository=_key(plan.keys, "dynquant.source"), commit=commit if is_commit else None, mla=mla
    )


def _key(keys: Keys, name: str) -> str | None:
    found = keys.get(name)
    return plain(found.value) if found and isinstance(found.value, str) else None


def _errors(figures: TensorError | None) -> Errors | None:
    if figures is None:
        return None
    found = figures.weighted, figures.one_minus_cos2, figures.max
    if not all(map(math.isfinite, found)):
        return None
    weighted, one_minus_cos2, largest = (max(0.0, float(f"{f:.{_DIGITS}g}")) for f in found)
    return Errors(weighted=weighted, one_minus_cos2=one_minus_cos2, max=largest)
