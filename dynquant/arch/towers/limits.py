"""Sizes of pictures that a model's image processor permits, and that llama.cpp reduces."""

from __future__ import annotations

from dynquant.errors import ArchitectureError
from dynquant.keys import KeyValue, u32

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


def reduced(permitted: int, computed: int, where: str) -> tuple[str, ...]:
    """Return a warning if llama.cpp gives a large picture fewer tokens than the model's processor.

    permitted: the largest number of tokens that the processor gives a picture
    computed:  llama.cpp's default limit
    where:     the settings that state the permitted number, which begin the message
    """
    if permitted <= computed:
        return ()
    return (
        f"{where}: up to {permitted} tokens; llama.cpp reduces pictures of more than {computed}"
        f" tokens, unless it runs with --image-max-tokens {permitted}",
    )
