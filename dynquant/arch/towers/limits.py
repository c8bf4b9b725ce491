"""Sizes of pictures that a model's image processor permits, and that llama.cpp reduces."""

from __future__ import annotations


def reduced(permitted: int, computed: int, where: str) -> tuple[str, ...]:
    """Return a warning if llama.cpp gives a large picture fewer tokens than the model's processor.

    permitted: the largest number of tokens that the processor gives a picture
    computed:  llama.cpp's default limit
    where:     the settings that state the permitted number, which begin the message
    """
    if permitted <= computed:
        return ()
    return (
        f"{where}: permits {permitted} tokens of a picture; llama.cpp reduces larger pictures to"
        f" {computed}, run it with --image-max-tokens {permitted}",
    )
