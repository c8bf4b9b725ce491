"""Handmade manifests of existing GGUFs, with errors and other contents that a test chooses."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import xxhash

from dynquant.checkpoint.gguf_shards import open_gguf
from dynquant.conversion.manifest import Manifest, manifest_path, manifest_text
from dynquant.recipe.loader import load_recipe

NO_HASH = "0" * 64
IMATRIX = {"file": "i.gguf", "sha256": "1" * 64, "datasets": ["a | b.txt"], "chunks": 12}


def write_manifest(
    out: Path,
    by: str,
    *,
    errors: dict[str, float] | float | None = 0.01,
    **more: Any,
) -> Path:
    """Write the manifest of a file, or of the shards with the name `out` and a number.

    by:     the name of a shipped recipe
    errors: the weighted error by tensor, or of all tensors; None if it was not measured
    more:   top-level parts that replace the default ones
    """
    first = next(p for p in (out, *sorted(out.parent.glob(f"{out.stem}-*.gguf"))) if p.exists())
    shards = open_gguf(first)
    tensors: list[dict[str, Any]] = []
    for number, file in enumerate(shards.files):
        content = file.path.read_bytes()
        for t in file.tensors:
            at = file.data_offset + t.offset
            weighted = errors.get(t.name) if isinstance(errors, dict) else errors
            tensors.append(
                {
                    "name": t.name,
                    "type": t.type_name,
                    "shape": list(t.shape),
                    "bytes": t.n_bytes,
                    "file": number,
                    "offset": at,
                    "xxh64": xxhash.xxh64_hexdigest(content[at : at + t.n_bytes]),
                    "rule": f"{by}.yaml:1",
                    "instead_of": None,
                    "importance": None,
                    "error": weighted
                    if weighted is None
                    else {"weighted": weighted, "one_minus_cos2": weighted / 2, "max": 0.25},
                }
            )
    found = load_recipe(by)
    document = {
        "manifest": 1,
        "dynquant": {"version": "0.1.0", "isa": "v4"},
        "output": {
            "architecture": shards.keys["general.architecture"].value,
            "weights": 1,
            "tensor_bytes": sum(t["bytes"] for t in tensors),
            "bits_per_weight": 1.0,
            "type_counts": {},
            "files": [
                {
                    "name": f.path.name,
                    "bytes": f.path.stat().st_size,
                    "sha256": hashlib.sha256(f.path.read_bytes()).hexdigest(),
                }
                for f in shards.files
            ],
        },
        "recipe": {
            "name": found.name,
            "sha256": found.sha256,
            "text": found.text,
            "extends": list(found.texts),
        },
        "effort": "normal",
        "importance": None,
        "sources": [
            {
                "name": "model.safetensors",
                "bytes": 7,
                "header_sha256": NO_HASH,
                "sha256": "2" * 64,
                "sha256_from": "read",
            }
        ],
        "model": {"repository": None, "commit": None, "mla": None},
        "tensors": tensors,
        "ignored": {},
    } | more
    path = manifest_path(out)
    path.write_text(manifest_text(Manifest.model_validate(document)))
    return path
