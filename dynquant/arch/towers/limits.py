"""Sizes of pictures: what a model's image processor permits, and what llama.cpp does."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.arch.config import Count, read_config
from dynquant.arch.towers.processor import edges
from dynquant.arch.towers.whole import Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, KeyValue, u32

_MOST = 2**31 - 1
"""llama.cpp computes with numbers of pixels in 32 bits."""


def pixels(n: int, each: int, where: str) -> KeyValue:
    """Return the number of pixels of a picture with n patches or tokens of `each` pixels.

    where: the setting that states n, which begins the message

    Raises ArchitectureError for more pixels than llama.cpp can count.
    """
    if n * each > _MOST:
        raise ArchitectureError(
            f"{where} is {n}; llama.cpp computes pictures of at most"
            f" {_MOST} pixels, which is {_MOST // each}"
        )
    return u32(n * each)


@dataclass(frozen=True)
class _Pixels:
    """Limits of the image processor on the area of a picture; newer ones state them as `size`."""

    min_pixels: Count | None = None
    max_pixels: Count | None = None


def pixel_limits(whole: Whole, area: int, fewest: int, most: int) -> tuple[Keys, tuple[str, ...]]:
    """Return the keys for the processor's limits, and a warning if llama.cpp's are lower.

    area:         pixels of a token
    fewest, most: llama.cpp's limits on the tokens of a picture, unless the file has others

    Higher limits than llama.cpp's are not written: pictures would take more memory than its users
    expect.

    Raises ArchitectureError for limits that exclude each other.
    """
    stated, size = read_config(_Pixels, whole.images, whole.processor), edges(whole)
    least = stated.min_pixels or size.shortest_edge or fewest * area
    largest = stated.max_pixels or size.longest_edge or most * area
    if least > largest:
        raise ArchitectureError(
            f"{whole.processor}: pictures have at least {least} and at most {largest} pixels; take"
            " the settings from the original model"
        )
    keys: Keys = {
        "clip.vision.image_min_pixels": u32(least),
        "clip.vision.image_max_pixels": u32(min(largest, most * area)),
    }
    is_own = least > fewest * area or largest < most * area
    above = other_limit(max(largest // area, most), most, f"{whole.processor}: {largest} pixels")
    return keys if is_own else {}, above


def other_limit(permitted: int, computed: int, where: str) -> tuple[str, ...]:
    """Return a warning if llama.cpp's limit for large pictures is not that of the model.

    permitted: the largest number of tokens that the processor gives a picture
    computed:  llama.cpp's default limit
    where:     the settings that state the permitted number, which begin the message
    """
    if permitted == computed:
        return ()
    return (
        f"{where}: up to {permitted} tokens for a picture; llama.cpp permits {computed}, unless it"
        f" runs with --image-max-tokens {permitted}",
    )
