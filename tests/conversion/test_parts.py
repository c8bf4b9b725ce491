"""Parts of a conversion, on any machines and in any order, make the bytes of one conversion.

The oracle is an undisturbed conversion.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from crashes import CALLS, at_call, contents, dies, fails, made, sharded_plan
from handmade import model, recipe, stored_tensor, weights

from dynquant.conversion.manifest import manifest_path, read_manifest
from dynquant.conversion.parts.join import join_parts
from dynquant.conversion.parts.run import convert_part
from dynquant.conversion.parts.share import Part, owned_files, scope_of, seconds_of
from dynquant.conversion.source_hashes import SourceHashes
from dynquant.conversion.work import work_of
from dynquant.conversion.write import convert_plan
from dynquant.errors import ConvertError
from dynquant.plan.make import make_plan
from dynquant.plan.plan import Plan

QUICK: dict[str, Any] = {"threads": 1, "chunk_bytes": 8192, "sync_seconds": 0.002}
KINDS = {"shared": False, "separate": True}
KILLS = 8


@pytest.fixture(scope="module")
def plan() -> Plan:
    return sharded_plan()


@pytest.fixture(scope="module")
def expected(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return made(plan, tmp_path_factory.mktemp("parts") / "whole")


@pytest.fixture
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not sync: data that a killed process wrote is in the page cache anyway."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_parts_in_any_order_make_the_bytes_of_one_conversion(
    kind: str, count: int, plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    numbers = [*range(1, count + 1)]
    random.Random(count).shuffle(numbers)
    for number in numbers:
        convert_part(plan, out, Part(number, count), separate=KINDS[kind], **QUICK)
        assert not out.exists()
    join_parts(plan, out, threads=1)
    assert contents(tmp_path) == expected


def test_every_row_is_in_one_part_and_parts_cost_about_the_same(plan: Plan) -> None:
    work = work_of(plan)
    scopes = [scope_of(work, Part(n, 5)) for n in range(1, 6)]
    for tensor in work.tensors:
        rows = [s.rows[tensor.number] for s in scopes if tensor.number in s.rows]
        assert [r for part in rows for r in part] == list(range(tensor.n_rows))
    costs = [sum(seconds_of(t) * len(rows) for t, rows in s.tensors) for s in scopes]
    longest = max(seconds_of(t) for t in work.tensors)
    assert max(costs) - min(costs) <= 2 * longest


@pytest.mark.parametrize("how", ["auto", "read"])
def test_each_source_file_is_hashed_by_one_part(tmp_path: Path, how: SourceHashes) -> None:
    tensors = [
        stored_tensor(tmp_path / f"{n}.safetensors", f"blk.{n}.ffn_up.weight", weights(64, 256))
        for n in range(4)
    ]
    plan = make_plan(model(*tensors), recipe("Q4_K"))
    work = work_of(plan)
    owned = [owned_files(scope_of(work, Part(n, 3))) for n in (1, 2, 3)]
    assert sorted(f for files in owned for f in files) == [0, 1, 2, 3]
    convert_plan(plan, tmp_path / "whole.gguf", manifest=how)
    for number in (2, 3, 1):
        convert_part(plan, tmp_path / "x.gguf", Part(number, 3), source_hashes=how)
    join_parts(plan, tmp_path / "x.gguf", manifest=how)
    whole, joined = (
        (tmp_path / f"{name}.gguf.manifest.json").read_text() for name in ("whole", "x")
    )
    assert joined == whole.replace("whole.gguf", "x.gguf")


@pytest.mark.parametrize("how", ["auto", "read"])
def test_hashes_that_parts_computed_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: SourceHashes
) -> None:
    tensor = stored_tensor(tmp_path / "m.safetensors", "blk.0.ffn_up.weight", weights(64, 256))
    plan = make_plan(model(tensor), recipe("Q4_K"))
    convert_part(plan, tmp_path / "x.gguf", Part(1, 1), source_hashes=how)
    from dynquant.conversion import source_hashes

    monkeypatch.setattr(source_hashes, "_Hashing", None)
    assert join_parts(plan, tmp_path / "x.gguf", manifest=how)


def test_a_join_that_wants_sha256_computes_it_if_the_parts_did_not(tmp_path: Path) -> None:
    tensor = stored_tensor(tmp_path / "m.safetensors", "blk.0.ffn_up.weight", weights(64, 256))
    plan = make_plan(model(tensor), recipe("Q4_K"))
    convert_part(plan, tmp_path / "x.gguf", Part(1, 1), source_hashes="auto")
    join_parts(plan, tmp_path / "x.gguf", manifest="read")
    (source,) = read_manifest(manifest_path(tmp_path / "x.gguf")).sources
    content = (tmp_path / "m.safetensors").read_bytes()
    assert (source.sha256, source.blake3) == (hashlib.sha256(content).hexdigest(), None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_that_is_run_again_encodes_nothing(kind: str, plan: Plan, tmp_path: Path) -> None:
    out, part = tmp_path / "x.gguf", Part(2, 3)
    first = convert_part(plan, out, part, separate=KINDS[kind], **QUICK)
    again = convert_part(plan, out, part, separate=KINDS[kind], **QUICK)
    assert (first.resumed_bytes, again.resumed_bytes) == (0, first.n_bytes)


def test_parts_of_several_divisions_complete_each_other(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    convert_part(plan, out, Part(1, 2), **QUICK)
    for number in (3, 4):
        convert_part(plan, out, Part(number, 4), **QUICK)
    join_parts(plan, out, threads=1)
    assert contents(tmp_path) == expected


def test_missing_and_incomplete_parts_are_named_together(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    with pytest.raises(ConvertError, match="has no parts beside it; write them first"):
        join_parts(plan, out)
    convert_part(plan, out, Part(2, 4), **QUICK)
    journal = tmp_path / "x.gguf.3-of-4.journal"
    convert_part(plan, out, Part(3, 4), **QUICK)
    content = journal.read_bytes()
    journal.write_bytes(content[: content.index(b"\n") + 1 + 72])
    with pytest.raises(ConvertError) as e:
        join_parts(plan, out)
    assert [m.partition("; run ")[0] for m in e.value.messages] == [
        f"{out}: part 1/4 is missing",
        e.value.messages[1].partition("; run ")[0],
        f"{out}: part 4/4 is missing",
    ]
    assert "part 3/4 has " in e.value.messages[1]
    for number in (1, 3, 4):
        convert_part(plan, out, Part(number, 4), **QUICK)
    join_parts(plan, out, threads=1)
    assert contents(tmp_path) == expected


def test_a_join_that_finished_may_be_repeated(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    convert_part(plan, out, Part(1, 1), **QUICK)
    assert join_parts(plan, out)
    assert join_parts(plan, out) is None
    with pytest.raises(ConvertError, match="has no parts beside it"):
        join_parts(sharded_plan(default="Q5_0"), out)


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_rows_are_encoded_again(
    kind: str, plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    for number in (1, 2):
        convert_part(plan, out, Part(number, 2), separate=KINDS[kind], **QUICK)
    damaged = max(tmp_path.glob("*.rows" if KINDS[kind] else "*.part"), key=os.path.getsize)
    with damaged.open("r+b") as file:
        file.seek(damaged.stat().st_size // 2)
        file.write(b"\xff" * 99)
    join_parts(plan, out, threads=1)
    assert contents(tmp_path) == expected


def test_a_part_of_another_conversion_is_refused(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "x.gguf"
    convert_part(plan, out, Part(1, 2), separate=True, **QUICK)
    other = sharded_plan(default="Q5_0")
    with pytest.raises(ConvertError, match=r"1-of-2\.journal: recipe was"):
        convert_part(other, out, Part(1, 2), separate=True, **QUICK)
    convert_part(other, out, Part(2, 2), separate=True, **QUICK)
    with pytest.raises(ConvertError, match=r"2-of-2\.journal: recipe was .*start over"):
        join_parts(plan, out)
    assert not out.exists()


def test_a_model_that_was_trained_further_between_parts_is_noticed(tmp_path: Path) -> None:
    def plan_of(seed: int) -> Plan:
        path = tmp_path / "m.safetensors"
        tensor = stored_tensor(path, "blk.0.ffn_up.weight", weights(64, 256, seed=seed))
        return make_plan(model(tensor), recipe("Q4_K"))

    out = tmp_path / "x.gguf"
    convert_part(plan_of(1), out, Part(1, 2), **QUICK)
    other = plan_of(2)
    convert_part(other, out, Part(2, 2), **QUICK)
    with pytest.raises(ConvertError, match=r"1-of-2\.journal: source: m\.safetensors: sample was"):
        join_parts(other, out)


def test_copies_of_a_model_with_other_times_are_the_same(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensor = stored_tensor(path, "blk.0.ffn_up.weight", weights(64, 256))
    plan = make_plan(model(tensor), recipe("Q4_K"))
    out = tmp_path / "x.gguf"
    convert_part(plan, out, Part(1, 2), **QUICK)
    os.utime(path, ns=(1, 1))
    convert_part(plan, out, Part(2, 2), **QUICK)
    assert join_parts(plan, out)
    assert out.exists()


def test_files_of_parts_can_be_collected_from_several_machines(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    together = tmp_path / "together"
    together.mkdir()
    for number in (1, 2, 3):
        machine = tmp_path / f"machine-{number}"
        machine.mkdir()
        convert_part(plan, machine / "x.gguf", Part(number, 3), separate=True, **QUICK)
        for path in machine.iterdir():
            shutil.move(path, together)
    join_parts(plan, together / "x.gguf", threads=1)
    assert contents(together) == expected


def test_a_conversion_of_the_whole_and_parts_exclude_each_other(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    convert_part(plan, out, Part(1, 2), **QUICK)
    with at_call(("pwrite",), 9, fails(errno.EIO)), pytest.raises(ConvertError):
        convert_plan(plan, tmp_path / "y.gguf", **QUICK)
    shutil.copy(tmp_path / "y.gguf.journal", tmp_path / "x.gguf.journal")
    with pytest.raises(ConvertError, match="a conversion of the whole output, or a join"):
        convert_part(plan, out, Part(2, 2), **QUICK)
    for path in (*tmp_path.glob("y*"), tmp_path / "x.gguf.journal"):
        path.unlink()
    convert_part(plan, out, Part(2, 2), **QUICK)
    join_parts(plan, out, threads=1)
    assert contents(tmp_path) == expected


def test_a_part_without_room_leaves_nothing(plan: Plan, tmp_path: Path) -> None:
    full = at_call(("fallocate",), 1, fails(errno.ENOSPC))
    with full, pytest.raises(ConvertError, match="bytes"):
        convert_part(plan, tmp_path / "x.gguf", Part(1, 2), separate=True, **QUICK)
    assert contents(tmp_path) == {}


def test_an_output_that_exists_is_replaced_only_with_force(plan: Plan, tmp_path: Path) -> None:
    out = tmp_path / "x-00001-of-00002.gguf"
    out.write_bytes(b"mine")
    with pytest.raises(ConvertError, match="exists; replace it with --force"):
        convert_part(plan, tmp_path / "x.gguf", Part(1, 2), **QUICK)
    assert contents(tmp_path) == {out.name: b"mine"}


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "1", "a/b", "1/4/", "-1/4", "1/99999"])
def test_text_that_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a part such as 3/16"):
        Part.parse(text)


def test_more_parts_than_rows_are_refused(plan: Plan) -> None:
    work = work_of(plan)
    with pytest.raises(ConvertError, match="too small for 4096 parts"):
        for number in range(1, 4097):
            scope_of(work, Part(number, 4096))


def test_bounds_follow_one_another(plan: Plan) -> None:
    work = work_of(plan)
    for count in range(1, 40):
        scopes = [scope_of(work, Part(n, count)) for n in range(1, count + 1)]
        for one, other in pairwise(scopes):
            assert max(one.rows) <= min(other.rows)


@pytest.mark.slow
@pytest.mark.usefixtures("unsynced")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(KILLS))
def test_parts_and_joins_that_are_killed_at_random_are_completed(
    kind: str, seed: int, plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    rng, out = random.Random(seed), tmp_path / "x.gguf"

    def until_done(step: Any) -> None:
        number = rng.randrange(1, 40)
        while True:

            def dying(at: int = number) -> None:
                with at_call(CALLS, at, dies):
                    step()

            pid = os.fork()
            if not pid:
                try:
                    dying()
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            _, status = os.waitpid(pid, 0)
            if os.WIFEXITED(status):
                assert os.WEXITSTATUS(status) == 0
                return
            number += rng.randrange(1, 60)

    for number in rng.sample([1, 2, 3], 3):
        until_done(
            lambda n=number: convert_part(plan, out, Part(n, 3), separate=KINDS[kind], **QUICK)
        )
    until_done(lambda: join_parts(plan, out, threads=1))
    assert contents(tmp_path) == expected


@pytest.mark.slow
def test_two_processes_may_write_one_part_and_others_at_once(
    plan: Plan, expected: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "x.gguf"
    pids: list[int] = []
    for number in (1, 2, 3, 4):
        pid = os.fork()
        if not pid:
            try:
                convert_part(plan, out, Part(number, 4), **QUICK)
            except BaseException:
                os._exit(1)
            os._exit(0)
        pids.append(pid)
    assert [os.WEXITSTATUS(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    join_parts(plan, out, threads=1)
    assert contents(tmp_path) == expected
