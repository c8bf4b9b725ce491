"""A ladder writes the bytes of separate conversions, which are the oracle, and reads rows once."""

from __future__ import annotations

import errno
import os
import random
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from crashes import CALLS, QUICK, at_call, contents, dies, fails
from handmade import computed_tensor, model, recipe, small_tensors, stored_tensor, weights
from imatrices import write_counted
from second_moments import input_of, write_importance, write_moments
from weighted import DOWN, EXPERTS, spread

from dynquant.arch.base import Model, ModelTensor
from dynquant.arrays import U8
from dynquant.conversion.ladder import outputs
from dynquant.conversion.ladder.run import convert_ladder
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError
from dynquant.feedback import factors
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.importance.moments import read_moments
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan
from dynquant.plan.shards import Split
from dynquant.quants import ALL, QuantType
from dynquant.quants.encoder import CORE, Batch, Encoded
from dynquant.quants.feedback import factor_of
from dynquant.tensors import TensorSource

RECIPES = {
    "q8": ("Q8_0", ""),
    "q4": ("Q4_K", "rules: [{role: token_embd, type: F16}]"),
    "q6": ("Q6_K", "rules: [{role: ffn_down, type: Q8_0}]"),
    "f16": ("F16", ""),
    "mixed": ("Q4_0", "effort: best\nrules: [{role: ffn_up_exps, type: IQ4_NL}]"),
}
KILLS = 6

Ladder = list[tuple[str, Plan]]


def imatrix(folder: Path) -> Imatrix:
    entries = {DOWN: (spread(1, 512), [1]), EXPERTS: (spread(3, 256, seed=1), [1, 2, 3])}
    return read_imatrix(write_counted(folder / "i.gguf", entries))


def plans_of(whole: Model, means: Imatrix | None = None) -> Ladder:
    """Return a plan of each recipe; one in shards."""
    return [
        (
            name,
            make_plan(
                whole,
                recipe(*given),
                imatrix=means,
                split=Split(max_tensors=2) if name == "q6" else None,
            ),
        )
        for name, given in RECIPES.items()
    ]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    return plans_of(model(), imatrix(tmp_path_factory.mktemp("imatrix")))


def placed(ladder: Ladder, folder: Path) -> list[tuple[Plan, Path]]:
    return [(plan, folder / f"{name}.gguf") for name, plan in ladder]


def separate(ladder: Ladder, folder: Path, **options: Any) -> dict[str, bytes]:
    """Return the files of undisturbed conversions."""
    folder.mkdir()
    for plan, out in placed(ladder, folder):
        convert_plan(plan, out, **(QUICK | options))
    return contents(folder)


@pytest.fixture(scope="module")
def expected(ladder: Ladder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return separate(ladder, tmp_path_factory.mktemp("separate") / "out", manifest="read")


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not sync: data that a killed process wrote is in the page cache anyway."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@dataclass(frozen=True)
class Watched:
    """A source that counts how often its rows are read."""

    source: TensorSource
    reads: Counter[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    @property
    def stored(self) -> QuantType:
        return self.source.stored

    def read(self, start: int, stop: int, into: U8) -> None:
        self.reads.update(range(start, stop))
        self.source.read(start, stop, into)


class Watching:
    """An encoder that counts the rows of each type."""

    preferred_bytes = 4096

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()

    def encode(self, batch: Batch, *, measure: bool = True) -> Encoded:
        self.rows[batch.type.name] += batch.n_rows
        return CORE.encode(batch, measure=measure)


@pytest.mark.parametrize(("threads", "chunk_bytes"), [(1, 3000), (3, 8192), (2, 1 << 30)])
def test_files_and_manifests_are_those_of_separate_conversions(
    ladder: Ladder, expected: dict[str, bytes], tmp_path: Path, threads: int, chunk_bytes: int
) -> None:
    results = convert_ladder(
        placed(ladder, tmp_path), threads=threads, chunk_bytes=chunk_bytes, manifest="read"
    )
    assert contents(tmp_path) == expected
    assert [r.path.name.partition(".")[0] for r in results] == [
        "q8", "q4", "q6-00001-of-00003", "f16", "mixed",
    ]  # fmt: skip


def test_each_row_is_read_once(tmp_path: Path) -> None:
    reads = {t.name: Counter[int]() for t in small_tensors()}
    watched = [ModelTensor(t.name, Watched(t.source, reads[t.name])) for t in small_tensors()]
    convert_ladder(
        placed(plans_of(model(*watched)), tmp_path), threads=2, chunk_bytes=5000, verify_sample=0
    )
    for tensor in small_tensors():
        assert reads[tensor.name] == Counter(range(tensor.n_rows)), tensor.name


def test_rows_of_equal_types_are_encoded_once(tmp_path: Path) -> None:
    whole = model()
    plans = [("a", "rules: [{role: ffn_down, type: Q4_0}]"), ("b", "")]
    ladder = [(name, make_plan(whole, recipe("Q8_0", more))) for name, more in plans]
    encoder = Watching()
    convert_ladder(placed(ladder, tmp_path), threads=2, encoder=encoder, verify_sample=0)
    # Two norms of one row, an embedding of 37 and three experts of 41; twice 67 rows of ffn_down.
    assert encoder.rows == {"F32": 2, "Q8_0": 37 + 3 * 41 + 2 * 67, "Q4_0": 2 * 67}


def test_other_importance_or_effort_is_encoded_separately(tmp_path: Path) -> None:
    whole, means = model(), imatrix(tmp_path)
    ladder = [
        ("plain", make_plan(whole, recipe("Q4_0"))),
        ("weighted", make_plan(whole, recipe("Q4_0"), imatrix=means)),
        ("best", make_plan(whole, recipe("Q4_0", "effort: best"), imatrix=means)),
    ]
    out, oracle = tmp_path / "out", tmp_path / "oracle"
    out.mkdir()
    convert_ladder(placed(ladder, out), threads=2, chunk_bytes=4096)
    assert contents(out) == separate(ladder, oracle)
    assert len({path.read_bytes() for path in out.iterdir()}) == 3


def test_quantized_sources_are_decoded_once_for_all_types(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynquant.conversion.ladder import route
    from dynquant.quants.codec import decode

    @dataclass(frozen=True)
    class Blocks:
        blocks: U8
        stored: QuantType
        shape: tuple[int, ...]

        def read(self, start: int, stop: int, into: U8) -> None:
            into[:] = self.blocks[start:stop].reshape(-1)

    from dynquant.quants import encode

    source = Blocks(encode(weights(64, 256), "Q6_K"), ALL["Q6_K"], (64, 256))
    whole = model(ModelTensor("blk.0.ffn_up.weight", source))
    ladder = [
        (name, make_plan(whole, recipe(name), allow_requantize=True))
        for name in ("Q4_K", "Q5_K", "Q6_K", "Q8_0")
    ]
    expected = separate(ladder, tmp_path / "oracle")
    decoded: list[int] = []

    class Codec:
        @staticmethod
        def decode(rows: U8, *given: Any) -> Any:
            decoded.append(len(rows))
            return decode(rows, *given)

    monkeypatch.setattr(route, "codec", Codec)
    out = tmp_path / "out"
    out.mkdir()
    convert_ladder(placed(ladder, out), threads=1, chunk_bytes=1 << 20, verify_sample=0)
    assert contents(out) == expected
    assert decoded == [64]


def test_error_feedback_gives_the_bytes_of_separate_conversions_by_shared_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = (
        computed_tensor("token_embd.weight", 37, 256, seed=1),
        computed_tensor(DOWN, 150, 512, seed=2),
        computed_tensor(EXPERTS, 3, 67, 256, seed=3),
    )
    matrices = tensors[1:]
    given = {
        "imatrix": read_imatrix(write_importance(tmp_path / "i.gguf", *matrices)),
        "moments": read_moments(
            write_moments(
                tmp_path / "m.moments.safetensors", *(input_of(t, n_moments=1) for t in matrices)
            )
        ),
    }
    whole = model(*tensors)
    ladder = [
        ("fed", make_plan(whole, recipe("IQ2_XXS", "feedback: auto"), **given)),
        ("other", make_plan(whole, recipe("Q4_K", "feedback: auto"), **given)),
        ("plain", make_plan(whole, recipe("Q8_0"), **given)),
    ]
    assert ladder[0][1].feedback
    made: list[int] = []

    def counted(*given: Any) -> Any:
        made.append(1)
        return factor_of(*given)

    monkeypatch.setattr(factors, "factor_of", counted)
    out = tmp_path / "out"
    out.mkdir()
    convert_ladder(
        placed(ladder, out), threads=2, chunk_bytes=9000, manifest="auto", verify_sample=0
    )
    assert len(made) == len(matrices)
    assert contents(out) == separate(ladder, tmp_path / "oracle", manifest="auto")


def test_hashes_of_source_files_are_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dynquant.conversion import source_hashes

    tensors = [
        stored_tensor(tmp_path / f"{n}.safetensors", f"blk.{n}.ffn_up.weight", weights(64, 256))
        for n in range(3)
    ]
    whole = model(*tensors)
    ladder = [(name, make_plan(whole, recipe(name))) for name in ("Q8_0", "Q4_0", "Q6_K")]
    expected = separate(ladder, tmp_path / "oracle", manifest="read")
    begun: list[Path] = []

    class Hashing(source_hashes._Hashing):  # pyright: ignore[reportPrivateUsage]
        def __init__(self, file: Any, kind: Any) -> None:
            begun.append(file.stored.path)
            super().__init__(file, kind)

    monkeypatch.setattr(source_hashes, "_Hashing", Hashing)
    out = tmp_path / "out"
    out.mkdir()
    convert_ladder(placed(ladder, out), threads=2, manifest="read")
    assert contents(out) == expected
    assert len(begun) == 3


# ---- refused before anything is written ----


def test_all_problems_of_all_files_are_reported_before_any_is_written(
    ladder: Ladder, tmp_path: Path
) -> None:
    (tmp_path / "q8.gguf").write_bytes(b"mine")
    (tmp_path / "f16.gguf").mkdir()
    with pytest.raises(ConvertError) as e:
        convert_ladder(placed(ladder, tmp_path))
    assert [m.partition(":")[0] for m in e.value.messages] == [
        str(tmp_path / "q8.gguf"),
        str(tmp_path / "f16.gguf"),
    ]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f16.gguf", "q8.gguf"]


def test_two_files_of_one_name_are_refused(ladder: Ladder, tmp_path: Path) -> None:
    (_, one), (_, other), *_ = ladder
    with pytest.raises(ConvertError, match=r"two outputs, .* would be written there"):
        convert_ladder([(one, tmp_path / "x.gguf"), (other, tmp_path / "x.gguf")])
    assert not contents(tmp_path)


def test_room_for_all_files_together_is_required(
    ladder: Ladder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest = max(plan.data_bytes for _, plan in ladder)
    monkeypatch.setattr(outputs, "free_bytes", lambda _: 2 * largest)
    with pytest.raises(ConvertError, match=r"needs .* bytes, but the disk has"):
        convert_ladder(placed(ladder, tmp_path))
    assert not contents(tmp_path)


def test_a_journal_of_another_conversion_is_refused(ladder: Ladder, tmp_path: Path) -> None:
    whole = placed(ladder, tmp_path)
    other = make_plan(model(), recipe("Q5_0"))
    with at_call(("pwrite",), 9, fails(errno.EIO)), pytest.raises(ConvertError):
        convert_plan(other, whole[-1][1], **QUICK)
    before = contents(tmp_path)
    with pytest.raises(ConvertError, match=r"mixed\.gguf\.journal: recipe was"):
        convert_ladder(whole)
    assert contents(tmp_path) == before


def test_different_orders_of_tensors_are_refused(tmp_path: Path) -> None:
    whole = model()
    plans = [
        (make_plan(whole, recipe("Q8_0", f"output: {{tensor_order: {order}}}")), tmp_path / order)
        for order in ("model", "layer")
    ]
    with pytest.raises(ConvertError, match="tensors in different orders"):
        convert_ladder(plans)
    assert not contents(tmp_path)


def test_a_disk_that_fills_at_the_start_leaves_nothing(ladder: Ladder, tmp_path: Path) -> None:
    with at_call(("fallocate",), 3, fails(errno.ENOSPC)), pytest.raises(ConvertError):
        convert_ladder(placed(ladder, tmp_path))
    assert not contents(tmp_path)


# ---- interrupted ----


def test_an_interrupted_ladder_resumes(
    ladder: Ladder, expected: dict[str, bytes], tmp_path: Path
) -> None:
    whole = placed(ladder, tmp_path)
    with at_call(("pwrite",), 60, fails(errno.EIO)), pytest.raises(ConvertError):
        convert_ladder(whole, manifest="read", **QUICK)
    assert not any(out.exists() for _, out in whole)
    results = convert_ladder(whole, manifest="read", **QUICK)
    assert contents(tmp_path) == expected
    assert sum(r.resumed_bytes for r in results) > 0


def test_a_file_of_an_interrupted_ladder_is_completed_by_a_conversion(
    ladder: Ladder, expected: dict[str, bytes], tmp_path: Path
) -> None:
    whole = placed(ladder, tmp_path)
    with at_call(("pwrite",), 90, fails(errno.EIO)), pytest.raises(ConvertError):
        convert_ladder(whole, manifest="read", **QUICK)
    for plan, out in whole:
        convert_plan(plan, out, manifest="read", **QUICK)
    assert contents(tmp_path) == expected


def test_interrupted_conversions_are_completed_by_a_ladder(
    ladder: Ladder, expected: dict[str, bytes], tmp_path: Path
) -> None:
    whole = placed(ladder, tmp_path)
    for number, (plan, out) in enumerate(whole[1:4]):
        options = {**QUICK, "chunk_bytes": 3000 * (number + 1)}
        with at_call(("pwrite",), 17, fails(errno.EIO)), pytest.raises(ConvertError):
            convert_plan(plan, out, manifest="read", **options)
    results = convert_ladder(whole, manifest="read", **QUICK)
    assert contents(tmp_path) == expected
    assert [bool(r.resumed_bytes) for r in results] == [False, True, True, True, False]


def test_a_complete_ladder_is_kept(
    ladder: Ladder, expected: dict[str, bytes], tmp_path: Path
) -> None:
    whole, encoder = placed(ladder, tmp_path), Watching()
    first = convert_ladder(whole, manifest="read", **QUICK)
    again = convert_ladder(whole, manifest="read", encoder=encoder, **QUICK)
    assert contents(tmp_path) == expected
    assert not encoder.rows
    for one, other in zip(first, again, strict=True):
        assert (one.sha256, one.xxh64, one.paths) == (other.sha256, other.xxh64, other.paths)
        assert one.errors.keys() == other.errors.keys()
        assert other.resumed_bytes == other.plan.tensor_bytes


def test_complete_files_are_kept_and_others_added(
    ladder: Ladder, expected: dict[str, bytes], tmp_path: Path
) -> None:
    whole, encoder = placed(ladder, tmp_path), Watching()
    convert_ladder(whole[:2], manifest="read", **QUICK)
    before = whole[0][1].stat().st_ino
    convert_ladder(whole, manifest="read", encoder=encoder, threads=2, verify_sample=0)
    assert contents(tmp_path) == expected
    assert whole[0][1].stat().st_ino == before
    assert encoder.rows


@pytest.mark.parametrize("damage", ["header", "tensor", "manifest", "other model"])
def test_a_file_with_other_bytes_is_not_kept(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"

    def plans(seed: int) -> list[tuple[Plan, Path]]:
        tensor = stored_tensor(path, "blk.0.ffn_up.weight", weights(64, 256, seed=seed))
        return [(make_plan(model(tensor), recipe("Q8_0")), tmp_path / "x.gguf")]

    whole = plans(1)
    convert_ladder(whole, manifest="read", **QUICK)
    convert_ladder(whole, manifest="read", **QUICK)
    out = whole[0][1]
    if damage == "other model":
        whole = plans(2)
    elif damage == "manifest":
        (tmp_path / "x.gguf.manifest.json").write_text("{}")
    else:
        with out.open("r+b") as file:
            file.seek(-40, os.SEEK_END) if damage == "tensor" else file.seek(200)
            file.write(b"\x7e")
    with pytest.raises(ConvertError, match="exists; replace it with --force"):
        convert_ladder(whole, manifest="read", **QUICK)
    convert_ladder(whole, manifest="read", force=True, **QUICK)
    oracle = tmp_path / "oracle.gguf"
    convert_plan(whole[0][0], oracle, **QUICK)
    assert out.read_bytes() == oracle.read_bytes()


@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("before_the_end", range(1, 33))
def test_a_ladder_that_is_killed_while_files_are_renamed_is_completed(
    before_the_end: int, tmp_path: Path
) -> None:
    whole = model()
    ladder = [(name, make_plan(whole, recipe(name))) for name in ("Q8_0", "F16")]
    expected = separate(ladder, tmp_path / "oracle", manifest="read")
    plans = placed(ladder, tmp_path / "count")
    options: dict[str, Any] = {"threads": 1, "sync_seconds": 1e9, "manifest": "read"}
    (tmp_path / "count").mkdir()
    with at_call(CALLS, 0, dies) as counter:
        convert_ladder(plans, **options)
    plans = placed(ladder, tmp_path / "killed")
    (tmp_path / "killed").mkdir()
    pid = os.fork()
    if not pid:
        try:
            with at_call(CALLS, counter.seen - before_the_end, dies):
                convert_ladder(plans, **options)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    convert_ladder(plans, **options)
    assert contents(tmp_path / "killed") == expected


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("seed", range(KILLS))
def test_a_ladder_that_is_killed_at_random_is_completed(
    seed: int, ladder: Ladder, expected: dict[str, bytes], tmp_path: Path
) -> None:
    rng, whole = random.Random(seed), placed(ladder, tmp_path)
    number = rng.randrange(1, 60)
    while True:
        pid = os.fork()
        if not pid:
            try:
                with at_call(CALLS, number, dies):
                    convert_ladder(whole, manifest="read", **QUICK)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            assert os.WEXITSTATUS(status) == 0
            break
        number += rng.randrange(1, 120)
    assert contents(tmp_path) == expected
