"""The inputs that determine the output bytes; equal identities give equal files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dynquant.arch.adapters.settings import CONFIG as ADAPTER
from dynquant.checkpoint.packed.settings import MODELOPT
from dynquant.checkpoint.source_file import hash_of_settings, opened, source_facts
from dynquant.conversion.work import Work
from dynquant.distribution import our_version
from dynquant.errors import CheckpointError
from dynquant.plan.feedback import settings_text
from dynquant.plan.plan import Plan
from dynquant.quants.encoder import ENCODER_REVISION
from dynquant.stored_files import StoredFile


def identity_of(plan: Plan, work: Work, *, is_portable: bool = False) -> dict[str, Any]:
    """Return the inputs that determine the output bytes, each under a name that users know.

    is_portable: equal for copies of the source files on other machines: samples of their content
                 stand for the times when they were modified

    The headers of the layout hold all keys, names, shapes, types and places.
    """
    facts = _sampled if is_portable else _source
    paths = [file.path for file in work.source_files]
    headers = b"".join(file.header for file in work.layout.files)
    return {
        "dynquant version": our_version(),
        "encoder revision": ENCODER_REVISION,
        "recipe": f"{plan.recipe.name}, sha256 {plan.recipe.sha256}",
        "effort": plan.effort,
        "imatrix": plan.imatrix.sha256 if plan.imatrix else None,
        "experts without data": plan.experts.unseen if plan.imatrix else None,
        "shrink": plan.experts.shrink if plan.imatrix else None,
        "second moments": plan.moments.header_sha256 if plan.moments else None,
        "error feedback": settings_text(plan.feedback) or None,
        "--leave-out": sorted(plan.leave_out) or None,
        "shards": len(work.layout.files),
        "plan": hashlib.sha256(headers).hexdigest(),
        "computed": _hash_of_computed(work),
        "config": {n: hash_of_settings(path) for n, path in _named(_configs(paths)).items()},
        "source": {
            name: facts(file.stored)
            for name, file in zip(_named(paths), work.source_files, strict=True)
        },
    }


def _named(paths: Sequence[Path]) -> dict[str, Path]:
    """Return files by their names; those of several folders with one name are numbered."""
    found: dict[str, Path] = {}
    for path in paths:
        n = sum(other.name == path.name for other in found.values())
        found[f"{path.name} ({n + 1})" if n else path.name] = path
    return found


Versions = Mapping[Path, tuple[int, Mapping[str, str]]]
"""Size and version of each source file."""


def versions_of(work: Work) -> Versions:
    """Return size and version of each source file, as they are at this moment."""
    return {
        source.path: (source.stored.size(), source.stored.version()) for source in work.source_files
    }


def refuse_written(before: Versions, now: Versions) -> None:
    """Raise CheckpointError if a source file changed since the run began."""
    CheckpointError.raise_any(
        f"{path}: changed while it was read; convert it again (--restart) when it is complete"
        for path, version in before.items()
        if now.get(path) != version
    )


def _hash_of_computed(work: Work) -> str:
    """Return the hash of all weights that no file holds."""
    digest = hashlib.sha256()
    for part in work.computed:
        digest.update(np.ascontiguousarray(part.values, "<f4").data)
    return digest.hexdigest()


def _configs(sources: Sequence[Path]) -> list[Path]:
    """Return the settings files beside the shards: some numbers in them go into weights."""
    folders = dict.fromkeys(path.parent for path in sources)
    names = ("config.json", MODELOPT, ADAPTER)
    return [p for f in folders for p in (f / name for name in names) if p.is_file()]


def _source(file: StoredFile) -> dict[str, Any]:
    facts = source_facts(file)
    return {"bytes": facts.n_bytes, "header": facts.header_sha256, **facts.version}


_SAMPLES, _SAMPLE_BYTES = 64, 4096


def _sampled(stored: StoredFile) -> dict[str, Any]:
    """Return facts of a file that copies share, with a hash of pages at equal distances."""
    facts = source_facts(stored)
    digest = xxhash.xxh3_128()
    with opened(stored) as file:
        for number in range(_SAMPLES):
            file.seek(facts.n_bytes * number // _SAMPLES)
            digest.update(file.read(_SAMPLE_BYTES))
    return {"bytes": facts.n_bytes, "header": facts.header_sha256, "sample": digest.hexdigest()}
