"""A plan as the stages of a conversion see it: every tensor with its rows, files and places.

Built once from a plan. The stages read their facts here, so that none of them searches the plan or
walks through the sources again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dynquant.arrays import F32
from dynquant.checkpoint.remote.remote_file import RemoteFile
from dynquant.conversion.layout import Layout, lay_out
from dynquant.feedback.decided import Decisions, Fed
from dynquant.feedback.factors import Factors
from dynquant.importance.audit import Importance
from dynquant.plan.objective import search_for
from dynquant.plan.plan import Plan
from dynquant.quants.encoder import is_copied, keeps_weights, uses_means
from dynquant.quants.feedback import Feedback
from dynquant.quants.search import Search
from dynquant.quants.table import QuantType
from dynquant.recipe.feedback import FeedbackSetting
from dynquant.stored_files import StoredFile
from dynquant.tensors import Computed, ShardFile, TensorSource, n_rows, parts_of, row_bytes


@dataclass(frozen=True, eq=False)
class TensorWork:
    """One tensor to write.

    number:       its place in the plan
    source:       where its rows come from
    importance:   None where all channels are weighted equally
    source_files: numbers of the files that its rows are read from, in `Work.source_files`
    file:         number of the output file that it is in
    position:     of its first byte in that file
    n_bytes:      of all its blocks
    search:       what the encoder minimises, and how much it searches
    on_grid:      its blocks must reproduce its weights, which lie on the grid of the type
    feedback:     the settings of error feedback; None without it
    """

    number: int
    name: str
    type: QuantType
    shape: tuple[int, ...]
    source: TensorSource = field(repr=False)
    importance: Importance | None = field(repr=False)
    source_files: tuple[int, ...]
    file: int
    position: int
    n_bytes: int
    search: Search
    on_grid: bool = False
    feedback: FeedbackSetting | None = None

    @property
    def n_per_row(self) -> int:
        """Weights in a row."""
        return self.shape[-1]

    @cached_property
    def n_rows(self) -> int:
        """Rows over all dimensions but the last."""
        return n_rows(self.shape)

    @cached_property
    def row_size(self) -> int:
        """Bytes of an encoded row."""
        return self.type.row_size(self.n_per_row)

    @cached_property
    def stored_row_size(self) -> int:
        """Bytes of a row as the source delivers it."""
        return row_bytes(self.source)

    @cached_property
    def decoded_row_size(self) -> int:
        """Bytes of a row as the encoder works on it: F32 for blocks that change their type."""
        stored = self.source.stored
        is_decoded = not (stored.is_float or is_copied(stored, self.type))
        return 4 * self.n_per_row if is_decoded else self.stored_row_size

    @property
    def rows_of_matrix(self) -> int:
        """Rows that share one importance: of each expert, or all."""
        return self.n_rows // self.importance.n_matrices if self.importance else self.n_rows

    @property
    def keeps_weights(self) -> bool:
        """Whether its weights stay the same numbers, so that nothing is lost."""
        return keeps_weights(self.source.stored, self.type)

    def importance_of(self, matrix: int) -> F32 | None:
        """Return float32 [n_per_row], the importance for one matrix's rows, or None."""
        return self.importance.of(matrix) if self.importance else None

    def mean_of(self, matrix: int) -> F32 | None:
        """Return float32 [n_per_row], the means of one matrix's inputs; None without them."""
        if self.importance is None or not uses_means(self.type):
            return None
        return self.importance.mean(matrix)

    @cached_property
    def fed(self) -> Fed | None:
        """The tensor as error feedback sees it; None without it."""
        if self.feedback is None or self.importance is None:
            return None
        return Fed(
            self.name,
            self.source,
            self.type,
            self.importance,
            self.search,
            self.feedback,
            self.rows_of_matrix,
        )


@dataclass(frozen=True, eq=False)
class SourceFile:
    """A file that rows are read from.

    readers: the objects that read it
    last:    number of the last tensor that reads it
    """

    readers: tuple[ShardFile, ...]
    last: int

    @property
    def path(self) -> Path:
        """Its place on this machine, or the one that it would have."""
        return self.stored.path

    @property
    def stored(self) -> StoredFile:
        """Where its bytes are."""
        return self.readers[0].file

    @property
    def is_copied(self) -> bool:
        """Whether it is elsewhere, and copied to this machine for as long as it is needed."""
        return isinstance(self.stored, RemoteFile) and self.stored.is_copied


@dataclass(frozen=True, eq=False)
class Work:
    """All tensors of a plan in the order of the files, and the files that they are read from.

    source_files: each once, in the order of first use
    computed:     the weights that no file holds, in the order of the plan's sources
    decisions:    where error feedback is used; None without second moments
    """

    layout: Layout
    tensors: tuple[TensorWork, ...]
    source_files: tuple[SourceFile, ...]
    computed: tuple[Computed, ...]
    decisions: Decisions | None = None

    def feedback_of(self, tensor: TensorWork, matrix: int) -> Feedback | None:
        """Return the error feedback of a matrix; None if it is encoded without.

        Raises ImportanceError if the moments or the imatrix changed since they were read, and what
        reading and encoding rows raise.
        """
        if tensor.fed is None or self.decisions is None:
            return None
        return self.decisions.of(tensor.fed, matrix)

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(t.n_bytes for t in self.tensors)

    @cached_property
    def n_weights(self) -> int:
        """Weights of all tensors."""
        return sum(t.n_rows * t.n_per_row for t in self.tensors)


def work_of(plan: Plan, factors: Factors | None = None) -> Work:
    """Lay out a plan's files and return the work of writing them.

    factors: of the plan's moments, if several outputs share them
    """
    layout = lay_out(plan)
    numbers: dict[Path, int] = {}
    readers: list[dict[ShardFile, None]] = []
    last: list[int] = []
    tensors: list[TensorWork] = []
    for number, t in enumerate(plan.tensors):
        source = plan.sources[t.name].source
        read: dict[int, None] = {}
        for reader in parts_of(source, ShardFile):
            file = numbers.setdefault(reader.path, len(numbers))
            if file == len(readers):
                readers.append({})
                last.append(number)
            readers[file][reader] = None
            last[file] = number
            read[file] = None
        tensors.append(
            TensorWork(
                number,
                t.name,
                t.type,
                t.shape,
                source,
                plan.importance.get(t.name),
                tuple(read),
                t.shard,
                layout.files[t.shard].position(t),
                t.n_bytes,
                search_for(t.name, plan.effort),
                t.on_grid,
                plan.feedback.get(t.name),
            )
        )
    files = (SourceFile(tuple(r), n) for r, n in zip(readers, last, strict=True))
    computed = (part for t in plan.sources.values() for part in parts_of(t.source, Computed))
    decisions = Decisions(plan.moments, factors) if plan.moments else None
    return Work(layout, tuple(tensors), tuple(files), tuple(computed), decisions)
