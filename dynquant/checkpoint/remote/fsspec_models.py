"""Models at URLs of fsspec: weights stay there, small files are fetched into a temporary folder."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dynquant.checkpoint.gguf_shards import shard_names
from dynquant.checkpoint.hub import DESCRIPTION
from dynquant.checkpoint.remote.fsspec_ranges import FsspecRanges, filesystem_of, fsspec_errors
from dynquant.checkpoint.remote.remote_file import RemoteFile
from dynquant.errors import CheckpointError
from dynquant.stored_files import REQUESTS_AT_ONCE, Elsewhere
from dynquant.untrusted import MAX_TOKENIZER

_URL = re.compile(r"(?!hf:|https?:)(?P<kind>[a-z][a-z0-9+.-]+):/{1,2}(?P<rest>.+)", re.DOTALL)
"""Two letters at least: one is a drive of Windows. pathlib reduces two slashes to one."""


def is_url(text: str) -> bool:
    """Return whether a text is the URL of a model for fsspec, and neither a path nor hf://."""
    return _URL.fullmatch(text) is not None


def plain_url(text: str) -> str:
    """Return a URL with two slashes, and none at its end."""
    found = _URL.fullmatch(text)
    assert found is not None, "a URL"
    return f"{found['kind']}://{found['rest'].rstrip('/')}"


def url_model(text: str, *, is_copied: bool) -> tuple[Path, Elsewhere]:
    """Return the folder or the GGUF of a model at a URL, and its files elsewhere.

    The folder has the small files: configuration and tokenizer. It is deleted at the end of the
    process.

    Raises CheckpointError if fsspec is not installed, or if the URL cannot be read.
    """
    url = plain_url(text)
    filesystem, path = filesystem_of(url)
    name = url.rpartition("/")[2]
    folder = _temporary() / (name.removesuffix(".gguf") or "model")
    folder.mkdir()
    if name.endswith(".gguf"):
        where, parent = url.rpartition("/")[0], path.rpartition("/")[0]
        names = shard_names(name) or [name]
        found = _files(filesystem, where, parent, folder, names, is_copied=is_copied)
        return folder / name, found
    with fsspec_errors(url):
        filesystem.invalidate_cache()
        listed: list[dict[str, Any]] = filesystem.ls(path, detail=True)
    sizes = {
        str(entry["name"]).rpartition("/")[2]: entry.get("size")
        for entry in listed
        if entry.get("type") == "file"
    }
    small = [n for n in sizes if any(fnmatch(n, pattern) for pattern in DESCRIPTION)]
    for file in small:
        if (size := sizes[file]) is not None and size > MAX_TOKENIZER:
            raise CheckpointError(
                f"{url}/{file}: has {size} bytes; at most {MAX_TOKENIZER} are read from such a file"
            )
        with fsspec_errors(f"{url}/{file}"):
            (folder / file).write_bytes(filesystem.cat_file(f"{path}/{file}"))
    weights = [n for n in sizes if n.endswith(".safetensors")]
    return folder, _files(filesystem, url, path, folder, weights, is_copied=is_copied)


def _files(
    filesystem: Any, url: str, path: str, folder: Path, names: Iterable[str], *, is_copied: bool
) -> Elsewhere:
    """Return files by the places that they would have in a folder."""

    def one(name: str) -> RemoteFile:
        ranges = FsspecRanges(filesystem, f"{path}/{name}", f"{url}/{name}")
        return RemoteFile(folder / name, ranges, is_copied=is_copied)

    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return {file.path: file for file in pool.map(one, names)}


def _temporary() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="dynquant-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
