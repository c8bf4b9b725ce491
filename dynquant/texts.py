"""Texts that a model reads, cut into windows of tokens as llama.cpp's programs cut them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynquant.arrays import I32
from dynquant.errors import DynquantError
from dynquant.untrusted import read_regular

MAX_BYTES = 1 << 30
"""Limit on the bytes of a text: ten times what 25 million tokens have."""


@dataclass(frozen=True)
class Text:
    """A text and its name in reports."""

    name: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Return the hash of the text's bytes."""
        return hashlib.sha256(self.content).hexdigest()


def read_texts(paths: Sequence[Path], error: type[DynquantError]) -> list[Text]:
    """Read texts; their names are those of the files, with folders only where they are needed.

    Raises an error of the given class with all that cannot be read, are empty, are no text in
    UTF-8, or are given twice.
    """
    problems: list[str] = []
    found: list[Text] = []
    names = [path.name for path in paths]
    for path in paths:
        try:
            content = read_regular(path, MAX_BYTES)
        except OSError as e:
            problems.append(f"{path}: cannot be read: {e.strerror}")
            continue
        try:
            content.decode()
        except UnicodeDecodeError as e:
            problems.append(f"{path}: is not UTF-8 at byte {e.start:,}; convert it to UTF-8")
            continue
        if (zero := content.find(0)) >= 0:
            problems.append(
                f"{path}: has a zero byte at byte {zero:,}, as no text has; use a text in UTF-8"
            )
            continue
        if not content.strip():
            what = "has nothing but spaces" if content else "is empty"
            problems.append(f"{path}: {what}; use another text")
        found.append(Text(path.name if names.count(path.name) == 1 else str(path), content))
    problems += given_twice(paths)
    error.raise_any(problems)
    return found


def given_twice(paths: Sequence[Path]) -> list[str]:
    """Return a message for each file that is given more than once."""
    first: dict[Path, Path] = {}
    return [
        f"{path}: is given twice, as {found}; name it once"
        for path in paths
        if (found := first.setdefault(path.resolve(), path)) is not path
    ]


def windows_of(tokens: I32, context: int, n: int, bos: int | None) -> I32:
    """Return the first windows of a text, int32 [n, context], without overlap.

    tokens: int32 [at least n * context]
    bos:    the token that replaces the first of each window; None replaces nothing
    """
    windows = tokens[: n * context].reshape(n, context).astype(np.int32)
    if bos is not None:
        windows[:, 0] = bos
    return windows


def shares(available: Sequence[int], total: int) -> list[int]:
    """Return how many windows of each text are used: equal shares, the short ones completely."""
    shares = [0] * len(available)
    left = total
    order = sorted(range(len(available)), key=lambda i: available[i])
    for place, i in enumerate(order):
        shares[i] = min(available[i], left // (len(order) - place))
        left -= shares[i]
    return shares
