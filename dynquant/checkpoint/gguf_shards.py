"""A GGUF of one file or of several: any shard names its siblings, and all have to be there.

Shards are PREFIX-00001-of-00003.gguf and so on. Each says in its keys which one it is (split.no,
from 0), of how many (split.count), and how many tensors all of them hold (split.tensors.count); the
model's keys are in the first. Source: llama-gguf-split and GGUFWriter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dynquant.checkpoint.gguf import GGUFFile, GGUFTensor, read_gguf
from dynquant.errors import CheckpointError
from dynquant.keys import Keys
from dynquant.name_lists import grouped
from dynquant.untrusted import shown

NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Shards:
    """A GGUF's files in their order, one or several, with the keys of all of them."""

    files: tuple[GGUFFile, ...]
    keys: Keys

    @property
    def path(self) -> Path:
        """The first file, which stands for all in messages."""
        return self.files[0].path

    def tensors(self) -> Iterator[tuple[GGUFFile, GGUFTensor]]:
        """Yield each tensor with the file it is in, in the order of the files' tables."""
        for file in self.files:
            for tensor in file.tensors:
                yield file, tensor


def open_gguf(path: Path) -> Shards:
    """Read the keys and the tensor tables of a GGUF, and of all shards if it is one of several.

    Raises CheckpointError for a damaged file, and with all shards that are missing, that are not of
    one model, or that hold the same tensor.
    """
    named = read_gguf(path, exact=True)
    count = _number(named, "split.count") or 1
    if count == 1:
        return Shards((named,), named.keys)
    files = _read_all(named, count)
    keys: Keys = {}
    for file in reversed(files):
        keys = file.keys | {k: v for k, v in keys.items() if k not in file.keys}
    CheckpointError.raise_any(_disagreements(files))
    return Shards(files, keys)


def _number(file: GGUFFile, key: str) -> int | None:
    found = file.keys.get(key)
    if found is None:
        return None
    if not isinstance(found.value, int) or found.value < 0:
        raise CheckpointError(f"{file.path}: {key} is {shown(found.value)}, not a number of shards")
    return found.value


def shard_names(name: str) -> list[str]:
    """Return the file names of all shards of a model, given one of them; none for other names."""
    found = NAME.fullmatch(name)
    if found is None:
        return []
    return [
        f"{found['prefix']}-{number:05}-of-{found['count']}.gguf"
        for number in range(1, int(found["count"]) + 1)
    ]


def _read_all(named: GGUFFile, count: int) -> tuple[GGUFFile, ...]:
    path = named.path
    names = shard_names(path.name)
    if len(names) != count:
        raise CheckpointError(
            f"{path}: is one of {count} shards by its keys, and its name does not tell the others;"
            f" name them PREFIX-00001-of-{count:05}.gguf and so on"
        )
    absent = [name for name in names if not (path.parent / name).exists()]
    if absent:
        raise CheckpointError(
            f"{path}: is one of {count} shards, and {len(absent)} are missing beside it"
            f" ({', '.join(absent)}); download them again"
        )
    CheckpointError.raise_any(_same(path.parent, names))
    files: list[GGUFFile] = []
    problems: list[str] = []
    for name in names:
        try:
            here = path.parent / name
            files.append(named if name == path.name else read_gguf(here, exact=True))
        except CheckpointError as e:
            problems += e.messages
    CheckpointError.raise_any(problems)
    return tuple(files)


def _same(folder: Path, names: list[str]) -> Iterator[str]:
    """Say which names are links to one file: ten thousand of them would be read as many times."""
    seen: dict[tuple[int, int], str] = {}
    for name in names:
        there = (folder / name).stat()
        first = seen.setdefault((there.st_dev, there.st_ino), name)
        if first != name:
            yield f"{folder / name}: is the same file as {first}; download the shards again"


def _disagreements(files: tuple[GGUFFile, ...]) -> Iterator[str]:
    """Say what keeps files from being the shards of one model."""
    count = len(files)
    for i, file in enumerate(files):
        number, of = _number(file, "split.no"), _number(file, "split.count")
        if (number, of) != (i, count):
            says = "no shard" if number is None or of is None else f"shard {number + 1} of {of}"
            yield f"{file.path}: is {says} by its keys, and shard {i + 1} of {count} by its name"
    first = files[0]
    for file in files[1:]:
        other = {
            k: v
            for k, v in file.keys.items()
            if not k.startswith("split.") and first.keys.get(k, v) != v
        }
        for key in other:
            yield f"{file.path}: {key} is another than in {first.path.name}; not of one model"
    where: dict[str, list[GGUFFile]] = {}
    for file in files:
        for tensor in file.tensors:
            where.setdefault(tensor.name, []).append(file)
    twice: dict[str, list[str]] = {}
    for name, found in where.items():
        if len(found) > 1:
            twice.setdefault(" and in ".join(f.path.name for f in found), []).append(name)
    for places, names in twice.items():
        yield f"{first.path.parent}: {', '.join(grouped(names))} is in {places}"
    told = _number(first, "split.tensors.count")
    held = sum(len(file.tensors) for file in files)
    if told is not None and told != held:
        yield f"{first.path}: all shards hold {told} tensors by their keys, but {held} are there"
