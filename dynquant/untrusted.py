"""Reading untrusted input: the cost depends on the size of a file, not on the sizes it claims.

The author of a checkpoint, a recipe or an imatrix chose its bytes, links and sizes. Therefore only
regular files are opened (a pipe would block forever, a device has no end), sizes have bounds far
above those of real files, and the depth of JSON is limited, so that recursive code is safe.
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

from dynquant.systems import system

MAX_CONFIG = 1 << 24
"""Bytes of config.json and similar files: 16 MiB. Long ones list quantized layers, in 1 MB."""

MAX_INDEX = 1 << 26
"""Bytes of an index of shards: 64 MiB. The index of a model of 10^12 weights has 14 MB."""

MAX_TOKENIZER = 1 << 27
"""Bytes of a tokenizer file: 128 MiB. Gemma's tokenizer.json, one of the longest, has 33 MB."""

MAX_DEPTH = 64
"""Depth of lists and objects in JSON; the deepest file of a checkpoint has about ten levels."""

_SHOWN = 200
_HALF = re.compile(r"\\u[dD][89a-fA-F]")
Pairs = Callable[[list[tuple[str, Any]]], dict[str, Any]]


class RepeatedKeyError(ValueError):
    """A JSON object has the same key twice."""


def open_regular(path: Path) -> BufferedReader:
    """Open a file to read its bytes; raise OSError at once if it is not a regular file."""
    fd = system().open(path, "read", follow=True)
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
    """Return the bytes of a regular file; raise OSError if there are more than `at_most`."""
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise OSError(errno.EFBIG, f"{size} bytes; at most {at_most} are read from such a file")
        return file.read(size)


def parse_json(text: str, pairs: Pairs | None = None) -> Any:
    """Return the value of a JSON text.

    pairs: makes an object from its keys and values, as in json.loads

    Raises ValueError if the text is not JSON, if lists and objects are nested deeper than
    MAX_DEPTH, or if a string has no UTF-8 form; RepeatedKeyError if `pairs` raises it.
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
    """Return whether lists and objects are nested too deep; not recursive itself."""
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
    """Build a JSON object; raise RepeatedKeyError for a repeated key, which json would accept."""
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise RepeatedKeyError(f"{shown(key)} appears twice")
            seen.add(key)
    return made


def shown(value: object) -> str:
    """Quote a value for a message; long values are cut."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 3] + "..."


def is_inside(folder: Path, path: Path) -> bool:
    """Return whether a file lies in a folder after links are followed.

    A snapshot in the Hub's cache consists of links into `blobs`, two folders up.
    """
    try:
        # Not Path.resolve, which raises RuntimeError for circular links.
        root, real = Path(os.path.realpath(folder)), Path(os.path.realpath(path))
    except ValueError:  # a zero byte
        return False
    if real.is_relative_to(root):
        return True
    blobs = root.parent.parent / "blobs"
    return root.parent.name == "snapshots" and real.is_relative_to(os.path.realpath(blobs))
