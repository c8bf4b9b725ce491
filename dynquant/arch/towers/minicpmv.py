"""What the encoders of MiniCPM-V have in common: SigLIP of 70 x 70 patches, and slices."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dynquant.arch.config import Count, Truth, read_config
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.vision import Vision
from dynquant.arch.towers.whole import Whole

SIDE = 70
"""Learned positions of a side in llama.cpp."""

_MOST_SLICES = 9
DEFAULTS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
}
"""What the models' own classes have for settings of the encoder that config.json omits."""


@dataclass(frozen=True)
class Slices:
    """How pictures are cut.

    scale_resolution: pixels of a side of a slice, about
    """

    scale_resolution: Count = 448
    max_slice_nums: Count = _MOST_SLICES
    slice_mode: Truth = True

    @classmethod
    def of(cls, whole: Whole) -> Slices:
        """Read the settings of a model's image processor."""
        return read_config(cls, whole.images, whole.processor)


def problems(slices: Slices, v: Vision, whole: Whole) -> Iterator[str]:
    """Yield what llama.cpp cannot compute."""
    yield from contradictions(whole, patch_size=v.patch_size)
    if v.image_size // v.patch_size != SIDE:
        yield (
            f"{whole.where}: vision_config has image_size {v.image_size} and patch_size"
            f" {v.patch_size}; llama.cpp computes {SIDE} patches of a side"
        )
    if slices.max_slice_nums != _MOST_SLICES:
        yield (
            f"{whole.folder}: max_slice_nums is {slices.max_slice_nums}; llama.cpp cuts pictures"
            f" into at most {_MOST_SLICES} slices"
        )


def warnings(slices: Slices, whole: Whole) -> Iterator[str]:
    """Yield what llama.cpp does with pictures in another way than the model's processor."""
    yield (
        f"{whole.folder}: llama.cpp stretches pictures of up to {slices.scale_resolution} pixels to"
        " a square, and pads larger ones with black before it cuts them into slices; the model's"
        " processor keeps the shape of small pictures, stretches large ones, and numbers the slices"
    )
    if not slices.slice_mode:
        yield f"{whole.processor}: slice_mode is false; llama.cpp always cuts large pictures"
