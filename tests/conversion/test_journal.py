"""A journal returns all complete records and nothing after them; oracle: the recorded list."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynquant.conversion.jobs import Done
from dynquant.conversion.journal import Journal, journal_path
from dynquant.conversion.records import COMPLETE
from dynquant.errors import ConvertError
from dynquant.systems import system

IDENTITY = {"recipe": "abc", "source": {"a": {"bytes": 3}}}

rows = st.integers(0, 2**64 - 1)
sums = st.tuples(*[st.floats(allow_nan=False)] * 5)
records = st.lists(st.builds(Done, st.integers(0, 2**32 - 1), rows, rows, rows, sums), max_size=20)

once = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


def written(out: Path, *additions: list[Done]) -> Path:
    """Write the journal of an output with records that are added one list after the other."""
    journal = Journal(journal_path(out))
    journal.begin(IDENTITY)
    for some in additions:
        journal.add(some)
    journal.close()
    return journal.path


def found(out: Path) -> tuple[object, list[Done]]:
    journal = Journal(journal_path(out))
    try:
        identity, recorded = journal.read()
        return identity, list(recorded)
    finally:
        journal.close()


@pytest.mark.slow
@once
@given(first=records, second=records)
def test_all_added_records_are_read(tmp_path: Path, first: list[Done], second: list[Done]) -> None:
    written(tmp_path / "x", first, second)
    assert found(tmp_path / "x") == (IDENTITY, first + second)


@pytest.mark.slow
@once
@given(recorded=records, share=st.floats(0, 1), tail=st.binary(max_size=200))
def test_complete_records_of_a_torn_journal_are_read(
    tmp_path: Path, recorded: list[Done], share: float, tail: bytes
) -> None:
    path = written(tmp_path / "x", recorded)
    content = path.read_bytes()
    begin = content.index(b"\n") + 1
    cut = begin + int(share * (len(content) - begin))
    path.write_bytes(content[:cut] + tail)
    identity, read = found(tmp_path / "x")
    whole = (cut - begin) // 72
    assert identity == IDENTITY
    assert read[:whole] == recorded[:whole]
    # There are more only if the tail happens to equal the bytes that were cut off.
    assert read == recorded[: len(read)]


@pytest.mark.slow
@once
@given(recorded=records.filter(bool), at=st.floats(0, 0.999), bit=st.integers(0, 7))
def test_records_from_a_flipped_bit_on_are_ignored(
    tmp_path: Path, recorded: list[Done], at: float, bit: int
) -> None:
    path = written(tmp_path / "x", recorded)
    content = bytearray(path.read_bytes())
    begin = content.index(b"\n") + 1
    position = begin + int(at * (len(content) - begin))
    content[position] ^= 1 << bit
    path.write_bytes(content)
    assert found(tmp_path / "x")[1] == recorded[: (position - begin) // 72]


@pytest.mark.slow
@once
@given(head=st.binary(max_size=300))
def test_any_file_is_read_or_refused_and_left_unchanged(tmp_path: Path, head: bytes) -> None:
    path = journal_path(tmp_path / "x")
    path.write_bytes(head)
    try:
        assert found(tmp_path / "x") == (None, [])
    except ConvertError as e:
        assert "is not a journal of a conversion" in str(e)
    assert path.read_bytes() == head


@pytest.mark.parametrize(
    "head",
    [b"", bytes(5000), b'{"dynq', b'{"dynquant journal":1,"rec', b'{"dynquant journal":1}{\n'],
)
def test_new_journal_after_a_crash_counts_as_empty(tmp_path: Path, head: bytes) -> None:
    journal_path(tmp_path / "x").write_bytes(head)
    assert found(tmp_path / "x") == (None, [])


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000])
def test_deeply_nested_identity_is_ignored(tmp_path: Path, deep: bytes) -> None:
    journal_path(tmp_path / "x").write_bytes(b'{"dynquant journal":' + deep + b"\n")
    assert found(tmp_path / "x") == (None, [])


def test_another_format_version_is_a_difference(tmp_path: Path) -> None:
    path = written(tmp_path / "x")
    path.write_bytes(path.read_bytes().replace(b'journal":1', b'journal":2'))
    assert found(tmp_path / "x")[0] == {"dynquant journal": 2, **IDENTITY}


@pytest.mark.slow
def test_journal_of_many_records_is_read_in_pieces(tmp_path: Path) -> None:
    many = [Done(i, i, i + 1, i, (0.0,) * 5) for i in range(40_000)]
    written(tmp_path / "x", [*many, COMPLETE])
    assert found(tmp_path / "x") == (IDENTITY, [*many, COMPLETE])


def test_short_reads_and_short_writes_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, write = system().read_at, system().write_at
    monkeypatch.setattr(system(), "read_at", lambda fd, into, at: read(fd, into[:7], at))
    monkeypatch.setattr(system(), "write_at", lambda fd, content, at: write(fd, content[:5], at))
    recorded = [Done(1, 2, 3, 4, (5.0,) * 5)] * 3
    written(tmp_path / "x", recorded)
    assert found(tmp_path / "x") == (IDENTITY, recorded)


def test_symbolic_link_as_journal_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    journal_path(tmp_path / "x").symlink_to(tmp_path / "mine")
    with pytest.raises(ConvertError, match=r"x\.journal: cannot be created"):
        Journal(journal_path(tmp_path / "x"))


def test_lock_is_held_until_the_journal_is_closed_by_the_file_with_its_name(
    tmp_path: Path,
) -> None:
    first = Journal(journal_path(tmp_path / "x"))
    with pytest.raises(ConvertError, match="another dynquant is writing it"):
        Journal(journal_path(tmp_path / "x"))
    first.remove()
    second = Journal(journal_path(tmp_path / "x"))  # a new file; the old one has no name
    with pytest.raises(ConvertError, match="another dynquant is writing it"):
        Journal(journal_path(tmp_path / "x"))
    second.close()
    first.close()
    Journal(journal_path(tmp_path / "x")).close()
