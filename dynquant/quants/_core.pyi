"""The C core, csrc/module.c. Only codec.py calls it; ISAs and types are positions in its tables."""

from dynquant.tensors import F32, U8

ISAS: tuple[str | None, ...]
TYPES: tuple[tuple[str, int, int], ...]

def encode(
    isa: int,
    type_index: int,
    stored: int,
    rows: U8,
    n_per_row: int,
    importance: F32 | None,
    effort: int,
    by_magnitude: bool,
    gain: float,
    blocks: U8,
    /,
) -> int: ...
def decode(isa: int, type_index: int, blocks: U8, weights: F32, /) -> None: ...
