"""Stores: every piece survives a crash, and any other file is one clear EvalError."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from crashes import dies, killed
from evaluating import header_of

from dynquant.errors import EvalError
from dynquant.evaluate.store import Store, identity, is_store
from dynquant.evaluate.texts import Windows

HEADER: dict[str, Any] = {"reference": 1, "model": {"name": "x"}}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "x.store"


def test_pieces_and_header_are_read_back(path: Path) -> None:
    with Store.create(path, HEADER) as store:
        store.put("a", 3, b"three")
        store.put("a", 1, b"")
        store.put("b", 3, bytes(range(256)))
    with Store.open(path) as store:
        assert store.header == HEADER
        assert store.numbers("a") == {1, 3}
        assert [store.get("a", 3), store.get("a", 1)] == [b"three", b""]
        assert store.get("b", 3) == bytes(range(256))
        assert store.get("a", 2) is store.get("c", 3) is None


def test_a_piece_is_replaced(path: Path) -> None:
    with Store.create(path, HEADER) as store:
        store.put("a", 0, b"old")
        store.put("a", 0, b"new")
        assert store.get("a", 0) == b"new"


def test_hash_is_of_the_pieces_of_a_series_in_order(path: Path) -> None:
    with Store.create(path, HEADER) as store:
        for number, content in ((10, b"c"), (2, b"b"), (0, b"a")):
            store.put("a", number, content)
        store.put("b", 1, b"other")
        assert store.sha256("a") == hashlib.sha256(b"abc").hexdigest()


def test_a_store_is_opened_again_with_its_header(path: Path) -> None:
    with Store.create(path, HEADER) as store:
        store.put("a", 0, b"x")
    with Store.create(path, dict(HEADER)) as store:
        assert store.get("a", 0) == b"x"


def test_a_store_of_another_header_is_named(path: Path) -> None:
    Store.create(path, HEADER).__exit__(None, None, None)
    with pytest.raises(EvalError, match=r"x\.store: belongs to another evaluation; remove it$"):
        Store.create(path, HEADER | {"reference": 2})


# ---- faults of the disk ----


def test_a_full_disk_is_named_with_what_to_do(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite3.connect

    def small(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection = real(*arguments, **options)
        connection.execute("PRAGMA max_page_count = 10")
        return connection

    Store.create(path, HEADER).__exit__(None, None, None)
    monkeypatch.setattr(sqlite3, "connect", small)
    with Store.open(path) as store, pytest.raises(EvalError) as e:
        store.put("a", 0, bytes(100_000))
    assert e.value.messages == (
        f"{path}: the disk of {path.parent} is full; free some space, and the same command resumes",
    )


def test_a_complete_store_that_cannot_be_written_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.create(path, HEADER) as store:
        store.put("a", 0, b"x")
    real = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda p, **o: real(f"file:{p}?mode=ro", uri=True, **o))
    with Store.create(path, HEADER) as store:
        assert store.get("a", 0) == b"x"
        with pytest.raises(EvalError, match=r"cannot be written .*; use another folder with"):
            store.put("a", 1, b"y")


# ---- crashes ----


def test_all_reported_pieces_survive_a_kill(path: Path) -> None:
    Store.create(path, HEADER).__exit__(None, None, None)
    reader, writer = os.pipe()

    def step() -> None:
        with Store.open(path) as store:
            for number in range(10_000):
                store.put("a", number, b"%d" % number * 500)
                os.write(writer, b".")

    def when() -> None:
        for _ in range(20):
            os.read(reader, 1)

    assert killed(step, when)
    os.close(writer)
    with os.fdopen(reader, "rb") as rest:
        reported = 20 + len(rest.read())
    with Store.open(path) as store:
        assert store.header == HEADER
        assert store.numbers("a") >= set(range(reported))
        assert all(store.get("a", i) == b"%d" % i * 500 for i in store.numbers("a"))


class _Dying(sqlite3.Connection):
    """A connection that kills the process before its n-th statement."""

    left = 0

    def execute(self, *args: Any) -> sqlite3.Cursor:
        if not _Dying.left:
            dies()
        _Dying.left -= 1
        return super().execute(*args)


@pytest.mark.parametrize("statement", range(9))
def test_a_store_whose_making_was_killed_is_made_again(path: Path, statement: int) -> None:
    real = sqlite3.connect

    def step() -> None:
        _Dying.left = statement
        sqlite3.connect = lambda *a, **k: real(*a, factory=_Dying, **k)  # type: ignore[assignment]
        Store.create(path, HEADER)

    pid = os.fork()
    if not pid:
        try:
            step()
        finally:
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    with Store.create(path, HEADER) as store:
        assert store.header == HEADER
        store.put("a", 0, b"x")


# ---- other files ----


def changed_by(*statements: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        connection = sqlite3.connect(path)
        for statement in statements:
            connection.execute(statement)
        connection.commit()
        connection.close()

    return change


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200:] = os.urandom(len(content) - 200)
    path.write_bytes(content)


ENDLESS = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x FROM c) SELECT"
CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "removed": (Path.unlink, "does not exist"),
    "empty": (lambda p: p.write_bytes(b""), "is a database, but not of dynquant eval"),
    "text": (lambda p: p.write_text("a text\n" * 500), "file is not a database"),
    "truncated": (truncated, "damaged|other tables|malformed"),
    "overwritten": (overwritten, "damaged|other tables|malformed"),
    "another program's": (changed_by("PRAGMA application_id = 7"), "not of dynquant eval"),
    "without a table": (changed_by("DROP TABLE header"), "other tables"),
    "another table": (changed_by("CREATE TABLE more (x)"), "other tables"),
    "a trigger": (
        changed_by("CREATE TRIGGER t AFTER INSERT ON pieces BEGIN DELETE FROM header; END"),
        "other tables",
    ),
    "an endless view": (
        changed_by(
            "DROP TABLE header", f"CREATE VIEW header AS {ENDLESS} 'x' AS content FROM c WHERE x=2"
        ),
        "other tables",
    ),
    "an endless list": (
        changed_by(
            "DROP TABLE pieces",
            f"CREATE VIEW pieces AS {ENDLESS} 'a' AS series, x AS number, x'00' AS content FROM c",
        ),
        "other tables",
    ),
    "no header": (changed_by("DELETE FROM header"), "its header is damaged"),
    "a header of bytes": (changed_by("UPDATE header SET content = x'ff00'"), "header is damaged"),
    "a header that is a list": (changed_by("UPDATE header SET content = '[1]'"), "is damaged"),
    "a header that is no JSON": (changed_by("UPDATE header SET content = '{'"), "is damaged"),
    "a deep header": (
        changed_by(f"UPDATE header SET content = '{'[' * 5000}'"),
        "its header is damaged",
    ),
}


def read_all(path: Path) -> None:
    with Store.open(path) as store:
        _ = store.header
        store.numbers("a")
        store.get("a", 0)


@pytest.mark.parametrize("what", CHANGES)
def test_a_file_that_is_no_store_is_one_error_with_its_path(path: Path, what: str) -> None:
    change, message = CHANGES[what]
    with Store.create(path, HEADER) as store:
        store.put("a", 0, bytes(20_000))
    change(path)
    with pytest.raises(EvalError, match=message) as caught:
        read_all(path)
    (line,) = caught.value.messages
    assert line.startswith(f"{path}: ")
    assert "\n" not in line


def test_another_programs_database_is_not_changed(path: Path) -> None:
    path.parent.mkdir()
    changed_by("CREATE TABLE mine (x)")(path)
    before = path.read_bytes()
    with pytest.raises(EvalError, match="not of dynquant eval"):
        Store.create(path, HEADER)
    assert path.read_bytes() == before


def test_pieces_that_are_not_bytes_are_missing(path: Path) -> None:
    Store.create(path, HEADER).__exit__(None, None, None)
    changed_by(
        "INSERT INTO pieces VALUES ('a', 0, 1000000000000)",
        "INSERT INTO pieces VALUES ('a', 1, 'text')",
        "INSERT INTO pieces VALUES ('a', 'one', x'00')",
    )(path)
    with Store.open(path) as store:
        assert store.get("a", 0) is store.get("a", 1) is None
        assert store.numbers("a") == {0, 1}


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EvalError, match="file: cannot be created: File exists"):
        Store.create(tmp_path / "file" / "x.store", HEADER)


def test_a_pipe_is_no_store(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert not is_store(tmp_path / "pipe")


def test_a_store_is_known_by_its_content(path: Path) -> None:
    Store.create(path, HEADER).__exit__(None, None, None)
    assert is_store(path)
    assert not is_store(path.parent)
    assert not is_store(path.with_name("none"))


# ---- identity ----


def leaves(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all values in a document."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in leaves(v, (*above, k))]
    if isinstance(value, list):
        return [p for i, v in enumerate(value) for p in leaves(v, (*above, i))]
    return [above]


WINDOWS = Windows(np.arange(32, dtype=np.int32).reshape(4, 8), (0, 0, 1, 1))
FIELDS = leaves(header_of(WINDOWS, 50))


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: ".".join(map(str, field)))
def test_identity_changes_with_every_field(field: tuple[Any, ...]) -> None:
    header = header_of(WINDOWS, 50)
    other = json.loads(json.dumps(header))
    place = other
    for key in field[:-1]:
        place = place[key]
    place[field[-1]] = place[field[-1]] * 2 + type(place[field[-1]])("1")
    assert identity(other) != identity(header)


def test_identity_does_not_depend_on_the_order_of_members() -> None:
    header = header_of(WINDOWS, 50)
    assert identity(dict(reversed(header.items()))) == identity(header)
