"""Ranges of a file at a URL of fsspec: s3://, gs:// and others.

The filesystems of fsspec repeat failing requests themselves. They do not report the version of a
file with each range, so that it is asked for before and after.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from dynquant.distribution import requirement
from dynquant.errors import CheckpointError

_VERSION = ("etag", "md5", "md5hash", "content_md5", "generation", "versionid", "crc32c")
_TIME = ("mtime", "lastmodified", "last_modified", "updated", "modified", "created")
"""Words of fsspec's filesystems for what changes with the content; times only if there is none."""


class FsspecRanges:
    """Requests for one file.

    sha256: None: filesystems of fsspec state other hashes, or none
    """

    sha256: str | None = None

    def __init__(self, filesystem: Any, path: str, name: str) -> None:
        """Ask for the size; raise CheckpointError if the file cannot be reached."""
        self.name = name
        self._filesystem = filesystem
        self._path = path
        found = self._ask()
        if not isinstance(found.get("size"), int):
            raise CheckpointError(f"{name}: its size is not known; download it and give the folder")
        self.n_bytes: int = found["size"]

    def version(self) -> Mapping[str, str]:
        """Ask again what changes with the content."""
        found = {k.replace("-", "").lower(): v for k, v in self._ask().items()}
        known = {k: str(found[k]) for k in _VERSION if found.get(k)}
        return known or {k: str(found[k]) for k in _TIME if found.get(k)}

    def fetch(self, offset: int, into: memoryview) -> int:
        """Request the bytes at `offset` once; return how many arrived."""
        with fsspec_errors(self.name):
            found: bytes = self._filesystem.cat_file(
                self._path, start=offset, end=offset + len(into)
            )
        if len(found) > len(into):
            raise CheckpointError(
                f"{self.name}: {len(into)} bytes were asked for, {len(found)} arrived; the server"
                " does not support ranges, so download the files"
            )
        into[: len(found)] = found
        return len(found)

    def download(self, folder: Path) -> Path:
        """Download the whole file."""
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / self._path.rpartition("/")[2]
        part = target.with_name(f"{target.name}.incomplete")
        with fsspec_errors(self.name):
            self._filesystem.get_file(self._path, str(part))
        return part.replace(target)

    def _ask(self) -> dict[str, Any]:
        with fsspec_errors(self.name):
            self._filesystem.invalidate_cache()
            return dict(self._filesystem.info(self._path))


@contextmanager
def fsspec_errors(name: str) -> Generator[None]:
    """Raise CheckpointError in place of any error of a filesystem, with one line."""
    try:
        yield
    except CheckpointError:
        raise
    except FileNotFoundError as e:
        raise CheckpointError(f"{name}: not found; correct the URL") from e
    except ImportError as e:
        raise CheckpointError(f"{name}: {_one_line(e)}") from e
    except Exception as e:  # each filesystem has the errors of its library
        raise CheckpointError(f"{name}: cannot be read: {type(e).__name__}: {_one_line(e)}") from e


def filesystem_of(url: str) -> tuple[Any, str]:
    """Return the filesystem of a URL and the path in it.

    Raises CheckpointError if fsspec, or what it needs for this kind of URL, is not installed.
    """
    try:
        from fsspec.core import (  # pyright: ignore[reportMissingTypeStubs]
            url_to_fs,  # pyright: ignore[reportUnknownVariableType]
        )
    except ImportError as e:
        raise CheckpointError(
            f"{url}: fsspec is not installed; pip install '{requirement('remote')}'"
        ) from e
    with fsspec_errors(url):
        return cast("tuple[Any, str]", url_to_fs(url))


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split())
