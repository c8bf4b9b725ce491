"""A GGUF of one file or several shards; the name of one shard gives the names of all.

Shards are named PREFIX-00001-of-00003.gguf and so on. The keys of each state its number (split.no,
from 0), the number of shards (split.count) and the number of tensors in all shards
(split.tensors.count). The model's keys are in the first. Source: llama-gguf-split and GGUFWriter.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dynquant.checkpoint.gguf import GGUFFile, GGUFTensor, read_gguf
from dynquant.errors import CheckpointError
from dynquant.keys import Keys
from dynquant.name_lists import grouped
from dynquant.stored_files import ALL_HERE, Elsewhere, is_there, stored_file
from dynquant.untrusted import shown

NAME = re.compile(r"(?P<prefix>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True)
class Shards:
    """The files of a GGUF in order, and their keys together."""

    files: tuple[GGUFFile, ...]
    keys: Keys

    @property
    def path(self) -> Path:
        """The first file; messages use its name for the whole GGUF."""
        return self.files[0].path

    def tensors(self) -> Iterator[tuple[GGUFFile, GGUFTensor]]:
        """Yield each tensor with its file, in the order of the files' tables."""
        for file in self.files:
            for tensor in file.tensors:
                yield file, tensor


def open_gguf(path: Path, elsewhere: Elsewhere = ALL_HERE) -> Shards:
    """Read the keys and the tensor tables of a GGUF and of all its shards.

    elsewhere: files that are not on this machine

    Raises CheckpointError for a damaged file, and with all shards that are missing, belong to
    another model or contain the same tensor.
    """
    named = read_gguf(stored_file(path, elsewhere), exact=True)
    count = _number(named, "split.count") or 1
    if count == 1:
        return Shards((named,), named.keys)
    files = _read_all(named, count, elsewhere)
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
    """Return the file names of all shards from one of them; an empty list for other names."""
    found = NAME.fullmatch(name)
    if found is None:
        return []
    return [
        f"{found['prefix']}-{number:05}-of-{found['count']}.gguf"
        for number in range(1, int(found["count"]) + 1)
    ]


def first_file(path: Path) -> Path:
    """Return the file to open: the first shard if a path is the name of a model in shards.

    OUT.gguf gives OUT-00001-of-00003.gguf if there is no OUT.gguf; any other path is returned as
    it is. Raises CheckpointError if several sets of shards have the name.
    """
    if path.exists() or path.suffix != ".gguf":
        return path
    found = sorted(path.parent.glob(f"{glob.escape(path.stem)}-00001-of-{'[0-9]' * 5}.gguf"))
    if len(found) > 1:
        listed = ", ".join(p.name for p in found)
        raise CheckpointError(f"{path}: several sets of shards have this name: {listed}; name one")
    return found[0] if found else path


def _read_all(named: GGUFFile, count: int, elsewhere: Elsewhere) -> tuple[GGUFFile, ...]:
    path = named.path
    names = shard_names(path.name)
    if len(names) != count:
        raise CheckpointError(
            f"{path}: its keys say that it is one of {count} shards, but its name does not give the"
            f" names of the others; rename them to PREFIX-00001-of-{count:05}.gguf and so on"
        )
    absent = [name for name in names if not is_there(path.parent / name, elsewhere)]
    if absent:
        raise CheckpointError(
            f"{path}: is one of {count} shards, and {len(absent)} are missing in its folder"
            f" ({', '.join(absent)}); download them again"
        )
    here = [name for name in names if path.parent / name not in elsewhere]
    CheckpointError.raise_any(_same(path.parent, here))
    files: list[GGUFFile] = []
    problems: list[str] = []
    for name in names:
        try:
            file = stored_file(path.parent / name, elsewhere)
            files.append(named if name == path.name else read_gguf(file, exact=True))
        except CheckpointError as e:
            problems += e.messages
    CheckpointError.raise_any(problems)
    return tuple(files)


def _same(folder: Path, names: list[str]) -> Iterator[str]:
    """Yield a message for each name that is a link to another shard; each would be read again."""
    seen: dict[tuple[int, int], str] = {}
    for name in names:
        there = (folder / name).stat()
        first = seen.setdefault((there.st_dev, there.st_ino), name)
        if first != name:
            yield f"{folder / name}: is the same file as {first}; download the shards again"


def _disagreements(files: tuple[GGUFFile, ...]) -> Iterator[str]:
    """Yield the reasons why files are not the shards of one model."""
    count = len(files)
    for i, file in enumerate(files):
        number, of = _number(file, "split.no"), _number(file, "split.count")
        if (number, of) != (i, count):
            says = "no shard" if number is None or of is None else f"shard {number + 1} of {of}"
            yield f"{file.path}: is {says} by its keys, but shard {i + 1} of {count} by its name"
    first = files[0]
    for file in files[1:]:
        other = {
            k: v
            for k, v in file.keys.items()
            if not k.startswith("split.") and first.keys.get(k, v) != v
        }
        for key in other:
            yield f"{file.path}: {key} differs from {first.path.name}; the shards are of two models"
    where: dict[str, list[GGUFFile]] = {}
    for file in files:
        for tensor in file.tensors:
            where.setdefault(tensor.name, []).append(file)
    twice: dict[str, list[str]] = {}
    for name, places in where.items():
        if len(places) > 1:
            twice.setdefault(" and in ".join(f.path.name for f in places), []).append(name)
    for shards, names in twice.items():
        yield f"{first.path.parent}: {', '.join(grouped(names))} is in {shards}"
    stated = _number(first, "split.tensors.count")
    found = sum(len(file.tensors) for file in files)
    if stated is not None and stated != found:
        yield f"{first.path}: the keys state {stated} tensors in all shards, but there are {found}"
