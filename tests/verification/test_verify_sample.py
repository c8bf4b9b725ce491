"""The sample of rows that a conversion encodes again before the output gets its name."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from handmade import DOWN, computed_tensor, model, names, recipe, small_plan, weights
from hypothesis import given
from hypothesis import strategies as st
from weighted import weighted_plan

from dynquant.arch.base import ModelTensor
from dynquant.arrays import U8
from dynquant.conversion.output import PartFiles
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError
from dynquant.measure.sample import WEIGHTS, Candidate, draw
from dynquant.plan.make import make_plan
from dynquant.quants import ALL, QuantType
from dynquant.tensors import Computed

CANDIDATES = st.builds(
    lambda kind, n, row, matrices: Candidate(kind, n * matrices, row, n),
    st.sampled_from(["F32", "Q4_K", "Q8_0"]),
    st.integers(1, 10**7),
    st.integers(1, 10**6),
    st.integers(1, 300),
)


@pytest.mark.slow
@given(st.lists(CANDIDATES, min_size=1, max_size=20), st.integers(0, 40), st.binary(max_size=8))
def test_ranges_are_whole_rows_of_one_matrix_and_cover_every_type(
    candidates: list[Candidate], n: int, seed: bytes
) -> None:
    drawn = draw(candidates, n, seed)
    assert len(drawn) == n
    assert drawn == draw(candidates, n, seed)
    for r in drawn:
        of = candidates[r.index]
        assert 0 <= r.start < r.stop <= of.n_rows
        assert r.start // of.rows_of_matrix == (r.stop - 1) // of.rows_of_matrix
        assert (r.stop - r.start) * of.n_per_row <= max(WEIGHTS, of.n_per_row)
    kinds = {c.type_name for c in candidates}
    assert len({candidates[r.index].type_name for r in drawn}) >= min(n, len(kinds))


def test_ranges_differ_by_seed_and_large_tensors_have_more_of_them() -> None:
    candidates = [Candidate("Q8_0", 10_000, 4096, 10_000), Candidate("Q8_0", 10, 4096, 10)]
    drawn = draw(candidates, 50, b"a")
    assert drawn != draw(candidates, 50, b"b")
    assert sum(r.index for r in drawn) < 5
    assert draw([], 8, b"a") == []


@dataclass(frozen=True)
class Changing:
    """A source that returns a different row when it is read a second time."""

    x: np.ndarray
    row: int
    read_before: set[int] = field(default_factory=set)
    stored: QuantType = ALL["F32"]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.x.shape

    def read(self, start: int, stop: int, into: U8) -> None:
        rows = self.x[start:stop].copy()
        if start <= self.row < stop:
            if self.row in self.read_before:
                rows[self.row - start] += 1
            self.read_before.add(self.row)
        into[:] = rows.view(np.uint8).reshape(-1)


def test_row_that_differs_when_read_again_stops_the_conversion(tmp_path: Path) -> None:
    tensor = ModelTensor("b.weight", Changing(weights(60, 96), 17))
    plan = make_plan(model(computed_tensor("a.weight", 50, 96), tensor), recipe())
    with pytest.raises(ConvertError) as e:
        convert_plan(plan, tmp_path / "x.gguf", threads=2, verify_sample=200)
    (message,) = e.value.messages
    assert message.startswith(
        f"{tmp_path / 'x.gguf.part'}: tensor 'b.weight': re-encoding row 17 gave different"
        " bytes (1 of rows "
    )
    assert names(tmp_path) == ["x.gguf.journal", "x.gguf.part"]


def test_sample_of_zero_reads_nothing_again(tmp_path: Path) -> None:
    source = Changing(weights(60, 96), 17)
    plan = make_plan(model(ModelTensor("b.weight", source)), recipe())
    convert_plan(plan, tmp_path / "x.gguf", threads=1, verify_sample=0)
    assert names(tmp_path) == ["x.gguf"]


def test_byte_that_is_written_wrong_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = small_plan()
    whole = PartFiles.write

    def flipping(self: PartFiles, file: int, blocks: memoryview | bytes, position: int) -> None:
        changed = bytearray(blocks)
        if position:  # not the header
            changed[len(changed) // 2] ^= 1
        whole(self, file, bytes(changed), position)

    monkeypatch.setattr(PartFiles, "write", flipping)
    with pytest.raises(ConvertError, match=r"re-encoding row [0-9]+ gave different bytes"):
        convert_plan(plan, tmp_path / "x.gguf", threads=1)
    assert not (tmp_path / "x.gguf").exists()


@dataclass(frozen=True)
class Breaking(Changing):
    """A source whose last weight is infinite when it is read a second time."""

    def read(self, start: int, stop: int, into: U8) -> None:
        super().read(start, stop, into)
        if self.row in self.read_before:
            into.view(np.float32)[-1] = np.inf
        self.read_before.update(range(start, stop))


def test_number_that_became_infinite_is_reported(tmp_path: Path) -> None:
    plan = make_plan(model(ModelTensor("b.weight", Breaking(weights(4, 96), 9))), recipe())
    source = plan.sources["b.weight"].source
    assert isinstance(source, Breaking)
    with pytest.raises(ConvertError, match=r"'b\.weight': row 3 of the model contains a NaN"):
        convert_plan(
            plan,
            tmp_path / "x.gguf",
            threads=1,
            progress=lambda p: source.read_before.add(9) if p.weights_done else None,
        )


def test_experts_are_encoded_again_with_their_importance(tmp_path: Path) -> None:
    plan = weighted_plan(tmp_path)
    assert DOWN in plan.importance
    convert_plan(plan, tmp_path / "x.gguf", threads=1, verify_sample=40)
    assert isinstance(plan.sources[DOWN].source, Computed)
