"""Idefics3's and SmolVLM's vision encoder: SigLIP, of whose patches squares are joined."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Truth, read_config, without_nulls
from dynquant.arch.settings import Settings, harmless, reads
from dynquant.arch.towers import siglip
from dynquant.arch.towers.vision import (
    Vision,
    activation_keys,
    erf_warning,
    vision_keys,
    vision_sizes,
)
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import u32

_ROWS = (
    Row(
        "model.connector.modality_projection.proj.weight",
        "mm.model.fc.weight",
        "text joined",
    ),
    *siglip.INNER,
)
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
}
"""Defaults of transformers' class, which published files rely on."""


@dataclass(frozen=True)
class _Scale:
    scale_factor: Count = 2


@dataclass(frozen=True)
class _Edge:
    longest_edge: Count


@dataclass(frozen=True)
class _Tiles:
    """How pictures become tiles; the defaults are those of both image processors."""

    size: _Edge = field(default_factory=lambda: _Edge(4 * 364))
    max_image_size: _Edge = field(default_factory=lambda: _Edge(364))
    do_image_splitting: Truth = True


def idefics3(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of an Idefics3 or a SmolVLM."""
    where = f"{whole.where}: vision_config"
    prepared = whole.processor
    v = read_config(Vision, {**_DEFAULTS, **without_nulls(config)}, where)
    scale = read_config(_Scale, whole.config, whole.where).scale_factor
    tiles = read_config(_Tiles, whole.images, prepared)
    side = v.image_size // v.patch_size
    ArchitectureError.raise_any(_problems(v, side, scale, tiles, prepared))
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "idefics3")
        | {"clip.vision.projector.scale_factor": u32(scale)}
        | activation_keys(v.hidden_act, where)
        | {"clip.vision.preproc_image_size": u32(tiles.size.longest_edge)},
        rows=_ROWS,
        sizes={**vision_sizes(v, whole), "joined": v.hidden_size * scale**2},
        n_layers=v.num_hidden_layers,
        tied=None,
        ignored=siglip.UNUSED,
        deviations=(*erf_warning(v.hidden_act, where), *_warnings(tiles, prepared)),
    )


def _problems(v: Vision, side: int, scale: int, tiles: _Tiles, where: str) -> Iterator[str]:
    if scale < 2 or side % scale:
        yield (
            f"scale_factor of config.json is {scale}; llama.cpp joins squares of at least 2 x 2 of"
            f" the {side} x {side} patches of a tile"
        )
    if tiles.max_image_size.longest_edge != v.image_size:
        yield (
            f"{where}: max_image_size is {tiles.max_image_size.longest_edge}; llama.cpp takes tiles"
            f" of the encoder's image_size {v.image_size}"
        )


def _warnings(tiles: _Tiles, where: str) -> Iterator[str]:
    edge, tile = tiles.size.longest_edge, tiles.max_image_size.longest_edge
    if not tiles.do_image_splitting:
        yield (
            f"{where}: do_image_splitting is false; llama.cpp always shows the tiles of a picture"
            " beside the whole"
        )
    elif edge <= tile:
        yield (
            f"{where}: size is {edge}, a single tile; llama.cpp shows it twice, as tile and as"
            " the whole picture"
        )
    elif edge % tile:
        yield (
            f"{where}: size is {edge}, not a multiple of tiles of {tile}; llama.cpp enlarges some"
            " pictures to fewer tiles than the model's own code"
        )


IDEFICS3 = (
    Tower(
        idefics3,
        r"(vision_model|connector)\.",
        Settings(
            read=reads(Vision),
            harmless=harmless("the image processor states it", "max_image_size size")
            | harmless("the encoder's form, as its tensors show", "use_base_siglip")
            | harmless("the encoder has no words", "tie_word_embeddings"),
            only=siglip.ONLY,
        ),
    ),
)
PROJECTORS = {
    "Idefics3ForConditionalGeneration": IDEFICS3,
    "SmolVLMForConditionalGeneration": IDEFICS3,
}
