"""How far decoded weights are from the original ones: sums, and the figures that they give."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class TensorError:
    """What a tensor lost; x is an original weight, y the decoded one, w its importance or one.

    weighted:       sum w (x - y)^2 / sum w x^2
    one_minus_cos2: 1 - (sum w x y)^2 / (sum w x^2 sum w y^2): what of `weighted` the best single
                    factor on all y would leave
    max:            the largest |x - y|, in the units of the weights

    All are zero for a tensor of zeros.
    """

    weighted: float
    one_minus_cos2: float
    max: float


class ErrorSums(NamedTuple):
    """The sums behind a `TensorError`, of a whole tensor or of some of its rows.

    difference: sum w (x - y)^2;  original: sum w x^2;  product: sum w x y;  decoded: sum w y^2
    largest:    the largest |x - y|
    """

    difference: float = 0.0
    original: float = 0.0
    product: float = 0.0
    decoded: float = 0.0
    largest: float = 0.0

    def joined(self, other: ErrorSums) -> ErrorSums:
        """Return the sums of these rows and of others.

        To the last bit they depend on the order in which rows are joined.
        """
        return ErrorSums(
            self.difference + other.difference,
            self.original + other.original,
            self.product + other.product,
            self.decoded + other.decoded,
            max(self.largest, other.largest),
        )

    def figures(self) -> TensorError:
        """Return the figures of the rows."""
        if not self.original:
            return TensorError(0.0, 0.0, self.largest)
        weighted = self.difference / self.original
        if self.decoded <= 0:
            return TensorError(weighted, 1.0, self.largest)
        # 1 - c^2 / (b e) as (a b - (b - c)^2) / (b e), which is the same and has no difference of
        # two numbers near one: a is exact where c and e have lost it.
        shorter = (self.original - self.product) / self.original
        angle = (weighted - shorter * shorter) * (self.original / self.decoded)
        return TensorError(weighted, min(max(angle, 0.0), 1.0), self.largest)


NO_ERROR = ErrorSums()
"""The sums of rows that nothing was measured of, and of none."""
