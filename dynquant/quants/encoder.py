"""The door to the encoders: stored rows go in, blocks and their errors come out.

Conversion, verification, sampling and `dynquant.encode` all encode through an `Encoder`. The C core
is the first; another one (for a device, or with error feedback) gives the same bytes or has
another revision number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import F32, U8
from dynquant.errors import EncodeError
from dynquant.quants import codec
from dynquant.quants.error import NO_ERROR, ErrorSums
from dynquant.quants.feedback import Feedback, encode_floats_with_feedback
from dynquant.quants.search import NORMAL, Effort, Gain, Search, Weighting
from dynquant.quants.table import ALL, FLOATS, QuantType, quant_type

ENCODER_REVISION = 5
"""Changes whenever the encoders give other bytes for the same rows: with every *Output:* line of
the changelog that concerns encoders. Two runs of one revision give the same file."""


MEANS_BELOW = 5
"""Bits of a weight below which types use the means of input channels. Measured by KL divergence:
docs/explanation/encoders.md."""


def uses_means(qtype: QuantType) -> bool:
    """Whether blocks of a type depend on the means of input channels, where they are known."""
    return not qtype.is_float and qtype.bpw < MEANS_BELOW


def is_copied(stored: QuantType, qtype: QuantType) -> bool:
    """Whether rows have the wanted type already, so that their bytes are taken unchanged."""
    return stored == qtype


def keeps_weights(stored: QuantType, qtype: QuantType) -> bool:
    """Whether the weights are the same numbers afterwards: copied, or widened to F32."""
    return is_copied(stored, qtype) or qtype == ALL["F32"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole rows of one matrix, as they are stored, and how to encode them.

    rows:       uint8, the bytes of the rows, C order
    stored:     the type of the rows: any that the core encodes or decodes
    type:       the type to encode them as
    importance: float32 [n_per_row], finite and >= 0; None weights all channels equally
    mean:       float32 [n_per_row], finite: the mean of each input channel; None if it is unknown.
                It is used by types of at most MEANS_BELOW bits, if there is an importance, too
    feedback:   of the rows' matrix: types with blocks are then encoded for the error of its
                outputs. It has the importance, too, and does without the mean
    """

    rows: U8
    stored: QuantType
    n_per_row: int
    type: QuantType
    importance: F32 | None = None
    search: Search = NORMAL
    mean: F32 | None = None
    feedback: Feedback | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return self.rows.size // self.stored.row_size(self.n_per_row)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Blocks, uint8 [n_rows, row size], and how far they are from the rows they encode."""

    blocks: U8
    sums: ErrorSums


class Encoder(Protocol):
    """Encodes batches of rows; callable from several threads at once.

    Equal batches give equal bytes, in whatever portions the rows come, on every machine.
    """

    @property
    def preferred_bytes(self) -> int:
        """Stored bytes of a batch that suit it best."""
        ...

    def encode(self, batch: Batch, *, measure: bool = True) -> Encoded:
        """Encode a batch, and measure its errors unless the weights are kept exactly.

        measure: False leaves the sums at zero

        Raises NotFiniteError for the first row with a NaN or an infinity, EncodeError if the
        type's block size does not divide a row.
        """
        ...


class CoreEncoder:
    """The C core. A batch stays in a CPU core's cache from the read to the encoder, and the tens of
    microseconds that Python adds are small beside the milliseconds of the encoder.
    """

    preferred_bytes = 1 << 20

    def encode(self, batch: Batch, *, measure: bool = True) -> Encoded:
        """Encode a batch in one or two calls without the GIL."""
        n_rows = batch.n_rows
        blocks = np.empty((n_rows, batch.type.row_size(batch.n_per_row)), np.uint8)
        if not blocks.size:
            return Encoded(blocks, NO_ERROR)
        if is_copied(batch.stored, batch.type) and batch.stored.name not in FLOATS:
            blocks.reshape(-1)[:] = batch.rows.reshape(-1)
            return Encoded(blocks, NO_ERROR)
        rows, stored = batch.rows, batch.stored
        if stored.name not in FLOATS:
            rows = codec.decode(rows.reshape(n_rows, -1), stored, batch.n_per_row).view(np.uint8)
            stored = ALL["F32"]
        if batch.feedback is not None and not batch.type.is_float:
            encode_floats_with_feedback(
                rows, stored, batch.type, blocks, batch.feedback, batch.search
            )
        else:
            mean = batch.mean if uses_means(batch.type) else None
            codec.encode_floats(
                rows,
                stored,
                batch.n_per_row,
                batch.type,
                blocks,
                batch.importance,
                batch.search,
                mean,
            )
        if not measure or keeps_weights(batch.stored, batch.type):
            return Encoded(blocks, NO_ERROR)
        sums = codec.error_sums(
            batch.rows, batch.stored, batch.n_per_row, batch.type, blocks, batch.importance
        )
        return Encoded(blocks, sums)


CORE: Encoder = CoreEncoder()
"""The encoder of every command."""


def encode(
    x: Any,
    qtype: QuantType | str,
    importance: Any = None,
    *,
    mean: Any = None,
    effort: Effort = "normal",
    weighting: Weighting | None = None,
    gain: Gain | None = None,
) -> U8:
    """Encode rows of weights as blocks of one quant type.

    x:          floats [n_rows, n_per_row], finite: an array of any float type (float16, float32,
                float64, bfloat16 of ml_dtypes), a torch tensor on the CPU, or lists of numbers
    importance: [n_per_row], finite and >= 0, the mean squared activation of each input channel;
                None weights all channels equally. The encoder minimises the sum over all weights
                of importance * (x - decoded x)^2
    mean:       [n_per_row], finite, the mean of each input channel, with an importance. Types of
                less than five bits then also keep the bias of each row small, the sum of
                mean * (x - decoded x)
    effort, weighting, gain: see quants/search.py; None takes the default
    returns:    uint8 [n_rows, qtype.row_size(n_per_row)]

    Raises EncodeError if n_per_row is not a multiple of the type's block size, for shapes that do
    not fit together, and (NotFiniteError) for weights that are not finite.
    Block layouts: ggml-common.h in llama.cpp.
    """
    qtype = quant_type(qtype) if isinstance(qtype, str) else qtype
    rows = _float32(x, "weights", "[n_rows, n_per_row]")
    if rows.ndim != 2:
        raise EncodeError(f"weights must be floats [n_rows, n_per_row], not {_described(x)}")
    n_per_row = rows.shape[1]
    if not n_per_row:
        raise EncodeError("weights have rows of no weights; there is nothing to encode")
    if importance is not None:
        importance = _checked(importance, "importance", n_per_row)
        if (importance < 0).any():
            raise EncodeError("importance must be finite and not negative")
    if mean is not None:
        if importance is None:
            raise EncodeError("mean needs an importance; give the mean squares of the channels")
        mean = _checked(mean, "mean", n_per_row)
    search = Search(effort, weighting, gain)
    batch = Batch(rows.view(np.uint8), ALL["F32"], n_per_row, qtype, importance, search, mean)
    return CORE.encode(batch, measure=False).blocks


def _checked(values: Any, name: str, n_per_row: int) -> F32:
    found = _float32(values, name, f"[{n_per_row}]")
    if found.shape != (n_per_row,):
        raise EncodeError(
            f"{name} must be floats [{n_per_row}], one value for each weight of a row,"
            f" not {_described(values)}"
        )
    if not np.isfinite(found).all():
        raise EncodeError(f"{name} must be finite")
    return found


def _float32(x: Any, name: str, shape: str) -> F32:
    """Return numbers as a contiguous float32 array; wider numbers are rounded, none is truncated.

    Raises EncodeError for arrays of anything but floats: integers are more likely codes.
    """
    try:
        found: NDArray[Any] = np.asarray(x)
    except TypeError:
        # numpy has no bfloat16, and torch refuses to hand one over; as float32 it is the same.
        if not callable(widen := getattr(x, "float", None)):
            raise
        found = np.asarray(widen())
    except ValueError as e:  # lists of different lengths
        raise EncodeError(f"{name} must be floats {shape}: {e}") from e
    is_list = isinstance(x, Sequence)
    is_float = found.dtype.kind == "f" or found.dtype.name == "bfloat16"
    if not (is_float or (is_list and found.dtype.kind in "iu")):
        raise EncodeError(f"{name} must be floats {shape}, not {_described(found)}")
    return np.ascontiguousarray(found, np.float32)


def _described(x: Any) -> str:
    array: NDArray[Any] = np.asarray(x)
    return f"{array.dtype} {list(array.shape)}"
