"""The plan of an unchanged GGUF in other files: `dynquant split` and `dynquant merge`."""

from __future__ import annotations

from pathlib import Path

from dynquant.arch.gguf_files.model import stored_gguf
from dynquant.checkpoint.gguf_shards import open_gguf
from dynquant.plan.make import lay_out_tensors
from dynquant.plan.plan import Plan, RecipeText
from dynquant.plan.shards import Split
from dynquant.recipe.assignment import Assignment
from dynquant.recipe.loader import parse_recipe

_COPY = """\
dynquant: 1
description: every tensor and every key as it is
default: F32
rules: [{name: '*', override: true, keep: true}]
"""

_OF_THE_FILES = ("split.no", "split.count", "split.tensors.count", "general.alignment")
"""Keys about the files of the source, which the output does not take over."""


def copied(path: Path, split: Split) -> Plan:
    """Return the plan that copies a GGUF's tensors and keys into other files.

    path:  the GGUF, or any of its shards
    split: how to cut it; without limits it becomes one file

    Raises CheckpointError if files are damaged, missing, or not a model.
    """
    shards = open_gguf(path)
    model = stored_gguf(path)
    recipe = parse_recipe(_COPY, "copy", "copy")
    kept = {t.name: Assignment(t.source.stored, "copy") for t in model.tensors}
    tensors, files = lay_out_tensors(model.tensors, kept, {}, split)
    return Plan(
        architecture=model.architecture,
        recipe=RecipeText.of(recipe),
        keys={name: key for name, key in shards.keys.items() if name not in _OF_THE_FILES},
        tensors=tensors,
        shards=files,
        sources={t.name: t for t in model.tensors},
        files=model.files,
    )
