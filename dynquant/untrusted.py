"""Reading files that strangers wrote: what they claim costs no more than what is there.

Whoever made a checkpoint, a recipe or an imatrix chose its bytes, its links and its sizes. So only
regular files are opened (a pipe would wait for ever, a device has no end), sizes have a bound that
no honest file comes near, and JSON is no deeper than any code that walks it can go.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any

MAX_CONFIG = 1 << 24
"""Bytes of a config.json and its like: 16 MiB. Long ones list quantized layers, in 1 MB."""

MAX_INDEX = 1 << 26
"""Bytes of an index of shards: 64 MiB. That of a model of 10^12 weights has 14 MB."""

MAX_TOKENIZER = 1 << 27
"""Bytes of a tokenizer's file: 128 MiB. Gemma's tokenizer.json, of the longest, has 33 MB."""

MAX_DEPTH = 64
"""Of lists and objects in JSON: the deepest file of a checkpoint has about ten."""

_SHOWN = 200
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
Pairs = Callable[[list[tuple[str, Any]]], dict[str, Any]]


class RepeatedKeyError(ValueError):
    """A JSON object that has one key twice."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read its bytes; raise OSError for what is no regular file, without waiting."""
    # Without O_NONBLOCK, opening a pipe waits until somebody writes into it.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        mode = os.fstat(fd).st_mode
        if stat.S_ISDIR(mode):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a pipe, a socket or a device, not a regular file")
        return os.fdopen(fd, "rb")
    except BaseException:
        os.close(fd)
        raise


def read_regular(path: Path, at_most: int) -> bytes:
    """Return a regular file's bytes; raise OSError if there are more than `at_most`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise OSError(
                errno.EFBIG, f"{size} bytes, and at most {at_most} are read of such files"
            )
        return file.read(size)


def parse_json(text: str, pairs: Pairs | None = None) -> Any:
    """Return what a JSON text says.

    pairs: makes an object of its keys and values, as in json.loads

    Raises ValueError for what is no JSON, for lists and objects nested deeper than MAX_DEPTH, and
    for texts that no UTF-8 can hold; RepeatedKeyError if `pairs` does.
    """
    try:
        found = json.loads(text, object_pairs_hook=pairs)
    except RecursionError as e:
        raise ValueError(f"nested more than {MAX_DEPTH} deep") from e
    if _is_deep(found):
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if _HALF.search(text):
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError as e:
            raise ValueError("half a character (a surrogate without its other half)") from e
    return found


def _is_deep(value: Any) -> bool:
    """Tell whether lists and objects are nested too deep, without recursion of its own."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for each in level
            if isinstance(each, dict | list)
            for child in (each.values() if isinstance(each, dict) else each)
            if isinstance(child, dict | list)
        ]
    return bool(level)


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a JSON object; raise RepeatedKeyError where json would keep the last of two."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(f"{shown(key)} appears twice")
            seen.add(key)
    return made


def shown(value: object) -> str:
    """Quote a value for a message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def is_inside(folder: Path, path: Path) -> bool:
    """Tell whether a file lies in a folder when links are followed.

    A snapshot in the Hub's cache consists of links into `blobs`, two folders up.
    """
    try:
        # Not Path.resolve, which raises RuntimeError where links go round.
        root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    except ValueError:  # a zero byte
        return False
    if real.is_relative_to(root):
        return True
    blobs = root.parent.parent / "blobs"
    return root.parent.name == "snapshots" and real.is_relative_to(os.path.realpath(blobs))
