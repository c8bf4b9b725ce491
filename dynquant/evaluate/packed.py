"""Named arrays as bytes: uncompressed npz archives, as numpy writes them.

Anybody may have written a published reference. numpy's reader makes arrays as large as a header
claims and parses headers as Python, and zip archives may be compressed a thousandfold; therefore
only the form that `pack` writes is read, and never more than the bytes that are there.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00..\{'descr': '(<i4|<f4|<f8|\|b1)', 'fortran_order': False,"
    rb" 'shape': \((\d{1,18}(?:, \d{1,18})*)?,?\), \} *\n",
    re.DOTALL,
)
"""The header of an array in C order, of the types that are stored; see numpy.lib.format."""


def pack(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Return an uncompressed npz archive."""
    room = io.BytesIO()
    np.savez(room, allow_pickle=False, **arrays)  # pyright: ignore[reportArgumentType]
    return room.getvalue()


def unpack(content: bytes, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the arrays of an archive.

    Raises ValueError if it is damaged, or not as `pack` writes it.
    """
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            return {name: _array(archive, name) for name in names}
    except (BadZipFile, EOFError, KeyError, NotImplementedError, OSError, RuntimeError) as e:
        # zipfile: RuntimeError for encrypted members, NotImplementedError for unknown methods.
        raise ValueError(e.args[0] if e.args else type(e).__name__) from e


def _array(archive: ZipFile, name: str) -> NDArray[Any]:
    member = archive.getinfo(f"{name}.npy")
    if member.compress_type != ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    content = archive.read(member)
    header = _HEADER.match(content)
    if header is None:
        raise ValueError(f"{name} is not an array of known form")
    shape = tuple(int(n) for n in (header[2] or b"").split(b", ") if n)
    return np.frombuffer(content, header[1].decode(), offset=header.end()).reshape(shape)
