"""The plan of a GGUF as it is, cut into other files: `dynquant split` and `dynquant merge`."""

from __future__ import annotations

from pathlib import Path

from dynquant.arch.gguf_model import load_gguf
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
"""Keys that tell how the source is cut and laid out, and not what it is."""


def copied(path: Path, split: Split) -> Plan:
    """Return the plan that writes a GGUF's tensors bit for bit, with its keys, in files of a size.

    path:  the GGUF, or any of its shards
    split: how to cut it; without limits it becomes one file

    Raises CheckpointError for files that are damaged, missing or hold no model.
    """
    shards = open_gguf(path)
    model = load_gguf(path)
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
