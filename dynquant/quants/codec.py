"""Rows of weights to blocks and back: the Python face of the C encoders."""

from __future__ import annotations

import os
from functools import cache

import numpy as np

from dynquant.arrays import F32, U8
from dynquant.errors import DynquantError, EncodeError
from dynquant.quants.error import ErrorSums
from dynquant.quants.search import EFFORTS, GAINS, NORMAL, Effort, Gain, Search, Weighting
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
            f"DYNQUANT_ISA={forced!r} is not to be had on this CPU; it runs {', '.join(isas())}"
        )
    return forced


@cache
def _isa_position(isa: str) -> int:
    return _core.ISAS.index(isa)


def isa_in_use() -> int:
    """Return the position of `active_isa` in the core's table."""
    return _isa_position(active_isa())


def encode_stored(
    rows: U8,
    stored: QuantType,
    n_per_row: int,
    qtype: QuantType,
    out: U8,
    importance: F32 | None = None,
    search: Search = NORMAL,
) -> None:
    """Encode rows straight from their stored bytes, in one call that lets other threads run.

    rows:       uint8, the bytes of whole rows of n_per_row weights, C order
    stored:     the type that they have; rows that have the wanted type already are taken as they
                are, bit for bit, and floats looked at for numbers that are not finite
    out:        uint8, n_rows * qtype.row_size(n_per_row) bytes, filled
    importance: float32 [n_per_row], finite and >= 0; None weighs all alike

    Raises NotFiniteError for the first row with a NaN or an infinity, EncodeError if no block
    divides a row.
    """
    row_size = qtype.row_size(n_per_row)
    if stored is qtype and stored.name not in _FLOAT:
        out.reshape(-1)[:] = rows.reshape(-1)
        return
    if stored.name not in _FLOAT:
        n_rows = out.size // row_size
        rows = decode(rows.reshape(n_rows, -1), stored, n_per_row).view(np.uint8)
        stored = ALL["F32"]
    bad_row = _core.encode(
        isa_in_use(),
        _POSITION[qtype.name],
        _FLOAT[stored.name],
        rows,
        n_per_row,
        importance,
        EFFORTS.index(search.effort),
        search.weighting == "magnitude",
        GAINS[search.gain or "least-squares"],
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
    importance: float32 [n_per_row], finite and >= 0; None weighs all alike

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


def encode(
    x: F32,
    qtype: QuantType | str,
    importance: F32 | None = None,
    *,
    effort: Effort = "normal",
    weighting: Weighting | None = None,
    gain: Gain | None = None,
) -> U8:
    """Encode rows of weights as blocks of one quant type.

    x:          float32 [n_rows, n_per_row], finite
    importance: float32 [n_per_row], finite and >= 0, the mean squared activation of each input
                channel; None weighs all alike. What is minimised is the sum over the weights of
                importance * (x - decoded x)^2
    effort, weighting, gain: see quants/search.py; None is "importance" and "least-squares"
    returns:    uint8 [n_rows, qtype.row_size(n_per_row)]

    Raises EncodeError if n_per_row is no multiple of the type's block size, for shapes that do not
    fit together, and (NotFiniteError) for weights that are not finite.
    Block layouts: ggml-common.h in llama.cpp.
    """
    qtype = quant_type(qtype) if isinstance(qtype, str) else qtype
    if x.ndim != 2 or x.dtype != np.float32:
        raise EncodeError(f"weights must be float32 [n_rows, n_per_row], not {_described(x)}")
    n_rows, n_per_row = x.shape
    blocks = np.empty((n_rows, qtype.row_size(n_per_row)), np.uint8)
    if importance is not None:
        importance = _checked(importance, n_per_row)
    if x.size:
        rows = np.ascontiguousarray(x).view(np.uint8)
        search = Search(effort, weighting, gain)
        encode_stored(rows, ALL["F32"], n_per_row, qtype, blocks, importance, search)
    return blocks


def _checked(importance: F32, n_per_row: int) -> F32:
    if importance.shape != (n_per_row,) or importance.dtype != np.float32:
        raise EncodeError(
            f"importance must be float32 [{n_per_row}], one value for each weight of a row,"
            f" not {_described(importance)}"
        )
    if not np.all(np.isfinite(importance) & (importance >= 0)):
        raise EncodeError("importance must be finite and not negative")
    return np.ascontiguousarray(importance)


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
