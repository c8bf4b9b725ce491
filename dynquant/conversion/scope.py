"""The rows of a conversion that one run writes: all, or those of a part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from dynquant.conversion.work import TensorWork, Work


@dataclass(frozen=True, eq=False)
class Scope:
    """Ranges of rows, one for each tensor that has any.

    rows: by the number of the tensor
    """

    work: Work
    rows: Mapping[int, range]

    @classmethod
    def whole(cls, work: Work) -> Scope:
        """Return all rows."""
        return cls(work, {t.number: range(t.n_rows) for t in work.tensors})

    @property
    def tensors(self) -> list[tuple[TensorWork, range]]:
        """The tensors with rows, in the order of the files."""
        return [(t, self.rows[t.number]) for t in self.work.tensors if t.number in self.rows]

    @cached_property
    def n_bytes(self) -> int:
        """Bytes of the blocks of all rows."""
        return sum(t.row_size * len(rows) for t, rows in self.tensors)

    @cached_property
    def n_weights(self) -> int:
        """Weights of all rows."""
        return sum(t.n_per_row * len(rows) for t, rows in self.tensors)
