"""The origin of a tensor's rows as a hash: equal hashes, equal rows.

It covers the content of the files that rows are read from, and everything that is done to them on
the way: which bytes are read, how they are decoded, stacked, reordered and computed. Two runs of
one version of dynquant have the same functions, so functions count by their names and by the values
that they hold.
"""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dynquant.quants.table import QuantType
from dynquant.tensors import ShardFile, TensorSource


class _Digest(Protocol):
    def update(self, content: bytes, /) -> None: ...


class _UnknownError(Exception):
    """A source holds something whose meaning has no name."""


def origin_of(source: TensorSource, files: Mapping[Path, str | None]) -> str | None:
    """Return the hash of where rows come from; None if that is not known.

    files: hashes of the source files, with their kinds

    It is not known if a file is not hashed, or if a part of the source is of a kind that has no
    lasting name.
    """
    digest = hashlib.sha256()
    try:
        _feed(digest, source, files)
    except _UnknownError:
        return None
    return digest.hexdigest()


def _feed(digest: _Digest, value: Any, files: Mapping[Path, str | None]) -> None:
    """Add a value; each begins with its kind and its length, so that no two values look alike."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, complex)):
        _add(digest, type(value).__name__, repr(value))
    elif isinstance(value, ShardFile):
        content = files.get(value.path)
        if content is None:
            raise _UnknownError
        _add(digest, "file", content)
    elif isinstance(value, QuantType):
        _add(digest, "type", value.name)
    elif isinstance(value, (list, tuple)):
        several = cast("list[Any]", value)
        _add(digest, "list", str(len(several)))
        for each in several:
            _feed(digest, each, files)
    elif isinstance(value, (np.ndarray, np.generic)):
        array = np.ascontiguousarray(cast("NDArray[Any]", value))
        if array.dtype.hasobject:
            raise _UnknownError
        _add(digest, "array", f"{array.dtype.str} {array.shape}")
        digest.update(array.tobytes())
    elif isinstance(value, (range, slice)):
        _add(digest, "range", repr(cast(object, value)))
    elif isinstance(value, Mapping):
        _feed(digest, list(cast("Mapping[Any, Any]", value).items()), files)
    elif callable(value) and not is_dataclass(value):
        _feed_function(digest, value, files)
    elif is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        _add(digest, "object", f"{kind.__module__}.{kind.__qualname__}")
        for field in _fields(kind):
            _add(digest, "field", field.name)
            _feed(digest, getattr(value, field.name), files)
    else:
        raise _UnknownError


def _feed_function(digest: _Digest, value: Any, files: Mapping[Path, str | None]) -> None:
    if isinstance(value, functools.partial):
        held = cast("functools.partial[Any]", value)
        _add(digest, "partial", "")
        _feed(digest, [held.func, list(held.args), held.keywords], files)
    elif isinstance(value, types.MethodType):
        _add(digest, "method", value.__func__.__qualname__)
        _feed(digest, value.__self__, files)
    elif isinstance(value, types.FunctionType):
        line = value.__code__.co_firstlineno  # two lambdas of one function share their name
        _add(digest, "function", f"{value.__module__}.{value.__qualname__}:{line}")
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        _feed(digest, [cells, list(value.__defaults__ or ()), value.__kwdefaults__ or {}], files)
    elif isinstance(value, (np.ufunc, types.BuiltinFunctionType, type)):
        _add(digest, "builtin", f"{getattr(value, '__module__', '')}.{value.__name__}")
    else:
        raise _UnknownError


def _add(digest: _Digest, kind: str, text: str) -> None:
    content = text.encode()
    digest.update(f"{kind} {len(content)} ".encode())
    digest.update(content)


@cache
def _fields(kind: type) -> tuple[Field[Any], ...]:
    """Return the fields that say what a source is; the others are caches that it fills itself."""
    return tuple(f for f in fields(cast(Any, kind)) if f.init)
