"""JSON documents about releases, for scripts."""

from __future__ import annotations

from typing import Any

from dynquant.release.folder import Release


def release_json(release: Release) -> dict[str, Any]:
    """Return a release as `dynquant release --json` prints it; scripts rely on this form."""
    return {
        "folder": str(release.folder),
        "files": [
            {
                "name": name,
                "bytes": (release.folder / name).stat().st_size,
                "sha256": release.sha256.get(name),
            }
            for name in release.names
        ],
        "models": [
            {
                "path": str(release.folder / m.path.name),
                "files": [path.name for path in m.paths],
                "architecture": m.architecture,
                "recipe": m.recipe,
                "bytes": m.file_bytes,
                "bits_per_weight": m.bits_per_weight,
                "type_counts": m.type_counts,
                "sha256": [release.sha256[path.name] for path in m.paths],
                "error": m.loss.weighted if m.loss else None,
            }
            for m in release.made
        ],
        "lacks": list(release.missing),
    }
