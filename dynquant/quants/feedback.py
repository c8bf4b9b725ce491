"""Error feedback: the factor of a matrix's correlations, and encoding with it.

The outputs of a matrix are off by tr(E H E') in the mean square, E the errors of its weights and
H = E[x x'] the second moments of its inputs. With S the roots of H's diagonal, H = S C S. The core
works with L, C + damping = L L' (csrc/factor.h, csrc/feedback.h).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dynquant.arrays import F16, F32, F64, U8
from dynquant.errors import EncodeError
from dynquant.quants import _core
from dynquant.quants.codec import NotFiniteError, float_position, isa_in_use, type_position
from dynquant.quants.search import EFFORTS, GAINS, Search, default_gain
from dynquant.quants.table import QuantType

TILE = 256
"""Rows and columns of the tiles of a factor."""

ROWS = 64
"""Rows that are encoded together: each reads the whole factor once."""

MOST = 4.0
"""The largest number of a factor: its rows have the length sqrt(1 + damping), damping at most 1,
but for the rounding of correlations."""

Task = Callable[[], object]
Run = Callable[[Iterable[Task]], None]
"""Runs tasks, in any order or at the same time, and returns when all are done."""


def _one_after_another(tasks: Iterable[Task]) -> None:
    for task in tasks:
        task()


@dataclass(frozen=True, eq=False)
class Factor:
    """The factor of the correlations of n input channels.

    upper, diagonal, schur: float32, as csrc/factor.h lays them out
    damping:                what was added to the diagonal of the correlations
    """

    n: int
    damping: float
    upper: F32
    diagonal: F32
    schur: F32


def factor_bytes(n: int) -> int:
    """Return the bytes of a factor of n channels."""
    return 4 * (_upper_size(n) + 2 * _diagonal_size(n))


def _upper_size(n: int) -> int:
    full = (n - 1) // TILE
    return sum(TILE * (n - TILE * b) for b in range(full)) + (n - TILE * full) ** 2


def _diagonal_size(n: int) -> int:
    full = (n - 1) // TILE
    return full * TILE * TILE + (n - TILE * full) ** 2


def factor_of(correlations: F16, n: int, damping: float, run: Run = _one_after_another) -> Factor:
    """Factor correlations; the same bits on every machine, in whatever order tasks run.

    correlations: float16 [n (n - 1) / 2], as importance/moments.py packs them
    n:            a multiple of 16
    damping:      added to the ones of the diagonal; with 0, pivots are at least 1e-6

    Raises EncodeError for correlations that no inputs can have.
    """
    isa = isa_in_use()
    upper = np.empty(_upper_size(n), np.float32)
    diagonal, schur = (np.empty(_diagonal_size(n), np.float32) for _ in range(2))
    n_blocks = -(-n // TILE)
    run(
        lambda b=b: _core.place_correlations(isa, n, correlations, damping, b, upper, diagonal)
        for b in range(n_blocks)
    )
    for b in reversed(range(n_blocks)):
        _core.factor_tiles(isa, n, upper, damping, b, b, b + 1)
        run(
            lambda a=a, b=b: _core.factor_tiles(isa, n, upper, damping, b, a, a + 1)
            for a in range(b)
        )
    run(lambda b=b: _core.place_schur(isa, n, upper, b, schur) for b in range(n_blocks))
    if not (upper.max() <= MOST and upper.min() >= -MOST):
        raise EncodeError(
            f"no inputs can have these correlations, or damping {damping:g} is too little for their"
            " rounding; use more damping"
        )
    return Factor(n, damping, upper, diagonal, schur)


@dataclass(frozen=True, eq=False)
class Feedback:
    """What a matrix is encoded with instead of its importance alone.

    factor:     of the correlations of its inputs
    importance: float32 [n], the mean squares of its input channels, finite and >= 0
    sweeps:     times that all codes are chosen again
    """

    factor: Factor
    importance: F32
    sweeps: int

    @cached_property
    def scale(self) -> F32:
        """The roots of the importance, float32 [n]."""
        return np.sqrt(self.importance)


def encode_floats_with_feedback(
    rows: U8,
    stored: QuantType,
    qtype: QuantType,
    out: U8,
    feedback: Feedback,
    search: Search,
) -> F64:
    """Encode rows of F32, F16 or BF16 in one call without the GIL; return each row's e H e'.

    rows: uint8, the bytes of whole rows, C order
    out:  uint8, the bytes of the blocks, filled

    Raises NotFiniteError for the first row with a NaN or an infinity, EncodeError if the type's
    block size does not divide a row.
    """
    n = feedback.factor.n
    losses = np.empty(len(out.reshape(-1)) // qtype.row_size(n), np.float64)
    bad_row = _core.encode_with_feedback(
        isa_in_use(),
        type_position(qtype),
        float_position(stored),
        rows,
        n,
        feedback.importance,
        feedback.factor.upper,
        feedback.factor.diagonal,
        feedback.factor.schur,
        feedback.scale,
        EFFORTS.index(search.effort),
        GAINS[search.gain or default_gain(qtype.name)],
        feedback.sweeps,
        out,
        losses,
    )
    if bad_row >= 0:
        raise NotFiniteError(bad_row)
    return losses


def panels_of(sums: F32) -> F32:
    """Lay sums of inputs out for `output_errors`: float32 [n_sums, n] -> [n / 16, n_sums, 16]."""
    n_sums, n = sums.shape
    return np.ascontiguousarray(sums.reshape(n_sums, n // 16, 16).transpose(1, 0, 2))


def output_errors(
    rows: U8, stored: QuantType, n_per_row: int, qtype: QuantType, blocks: U8, panels: F32
) -> F64:
    """Return |e S'|^2 of each row, e the errors of its blocks; the same on every machine.

    rows:   uint8, the bytes of whole rows of F32, F16 or BF16
    blocks: uint8, those of the rows' blocks
    panels: S, of `panels_of`
    """
    errors = np.empty(blocks.size // qtype.row_size(n_per_row), np.float64)
    _core.output_errors(
        isa_in_use(),
        type_position(qtype),
        float_position(stored),
        rows,
        n_per_row,
        blocks,
        panels,
        panels.shape[1],
        errors,
    )
    return errors
