"""The functions of the C core, with their arguments checked. Encoding goes through encoder.py."""

from __future__ import annotations

import os
from functools import cache

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.errors import DynquantError, EncodeError
from dynquant.quants.error import ErrorSums
from dynquant.quants.search import EFFORTS, GAINS, NORMAL, Search, default_gain
from dynquant.quants.table import ALL, FLOATS, QuantType, quant_type

try:
    from dynquant.quants import _core
except ImportError as e:
    raise ImportError(
        "dynquant's C core is not here: Python found the source and not the installed package;"
        " run `pip install -e .` in the checkout, or leave its folder"
    ) from e

_POSITION = {name: i for i, (name, _, _) in enumerate(_core.TYPES)}
_FLOAT = {name: i for i, name in enumerate(_core.STORED)}

# Python and the core describe the same formats, and share orders by position; a build that
# disagrees must not run.
for _name, _block_size, _type_size in _core.TYPES:
    if (ALL[_name].block_size, ALL[_name].type_size) != (_block_size, _type_size):
        raise ImportError(f"the C core and gguf disagree about the size of {_name}")
for _what, _core_names, _names in (
    ("efforts", _core.EFFORTS, EFFORTS),
    ("stored floats", _core.STORED, tuple(FLOATS)),
    ("error sums", _core.SUMS, ErrorSums._fields),
):
    if _core_names != _names:
        raise ImportError(f"the C core has the {_what} {_core_names}, Python {_names}")


class NotFiniteError(EncodeError):
    """A weight is NaN or infinite; `row` is the first such row, counted in the rows given."""

    def __init__(self, row: int) -> None:
        super().__init__(f"row {row} holds a number that is not finite (NaN or infinity)")
        self.row = row


def isas() -> tuple[str, ...]:
    """Return the builds of the core that this CPU runs, the fastest last.

    All give the same bytes: `portable`, and on x86-64 `v3` (AVX2) and `v4` (AVX-512).
    """
    return tuple(name for name in _core.ISAS if name is not None)


def active_isa() -> str:
    """Return the build in use: the fastest, or the one that DYNQUANT_ISA names.

    Raises DynquantError if this CPU cannot run that one.
    """
    forced = os.environ.get("DYNQUANT_ISA")
    if not forced:
        return isas()[-1]
    if forced not in isas():
        raise DynquantError(
            f"DYNQUANT_ISA={forced!r} is not supported on this CPU; supported: {', '.join(isas())}"
        )
    return forced


@cache
def _isa_position(isa: str) -> int:
    return _core.ISAS.index(isa)


def isa_in_use() -> int:
    """Return the position of `active_isa` in the core's table."""
    return _isa_position(active_isa())


def type_position(qtype: QuantType) -> int:
    """Return the position of a type in the core's table."""
    return _POSITION[qtype.name]


def float_position(stored: QuantType) -> int:
    """Return the position of F32, F16 or BF16 in the core's table of stored types."""
    return _FLOAT[stored.name]


def encode_floats(
    rows: U8,
    stored: QuantType,
    n_per_row: int,
    qtype: QuantType,
    out: U8,
    importance: F32 | None = None,
    search: Search = NORMAL,
    mean: F32 | None = None,
) -> None:
    """Encode rows of F32, F16 or BF16 in one call without the GIL.

    rows:       uint8, the bytes of whole rows of n_per_row weights, C order
    out:        uint8, n_rows * qtype.row_size(n_per_row) bytes, filled
    importance: float32 [n_per_row], finite and >= 0; None weights all channels equally
    mean:       float32 [n_per_row], finite: the mean of each channel, with an importance. Then the
                bias of a row, (sum mean * error)^2, is minimised, too. Floats and weighting by
                magnitude do not use it

    Raises NotFiniteError for the first row with a NaN or an infinity, EncodeError if the type's
    block size does not divide a row.
    """
    qtype.row_size(n_per_row)
    if qtype.block_size == 1 or importance is None or search.weighting == "magnitude":
        mean = None
    bad_row = _core.encode(
        isa_in_use(),
        _POSITION[qtype.name],
        _FLOAT[stored.name],
        rows,
        n_per_row,
        importance,
        mean,
        EFFORTS.index(search.effort),
        search.weighting == "magnitude",
        GAINS[search.gain or default_gain(qtype.name)],
        out,
    )
    if bad_row >= 0:
        raise NotFiniteError(bad_row)


def error_sums(
    rows: U8,
    stored: QuantType,
    n_per_row: int,
    qtype: QuantType,
    blocks: U8,
    importance: F32 | None = None,
) -> ErrorSums:
    """Return how far blocks are from the rows that they were made of, in one call without the GIL.

    rows:       uint8, the bytes of whole rows of n_per_row weights, C order
    stored:     the type that they have: any that is encoded or decoded
    blocks:     uint8, n_rows * qtype.row_size(n_per_row) bytes
    importance: float32 [n_per_row], finite and >= 0; None weights all channels equally

    The same on every ISA, bit for bit. Sums of the same rows in other portions agree to about seven
    digits. Raises ValueError for what does not fit together, which is our bug.
    """
    return ErrorSums(
        *_core.errors(
            isa_in_use(),
            _POSITION[stored.name],
            rows,
            _POSITION[qtype.name],
            blocks,
            n_per_row,
            importance,
        )
    )


def _described(x: np.ndarray) -> str:
    return f"{x.dtype} {list(x.shape)}"


def decode(blocks: U8, qtype: QuantType | str, n_per_row: int) -> F32:
    """Decode blocks to the weights that a runtime computes with.

    blocks:  uint8 [n_rows, qtype.row_size(n_per_row)]
    returns: float32 [n_rows, n_per_row]

    Raises EncodeError for blocks of another shape.
    """
    qtype = quant_type(qtype) if isinstance(qtype, str) else qtype
    row_size = qtype.row_size(n_per_row)
    if blocks.ndim != 2 or blocks.dtype != np.uint8 or blocks.shape[1] != row_size:
        raise EncodeError(
            f"rows of {n_per_row} weights as {qtype.name} are uint8 [n_rows, {row_size}],"
            f" not {_described(blocks)}"
        )
    x = np.empty((len(blocks), n_per_row), np.float32)
    if x.size:
        _core.decode(isa_in_use(), _POSITION[qtype.name], np.ascontiguousarray(blocks), x)
    return x
