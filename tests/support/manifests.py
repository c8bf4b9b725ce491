"""Manifests made without dynquant, from the gguf package, hashlib and xxhash."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xxhash
from gguf import GGUFReader


def manifest_of(out: Path, paths: Sequence[Path] = ()) -> dict[str, Any]:
    """Return the correct manifest of a file or of shards."""
    files: list[dict[str, Any]] = []
    tensors: list[dict[str, Any]] = []
    keys: dict[str, Any] = {}
    for number, path in enumerate(paths or (out,)):
        reader = GGUFReader(path)
        keys |= {name: f.contents() for name, f in reader.fields.items() if name[:4] != "GGUF"}
        content = path.read_bytes()
        files.append(
            {
                "name": path.name,
                "bytes": len(content),
                "sha256": hashlib.sha256(content).hexdigest(),
            }
        )
        for t in reader.tensors:
            tensors.append(
                {
                    "name": t.name,
                    "type": t.tensor_type.name,
                    "shape": [int(n) for n in t.shape[::-1]],
                    "bytes": int(t.n_bytes),
                    "file": number,
                    "offset": int(t.data_offset),
                    "xxh64": xxhash.xxh64(t.data.tobytes()).hexdigest(),
                    "rule": "recipes/hand.yaml:1 default",
                    "instead_of": None,
                    "importance": None,
                    "error": None,
                }
            )
    n_bytes = sum(t["bytes"] for t in tensors)
    return {
        "manifest": 1,
        "dynquant": {"version": keys["dynquant.version"], "isa": "portable"},
        "output": {
            "architecture": keys["general.architecture"],
            "weights": 1,
            "tensor_bytes": n_bytes,
            "bits_per_weight": 8.0,
            "type_counts": dict(Counter(t["type"] for t in tensors)),
            "files": files,
        },
        "recipe": {
            "name": keys["dynquant.recipe"],
            "sha256": keys["dynquant.recipe_sha256"],
            "text": "",
            "extends": [],
        },
        "effort": keys["dynquant.effort"],
        "importance": None,
        "sources": [],
        "model": {"repository": None, "commit": None, "mla": None},
        "tensors": tensors,
        "ignored": {},
    }


def write_manifest(out: Path, paths: Sequence[Path] = ()) -> Path:
    """Write the manifest of a file beside it."""
    place = out.with_name(out.name + ".manifest.json")
    place.write_text(json.dumps(manifest_of(out, paths)))
    return place
