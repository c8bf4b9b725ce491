"""The time left of a conversion, by its work: types differ in speed more than in bytes."""

from __future__ import annotations

from collections import Counter, defaultdict

from dynquant.conversion.scope import Scope
from dynquant.quants.table import KEPT

_NS = {
    1: "F32 F16 BF16",
    4: "Q8_0 Q4_0 Q5_0 Q2_0 Q1_0 NVFP4 MXFP4 TQ1_0 TQ2_0",
    6: "Q6_K Q3_K",
    12: "Q5_1 Q4_1 Q5_K Q4_K Q2_K",
    16: "IQ4_NL IQ4_XS",
    32: "IQ2_XXS IQ2_S IQ1_S IQ1_M",
    64: "IQ3_S IQ3_XXS IQ2_XS",
}
EXPECTED = {
    **dict.fromkeys(KEPT, 1e-9),  # copied, as floats are
    **{name: ns * 1e-9 for ns, names in _NS.items() for name in names.split()},
}
"""Seconds of one thread per weight on a server, to compare types; from docs/reference/types.md."""

PER_CHANNEL = 1.5
"""Multiply-adds for a weight that error feedback takes, for each channel of its row."""


class Estimate:
    """Counts the weights that are left of each type, and the seconds that weights took so far.

    A type that was not encoded yet is expected to be slower or faster than the others as on the
    server of the table above.
    """

    def __init__(self, *scopes: Scope) -> None:
        self._left: Counter[str] = Counter()
        for tensor, rows in (each for scope in scopes for each in scope.tensors):
            self._left[tensor.type.name] += len(rows) * tensor.n_per_row
        self._weights: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def skip(self, type_name: str, n_weights: int) -> None:
        """Count weights that an earlier run wrote."""
        self._left[type_name] -= n_weights

    def count(self, type_name: str, n_weights: int, seconds: float) -> None:
        """Count weights that took a thread so many seconds, waits included."""
        self._left[type_name] -= n_weights
        self._weights[type_name] += n_weights
        self._seconds[type_name] += seconds

    def seconds_left(self, n_threads: int) -> float | None:
        """Return the seconds until the rest is written; None before the first weights are."""
        expected = sum(n * EXPECTED[name] for name, n in self._weights.items())
        if not expected:
            return None
        slower = sum(self._seconds.values()) / expected
        left = 0.0
        for name, n in self._left.items():
            done = self._weights[name]
            left += n * (self._seconds[name] / done if done else EXPECTED[name] * slower)
        return left / n_threads
