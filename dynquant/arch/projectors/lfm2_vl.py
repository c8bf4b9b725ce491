"""LFM2-VL's vision encoder: SigLIP 2, whose positions are interpolated for each picture's size."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Integer, Truth, read_config, without_nulls
from dynquant.arch.settings import Settings, harmless, reads
from dynquant.arch.towers import siglip
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.vision import (
    Vision,
    activation_keys,
    biased,
    erf_warning,
    vision_keys,
)
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped, transposed
from dynquant.untrusted import shown

_JOIN = "model.multi_modal_projector."
_SIZE = 256
"""Pixels of a side, which llama.cpp needs for a trial run only: pictures have any size."""

_PREPARED: dict[str, object] = {
    "do_image_splitting": True,
    "tile_size": 512,
    "min_tiles": 2,
    "max_tiles": 10,
    "use_thumbnail": True,
    "min_image_tokens": 64,
    "max_image_tokens": 256,
    "max_pixels_tolerance": 2.0,
}
"""How llama.cpp prepares pictures; these are the defaults of the model's own code, too."""


@dataclass(frozen=True)
class _Positions:
    num_patches: Count = 256


@dataclass(frozen=True)
class _Model:
    downsample_factor: Count = 2
    projector_hidden_act: str = "gelu"
    projector_hidden_size: Count = 2560
    projector_bias: Truth = True
    projector_use_layernorm: Truth = True
    vision_feature_layer: Integer = -1


def prepared(whole: Whole) -> dict[str, Any]:
    """Return how the model prepares pictures; older files state it in config.json."""
    return {**whole.config, **without_nulls(whole.images)}


def kernel(source: TensorSource) -> TensorSource:
    """Return a patch embedding as a convolution, from a matrix over the colours of each pixel.

    source: [outputs, height * width * 3], a square; colours vary fastest
    """
    n_out, n_in = source.shape
    side = isqrt(n_in // 3)
    by_colour = transposed(Reshaped(source, (n_out, side * side, 3)))
    return Reshaped(by_colour, (n_out, 3, side, side))


def _tower_row(row: Row) -> Row:
    if row.name != "v.patch_embd.weight":
        return row
    forms = tuple(replace(form, shape="hidden pixels", via=kernel) for form in row.forms)
    return replace(row, shape="hidden pixels", via=kernel, forms=forms)


def lfm2_vl(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of an LFM2-VL."""
    where = f"{whole.where}: vision_config"
    usual = {**siglip.DEFAULTS, **without_nulls(config), "image_size": _SIZE}
    v = read_config(Vision, usual, where)
    n_places = read_config(_Positions, config, where).num_patches
    model = read_config(_Model, whole.config, whole.where)
    ArchitectureError.raise_any(_problems(model, v.patch_size, n_places, whole))
    norm = biased(_JOIN + "layer_norm", "mm.input_norm", "joined")
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "lfm2")
        | {"clip.vision.projector.scale_factor": u32(model.downsample_factor)}
        | activation_keys(v.hidden_act, where),
        rows=(
            *map(_tower_row, siglip.ROWS),
            *(norm if model.projector_use_layernorm else ()),
            *biased(_JOIN + "linear_1", "mm.1", "middle joined"),
            *biased(_JOIN + "linear_2", "mm.2", "text middle"),
        ),
        sizes={
            "hidden": v.hidden_size,
            "ffn": v.intermediate_size,
            "pixels": 3 * v.patch_size**2,
            "patches": n_places,
            "joined": v.hidden_size * model.downsample_factor**2,
            "middle": model.projector_hidden_size,
            "text": whole.n_text,
        },
        n_layers=v.num_hidden_layers,
        tied=None,
        ignored=siglip.UNUSED,
        deviations=(*erf_warning(v.hidden_act, where), *_warnings(whole)),
    )


def _problems(model: _Model, patch: int, n_places: int, whole: Whole) -> Iterator[str]:
    if model.downsample_factor < 2:
        yield f"{whole.where}: downsample_factor is 1; llama.cpp computes 2 and more"
    if model.projector_hidden_act != "gelu":
        yield (
            f"{whole.where}: projector_hidden_act is {shown(model.projector_hidden_act)};"
            " llama.cpp computes 'gelu'"
        )
    if not model.projector_bias:
        yield f"{whole.where}: projector_bias is false; llama.cpp needs biases"
    if model.vision_feature_layer != -1:
        yield (
            f"{whole.where}: vision_feature_layer is {model.vision_feature_layer}; only the output"
            " of the last layer, -1, is supported"
        )
    if isqrt(n_places) ** 2 != n_places:
        yield f"{whole.where}: vision_config: num_patches is {n_places}, which is no square"
    stated = replace(whole, images=prepared(whole))
    yield from contradictions(
        stated, encoder_patch_size=patch, downsample_factor=model.downsample_factor
    )


def _warnings(whole: Whole) -> Iterator[str]:
    stated = prepared(whole)
    others = {n: stated[n] for n, usual in _PREPARED.items() if stated.get(n) not in (None, usual)}
    if others:
        listed = ", ".join(f"{name} {json.dumps(value)}" for name, value in others.items())
        ours = ", ".join(f"{name} {json.dumps(_PREPARED[name])}" for name in others)
        yield (f"{whole.processor}: {listed}; llama.cpp computes {ours}")


PROJECTORS = {
    "Lfm2VlForConditionalGeneration": (
        Tower(
            lfm2_vl,
            r"(vision_tower|multi_modal_projector)\.",
            Settings(
                read=reads(Vision, _Positions),
                harmless=harmless("LFM2-VL does not use the encoder's head", "vision_use_head")
                | harmless("pictures have any size", "image_size"),
                only=siglip.ONLY,
            ),
        ),
    ),
}
