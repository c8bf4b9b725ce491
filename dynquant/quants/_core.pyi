"""The C core, csrc/module.c. Only codec.py, stored.py and feedback.py call it.

ISAs, types, efforts, stored types, numbers and packings are passed as positions in its tables.
"""

from dynquant.arrays import F16, F32, F64, I32, U8

ISAS: tuple[str | None, ...]
TYPES: tuple[tuple[str, int, int], ...]
EFFORTS: tuple[str, ...]
STORED: tuple[str, ...]
NUMBERS: tuple[str, ...]
PACKINGS: tuple[str, ...]
SUMS: tuple[str, ...]

def encode(
    isa: int,
    type_index: int,
    stored: int,
    rows: U8,
    n_per_row: int,
    importance: F32 | None,
    mean: F32 | None,
    effort: int,
    by_magnitude: bool,
    gain: float,
    blocks: U8,
    /,
) -> int: ...
def encode_columns(
    isa: int,
    type_index: int,
    rows: F32,
    n_per_row: int,
    first: int,
    n_columns: int,
    importance: F32 | None,
    effort: int,
    blocks: U8,
    /,
) -> int: ...
def decode(isa: int, type_index: int, blocks: U8, weights: F32, /) -> None: ...
def errors(
    isa: int,
    original: int,
    rows: U8,
    type_index: int,
    blocks: U8,
    n_per_row: int,
    importance: F32 | None,
    /,
) -> tuple[float, float, float, float, float]: ...
def decode_rows(
    isa: int,
    number: int,
    bits: int,
    codes: U8,
    n_rows: int,
    n_per_row: int,
    first: int,
    block_rows: int,
    block_columns: int,
    n_columns: int,
    scale: F32,
    zero: F32 | None,
    zero_of_all: float,
    groups: I32 | None,
    weights: F32,
    /,
) -> None: ...
def decode_transposed(
    isa: int,
    packing: int,
    bits: int,
    words: U8,
    width: int,
    first: int,
    n_rows: int,
    n_per_row: int,
    scale: F32 | None,
    zero: F32 | None,
    groups: I32 | None,
    weights: F32,
    /,
) -> None: ...
def mxfp4_of_codes(isa: int, codes: U8, scales: U8, blocks: U8, /) -> None: ...
def place_correlations(
    isa: int, n: int, correlations: F16, damping: float, block: int, upper: F32, diagonal: F32, /
) -> None: ...
def factor_tiles(
    isa: int, n: int, upper: F32, damping: float, block: int, first: int, last: int, /
) -> None: ...
def place_schur(isa: int, n: int, upper: F32, block: int, schur: F32, /) -> None: ...
def encode_with_feedback(
    isa: int,
    type_index: int,
    stored: int,
    rows: U8,
    n_per_row: int,
    importance: F32,
    upper: F32,
    diagonal: F32,
    schur: F32,
    scale: F32,
    effort: int,
    gain: float,
    sweeps: int,
    blocks: U8,
    losses: F64,
    /,
) -> int: ...
def output_errors(
    isa: int,
    type_index: int,
    stored: int,
    rows: U8,
    n_per_row: int,
    blocks: U8,
    sums: F32,
    n_sums: int,
    errors: F64,
    /,
) -> None: ...
