"""A file of numbered pieces that is complete after every piece: an SQLite database.

Two kinds of files are stores: a reference (its distributions and its generated texts), which can be
published, and the results of the files that were compared with it, which an interrupted evaluation
resumes from. A header says what the pieces belong to.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from dynquant.errors import EvalError
from dynquant.untrusted import open_regular, parse_json

_APPLICATION = 0x64716576
"""The application_id of these databases: "dqev"."""

_MAGIC = b"SQLite format 3\x00"

_TABLES = (
    "CREATE TABLE header (content TEXT NOT NULL)",
    "CREATE TABLE pieces (series TEXT, number INTEGER, content BLOB NOT NULL,"
    " PRIMARY KEY (series, number)) WITHOUT ROWID",
)


def is_store(path: Path) -> bool:
    """Return whether a file is a database."""
    try:
        with open_regular(path) as file:
            return file.read(len(_MAGIC)) == _MAGIC
    except OSError:
        return False


class Store(AbstractContextManager["Store"]):
    """An open store: a header, and pieces that are found by series and number."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def create(cls, path: Path, header: dict[str, Any]) -> Self:
        """Open a store of a header, or make it.

        Raises EvalError if the file has another header, or is no store.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise EvalError(f"{path.parent}: cannot be created: {e.strerror}") from e
        with _opened(path) as connection:
            # A complete store may be in a folder that cannot be written.
            if _kind(connection) == (0, ()):
                _make(connection, header)
            store = cls(path, _checked(connection, path))
            if store.header != header:
                raise EvalError(f"{path}: belongs to another evaluation; remove it")
        return store

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open an existing store, which anybody may have written.

        Raises EvalError if it is no store.
        """
        if not path.is_file():
            raise EvalError(f"{path}: does not exist")
        with _opened(path) as connection:
            return cls(path, _checked(connection, path))

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._connection.close()

    @property
    def header(self) -> dict[str, Any]:
        """Return the header."""
        with _faults(self.path):
            row = self._connection.execute("SELECT content FROM header").fetchone()
        try:
            found = parse_json(row[0])
        except (TypeError, ValueError) as e:
            raise EvalError(f"{self.path}: its header is damaged: {e}") from e
        if not isinstance(found, dict):
            raise EvalError(f"{self.path}: its header is damaged")
        return cast(dict[str, Any], found)

    def put(self, series: str, number: int, content: bytes) -> None:
        """Write a piece; afterwards it survives a crash."""
        with _faults(self.path):
            self._connection.execute(
                "INSERT OR REPLACE INTO pieces VALUES (?, ?, ?)", [series, number, content]
            )

    def get(self, series: str, number: int) -> bytes | None:
        """Return a piece, or None."""
        with _faults(self.path):
            row = self._connection.execute(
                "SELECT content FROM pieces WHERE series = ? AND number = ?"
                " AND typeof(content) = 'blob'",
                [series, number],
            ).fetchone()
        return bytes(row[0]) if row else None

    def numbers(self, series: str) -> set[int]:
        """Return the numbers of the pieces of a series."""
        with _faults(self.path):
            rows = self._connection.execute(
                "SELECT number FROM pieces WHERE series = ? AND typeof(number) = 'integer'",
                [series],
            ).fetchall()
        return {int(number) for (number,) in rows}

    def sha256(self, series: str) -> str:
        """Return the hash of all pieces of a series, in order."""
        digest = hashlib.sha256()
        for number in sorted(self.numbers(series)):
            digest.update(self.get(series, number) or b"")
        return digest.hexdigest()


@contextmanager
def _opened(path: Path) -> Generator[sqlite3.Connection]:
    """Open a database, and close it if the block fails."""
    with _faults(path):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            yield connection
        except BaseException:
            connection.close()
            raise


def _make(connection: sqlite3.Connection, header: dict[str, Any]) -> None:
    """Make the tables in one transaction: a crash leaves an empty database, made again later."""
    connection.execute("BEGIN IMMEDIATE")
    if _kind(connection) == (0, ()):  # another process may have made them
        connection.execute(f"PRAGMA application_id = {_APPLICATION}")
        for table in _TABLES:
            connection.execute(table)
        connection.execute("INSERT INTO header VALUES (?)", [json.dumps(header)])
    connection.execute("COMMIT")


def _kind(connection: sqlite3.Connection) -> tuple[int, tuple[str, ...]]:
    """Return the application_id of a database, and how its tables were made."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    made = connection.execute("SELECT sql FROM sqlite_master ORDER BY name").fetchall()
    return application, tuple(sql for (sql,) in made)


def _checked(connection: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Return the connection; raise EvalError if the database is no store.

    Other tables are refused: a view in place of a table computes what its author wants.
    """
    application, tables = _kind(connection)
    if application != _APPLICATION:
        raise EvalError(f"{path}: is a database, but not of dynquant eval")
    if tables != _TABLES:
        raise EvalError(f"{path}: has other tables than dynquant eval makes; use another copy")
    return connection


@contextmanager
def _faults(path: Path) -> Generator[None]:
    """Turn faults of the database into EvalError."""
    try:
        yield
    except sqlite3.Error as e:
        raise EvalError(f"{path}: {_cause(e, path.parent)}") from e


def _cause(error: sqlite3.Error, folder: Path) -> str:
    """Return what is wrong with a database and what to do."""
    # The lowest byte is the kind of the error, the others are its details.
    kind = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if kind == sqlite3.SQLITE_FULL:
        return f"the disk of {folder} is full; free some space, and the same command resumes"
    if kind in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return f"cannot be written ({error}); use another folder with --cache"
    if kind == sqlite3.SQLITE_IOERR:
        return f"{error}; look at the disk of {folder}, and the same command resumes"
    if kind == sqlite3.SQLITE_BUSY:
        return "is in use by another process; wait until that has ended"
    return f"{error}; if it is damaged, remove it"


def identity(header: dict[str, Any]) -> str:
    """Return the hash of a header."""
    return hashlib.sha256(json.dumps(header, sort_keys=True).encode()).hexdigest()
