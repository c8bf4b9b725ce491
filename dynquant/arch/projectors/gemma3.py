"""Gemma 3's vision encoder: SigLIP, whose patches are pooled, normed and projected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, read_config
from dynquant.arch.settings import Settings, harmless, reads
from dynquant.arch.towers import siglip
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.vision import (
    Vision,
    activation_keys,
    erf_warning,
    vision_keys,
    vision_sizes,
)
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32
from dynquant.transforms import plus_one

_JOIN = "model.multi_modal_projector."
_ROWS = (
    Row(_JOIN + "mm_input_projection_weight", "mm.input_projection.weight", "hidden text"),
    Row(_JOIN + "mm_soft_emb_norm.weight", "mm.soft_emb_norm.weight", "hidden", via=plus_one),
)
_PADS = (
    "{}: llama.cpp keeps the proportions of a picture and pads it with black; the model's own code"
    " stretches it to a square"
)
_MERGED = 4
"""Patches of a side that become one, unless a key says another number."""


@dataclass(frozen=True)
class _Gemma3:
    mm_tokens_per_image: Count = 256


def gemma3(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Gemma 3."""
    where = f"{whole.where}: vision_config"
    v = read_config(Vision, config, where)
    side = v.image_size // v.patch_size
    n_tokens = read_config(_Gemma3, whole.config, whole.where).mm_tokens_per_image
    merged = side // isqrt(n_tokens)
    problems = [*contradictions(whole, size=v.image_size, image_seq_length=n_tokens)]
    if merged < 1 or merged * isqrt(n_tokens) != side or isqrt(n_tokens) ** 2 != n_tokens:
        problems.append(
            f"{whole.where}: mm_tokens_per_image is {n_tokens}; llama.cpp pools squares of the"
            f" {side} x {side} patches of an image"
        )
    ArchitectureError.raise_any(problems)
    pooled: Keys = {"clip.vision.projector.scale_factor": u32(merged)} if merged != _MERGED else {}
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "gemma3") | activation_keys(v.hidden_act, where) | pooled,
        rows=_ROWS + siglip.ROWS,
        sizes=vision_sizes(v, whole),
        n_layers=v.num_hidden_layers,
        tied=None,
        ignored=siglip.UNUSED,
        deviations=(*erf_warning(v.hidden_act, where), *_warnings(whole)),
    )


def _warnings(whole: Whole) -> Iterator[str]:
    yield _PADS.format(whole.folder)
    if whole.images.get("do_pan_and_scan"):
        yield (
            f"{whole.processor}: do_pan_and_scan is true; llama.cpp shows the whole picture, and no"
            " parts of it"
        )


PROJECTORS = {
    "Gemma3ForConditionalGeneration": (
        Tower(
            gemma3,
            r"(vision_tower|multi_modal_projector)\.",
            Settings(
                read=reads(Vision),
                harmless=harmless("Gemma 3 does not use the encoder's head", "vision_use_head"),
                only=siglip.ONLY,
            ),
        ),
    ),
}
