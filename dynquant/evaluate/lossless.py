"""The reference of a checkpoint: a GGUF with the numbers that the checkpoint stores."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from dynquant.conversion.engine import Progress
from dynquant.conversion.identity import identity_of
from dynquant.conversion.work import work_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import EvalError
from dynquant.inputs import read_inputs
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan

RECIPE = {
    "dynquant": 1,
    "name": "reference",
    "description": "the numbers of the checkpoint, without any rounding",
    "default": "F32",
    "rules": [{"name": "*", "keep": True}],
}
"""BF16 stays BF16, blocks that GGUF has a type for stay as they are, all else becomes F32."""

EXACT = ("F32", "F16", "BF16", "Q8_0")
"""Types of a GGUF that is a reference. Q8_0 is not exact, but closer than what is compared."""


def reference_gguf(
    source: str, cache: Path, *, threads: int | None, progress: Callable[[Progress], None] | None
) -> Path:
    """Return the GGUF of a checkpoint, which is converted if the cache does not have it.

    Raises DynquantError for a checkpoint that cannot be converted.
    """
    found = read_inputs(source, RECIPE)
    plan = make_plan(found.model, found.recipe, grids=found.grids)
    out = cache / "models" / f"{stem_of(name_of(source))}-{_version(plan)[:12]}.gguf"
    if out.exists():
        return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise EvalError(f"{out.parent}: cannot be created: {e.strerror}") from e
    convert_plan(plan, out, threads=threads, progress=progress)
    return out


def name_of(reference: str) -> str:
    """Return what reports call a reference: the last part of its path or name."""
    return reference.rstrip("/").rpartition("/")[2] or "reference"


def stem_of(name: str) -> str:
    """Return the begin of a name, for a file of the cache: a file name has at most 255 bytes."""
    return name.encode()[:_STEM].decode(errors="ignore")


_STEM = 100


def _version(plan: Plan) -> str:
    """Return a hash that changes with the checkpoint: its files, settings and tokenizer."""
    work = work_of(plan)
    files = [str(file.path.resolve()) for file in work.source_files]
    known = json.dumps([identity_of(plan, work), files], sort_keys=True)
    return hashlib.sha256(known.encode()).hexdigest()
