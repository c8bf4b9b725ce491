"""Small GGUFs and releases of them."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from handmade import KEYS, small_tensors
from handmade_evaluations import evaluation, result
from handmade_manifests import write_manifest

from dynquant.arch.base import Model
from dynquant.conversion.write import convert_plan
from dynquant.json_documents import document_text
from dynquant.keys import Keys, boolean, string
from dynquant.plan.make import make_plan
from dynquant.plan.shards import Split
from dynquant.recipe.loader import load_recipe
from dynquant.release.evaluated import read_evaluated
from dynquant.release.finished import open_finished
from dynquant.release.folder import make_release, write_release


def make(
    folder: Path,
    name: str,
    recipe: str = "q8_0",
    *,
    keys: Keys | None = None,
    shard: int | None = None,
    architecture: str = "llama",
) -> Path:
    """Write a small GGUF with a shipped recipe, without manifest; shard: tensors in each file."""
    described = Model(architecture, KEYS | (keys or {}), small_tensors(), {})
    plan = make_plan(described, load_recipe(recipe), split=Split(max_tensors=shard))
    convert_plan(plan, folder / name, threads=1)
    (folder / f"{name}.manifest.json").unlink(missing_ok=True)
    return folder / name


def make_projector(folder: Path, name: str) -> Path:
    """Write a small projector file that sees."""
    keys = {
        "general.architecture": string("clip"),
        "clip.has_vision_encoder": boolean(True),
    }
    return make(folder, name, "f16", keys=keys, architecture="clip")


def release_of(
    folder: Path,
    *recipes: str,
    name: str = "tiny-{}.gguf",
    base_model: str | None = "org/tiny",
    license_: str | None = "mit",
    projector: str | None = None,
    kld: float | None = None,
    reference: str = "base-f32.gguf",
    shard: int | None = None,
    **more: Any,
) -> Path:
    """Write a release of small GGUFs, one for each shipped recipe, in a new folder.

    name:      of each GGUF, with its recipe
    projector: name of a projector file to add
    kld:       KL divergence in an evaluation of the files, against a reference
    more:      parts of the manifests
    """
    folder.mkdir()
    made: list[Path] = []
    for recipe in recipes:
        path = make(folder, name.format(recipe), recipe, shard=shard)
        write_manifest(path, recipe, errors=0.001, **more)
        made.append(path)
    if projector:
        made.append(make_projector(folder, projector))
    evaluated = None
    if kld is not None:
        results = [
            result(
                path.name, path.stat().st_size, kld, hashlib.sha256(path.read_bytes()).hexdigest()
            )
            for path in made
        ]
        of_reference = _sha256(reference.encode())
        document = evaluation(*results, reference_name=reference, distributions_sha256=of_reference)
        path = folder.with_name(f"{folder.name}-eval.json")
        path.write_text(document_text(document))
        evaluated = read_evaluated(path)
    release = make_release(
        [open_finished(path) for path in made],
        base_model=base_model,
        license_=license_,
        evaluated=evaluated,
    )
    write_release(release, force=False)
    return folder


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
