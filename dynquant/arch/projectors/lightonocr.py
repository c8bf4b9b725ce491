"""LightOnOCR: the vision encoder of a Mistral 3, without marks after rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import read_config
from dynquant.arch.towers.pixtral import (
    PROJECTOR,
    SETTINGS,
    TOWER,
    Joined,
    encoder,
    longest_edge,
    merging,
)
from dynquant.arch.towers.whole import Tower, Whole
from dynquant.keys import Keys, u32


def lightonocr(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a LightOnOCR."""
    stated = {"spatial_merge_size": whole.config.get("spatial_merge_size")}
    joined = read_config(Joined, stated, whole.where)
    found = merging(encoder(config, whole, joined, "lightonocr"), whole, joined)
    edge = longest_edge(whole, found.sizes["picture"])
    is_own = edge == found.sizes["picture"]
    longest: Keys = {} if is_own else {"clip.vision.preproc_image_size": u32(edge)}
    return replace(
        found,
        keys=found.keys | longest,
        rows=tuple(
            row.within(TOWER, "model.vision_encoder.").within(PROJECTOR, "model.vision_projection.")
            for row in found.rows
        ),
        deviations=(
            *found.deviations,
            f"{whole.where}: llama.cpp enlarges small pictures of LightOnOCR to the longest side,"
            " which the model's own processor does not",
        ),
    )


_LIGHTONOCR = (Tower(lightonocr, r"vision_(encoder|projection)\.", SETTINGS),)
PROJECTORS = {
    "LightOnOCRForConditionalGeneration": _LIGHTONOCR,
    "LightOnOcrForConditionalGeneration": _LIGHTONOCR,
}
