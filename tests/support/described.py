"""The projectors of reference checkpoints, with changes in their settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from places import REFERENCES

from dynquant.arch.base import Architecture
from dynquant.arch.load_projector import projector_of
from dynquant.arch.towers.whole import Whole
from dynquant.errors import ArchitectureError

FOLDER = REFERENCES / "projectors"


def towers_of(
    case: str, changes: Mapping[str, Any], *, images: Mapping[str, Any] | None = None
) -> list[Architecture]:
    """Describe the towers of a case.

    changes: settings by their dotted places in config.json
    images:  other settings of the image processor and feature extractor
    """
    config: dict[str, Any] = json.loads((FOLDER / case / "config.json").read_text("utf-8"))
    for place, value in changes.items():
        *path, last = place.split(".")
        part = config
        for name in path:
            part = part[name]
        part[last] = value
    found = Whole.of(config, FOLDER / case)
    whole = replace(
        found,
        images={**found.images, **(images or {})},
        sounds={**found.sounds, **(images or {})},
    )
    return [t(whole) for t in projector_of(config, whole.where) if t.is_part_of(config)]


def refusal(case: str, changes: Mapping[str, Any], **images: Any) -> str:
    """Return the messages of the error that describing the changed case raises."""
    with pytest.raises(ArchitectureError) as e:
        towers_of(case, changes, images=images)
    return "\n".join(e.value.messages)
