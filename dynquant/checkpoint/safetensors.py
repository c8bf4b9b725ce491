"""A model folder in Hugging Face's layout: config.json, and one or several safetensors files."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, TypeVar, cast

from dynquant.checkpoint.numbered import numbered_shards
from dynquant.checkpoint.safetensors_header import StoredTensor, read_header
from dynquant.errors import CheckpointError
from dynquant.name_lists import grouped
from dynquant.stored_files import (
    ALL_HERE,
    REQUESTS_AT_ONCE,
    Elsewhere,
    StoredFile,
    is_there,
    stored_file,
)
from dynquant.untrusted import (
    MAX_CONFIG,
    MAX_INDEX,
    Pairs,
    RepeatedKeyError,
    parse_json,
    read_regular,
    shown,
    unique,
)

V = TypeVar("V", bound=str | tuple[str, ...])
_PATHS = (PurePosixPath, PureWindowsPath)

_MAX_FILE_NAME = 255
"""NAME_MAX of Linux: the system reports another error for longer names than for missing files."""

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_NOT_READ = (
    ("*.gguf", "to use it as the source, give the path of that file"),
    ("adapter_model.safetensors", "that is an adapter; merge it into its base model first"),
    ("consolidated*.safetensors", "that is Mistral's layout; use the one for transformers"),
    ("pytorch_model*.bin", "convert it to safetensors first"),
    (
        "*.safetensors",
        f"one file must be named {SINGLE}; several need {INDEX}, or the names"
        " model-00001-of-00002.safetensors, model-00002-of-00002.safetensors, …",
    ),
    ("*.bin", "convert it to safetensors first"),
    ("*.pt*", "convert it to safetensors first"),
)
"""Other files that a folder may contain, and advice for each."""


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk; only its config and the headers of its files have been read.

    config: config.json; tensors: by stored name, shard by shard, in the order of their data
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, StoredTensor]


def _instead(path: Path) -> str:
    """Return what to give instead of a path that is not a folder."""
    if path.suffix == ".safetensors" and path.is_file():
        return f"it is one file of a checkpoint; give the folder {path.parent}"
    usual = "give one with config.json and safetensors files, or a GGUF"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path), re.ASCII) and not path.parent.exists():
        return f"{usual}; for a model on the Hub, write hf://{path}"
    return usual


def open_checkpoint(
    folder: Path,
    wanted: Callable[[str], bool] | None = None,
    elsewhere: Elsewhere = ALL_HERE,
) -> Checkpoint:
    """Read config.json and the headers of all shards.

    wanted: whether a tensor of this name is needed; shards that the index lists and that have none
            of these are not opened, and may be missing
    elsewhere: files that are not in the folder

    Raises CheckpointError with everything that is missing, contradictory or damaged.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: not a folder; {_instead(folder)}")
    problems: list[str] = []
    config: dict[str, Any] = {}
    shards: dict[str, dict[str, StoredTensor]] = {}
    listed: dict[str, str] | None = None
    try:
        config = read_config(folder)
    except CheckpointError as e:
        problems += e.messages
    try:
        numbered = _numbered(folder, elsewhere)
        listed = None if numbered else _of_wanted(_weight_map(folder, elsewhere), wanted)
        files = numbered or ([SINGLE] if listed is None else sorted(set(listed.values())))
        shards = _headers(folder, files, elsewhere)
        if numbered:  # each tensor must be in one of them, whichever it is
            listed = {name: file for file, found in shards.items() for name in found}
    except CheckpointError as e:
        problems += e.messages
    if listed is not None and not problems:
        problems += _disagreements(folder, listed, shards)
    CheckpointError.raise_any(problems)
    tensors = {name: t for shard in shards.values() for name, t in shard.items()}
    return Checkpoint(folder, config, tensors)


def read_config(folder: Path) -> dict[str, Any]:
    """Return config.json; raise CheckpointError if it is missing or not a JSON object."""
    return read_object(folder / "config.json")


def shard_files(folder: Path, wanted: Callable[[str], bool] | None = None) -> list[str]:
    """Return the names of the files that the index lists, whether or not the files exist.

    wanted: as in `open_checkpoint`

    Empty without an index. Raises CheckpointError if it is damaged.
    """
    if not (folder / INDEX).exists():
        return []
    return sorted(set((_of_wanted(_weight_map(folder), wanted) or {}).values()))


def _of_wanted(
    weight_map: dict[str, str] | None, wanted: Callable[[str], bool] | None
) -> dict[str, str] | None:
    """Return the part of an index that lists the shards with wanted tensors."""
    if weight_map is None or wanted is None:
        return weight_map
    files = {file for name, file in weight_map.items() if wanted(name)}
    return {name: file for name, file in weight_map.items() if file in files}


def read_object(
    path: Path, at_most: int = MAX_CONFIG, pairs: Pairs | None = None
) -> dict[str, Any]:
    """Return the JSON object in a file of at most `at_most` bytes; pairs: as in parse_json.

    Raises CheckpointError with the file's path.
    """
    try:
        found = parse_json(read_regular(path, at_most).decode("utf-8"), pairs)
    except FileNotFoundError as e:
        raise CheckpointError(f"{path}: not found; a checkpoint folder needs it") from e
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e
    except RepeatedKeyError as e:
        raise CheckpointError(f"{path}: {e}") from e
    except ValueError as e:
        raise CheckpointError(f"{path}: not JSON: {e}") from e
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return cast("dict[str, Any]", found)


def _weight_map(folder: Path, elsewhere: Elsewhere = ALL_HERE) -> dict[str, str] | None:
    """Return the shard of each tensor from the index; None if one file holds all tensors."""
    path = folder / INDEX
    single = is_there(folder / SINGLE, elsewhere)
    if not path.exists():
        if not single:
            raise CheckpointError(_no_weights(folder))
        return None
    index = read_object(path, MAX_INDEX, unique)
    found = index.get("weight_map")
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: has no weight_map")
    weight_map = cast("dict[str, object]", found)
    # Check each name once: an index repeats the name of a shard a thousand times.
    names = {shard for shard in weight_map.values() if isinstance(shard, str)}
    bad = {shown(shard) for shard in weight_map.values() if not isinstance(shard, str)}
    bad |= {shown(shard) for shard in names if not _is_inside(shard)}
    CheckpointError.raise_any(
        f"{path}: {shard} is not the name of a file in this folder" for shard in sorted(bad)
    )
    if single and SINGLE not in weight_map.values():
        raise CheckpointError(
            f"{path}: does not list {SINGLE}, which also exists; remove the one that is out of date"
        )
    return cast("dict[str, str]", weight_map)


def _numbered(folder: Path, elsewhere: Elsewhere) -> list[str]:
    """Return the shards of a folder without an index, in the order of their numbers."""
    alone = (folder / INDEX).exists() or is_there(folder / SINGLE, elsewhere)
    return [] if alone else numbered_shards(folder, INDEX, elsewhere)


def _is_inside(name: str) -> bool:
    """Whether a shard's name is inside the folder; a link in the folder may point anywhere."""
    if not name or not name.isprintable() or len(name) > _MAX_FILE_NAME:
        return False
    return not any(p(name).is_absolute() or ".." in p(name).parts or p(name).drive for p in _PATHS)


def _no_weights(folder: Path) -> str:
    for pattern, advice in _NOT_READ:
        found = sorted(p.name for p in folder.glob(pattern))
        if found:
            more = f" and {len(found) - 1} more" if len(found) > 1 else ""
            return f"{folder}: has no {SINGLE} and no {INDEX}, but {found[0]}{more}; {advice}"
    return f"{folder}: has no {SINGLE} and no {INDEX}; give the folder of a complete checkpoint"


def _headers(
    folder: Path, names: list[str], elsewhere: Elsewhere
) -> dict[str, dict[str, StoredTensor]]:
    problems: list[str] = []
    shards: dict[str, dict[str, StoredTensor]] = {}
    present = [folder / name for name in names if is_there(folder / name, elsewhere)]
    read = _read_headers([stored_file(path, elsewhere) for path in present])
    for name in names:
        path = folder / name
        if not is_there(path, elsewhere):
            why = "is a link to a missing file" if path.is_symlink() else "is missing"
            problems.append(f"{path}: {why}, but {INDEX} lists it; download the checkpoint again")
            continue
        found = read[path]
        if isinstance(found, CheckpointError):
            problems += found.messages
        else:
            shards[name] = found
    CheckpointError.raise_any(problems)
    return shards


def _read_headers(
    files: list[StoredFile],
) -> dict[Path, dict[str, StoredTensor] | CheckpointError]:
    """Return the header of each file, or its problem; remote files are read several at once."""

    def read(file: StoredFile) -> dict[str, StoredTensor] | CheckpointError:
        try:
            return read_header(file)
        except CheckpointError as e:
            return e

    if not any(file.is_remote for file in files):
        return {file.path: read(file) for file in files}
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        return dict(zip((file.path for file in files), pool.map(read, files), strict=True))


def _disagreements(
    folder: Path, wanted: dict[str, str], shards: dict[str, dict[str, StoredTensor]]
) -> Iterator[str]:
    """Yield the differences between the index and the headers of the shards."""
    found: dict[str, list[str]] = {}
    for shard, tensors in shards.items():
        for name in tensors:
            found.setdefault(name, []).append(shard)
    twice = {name: tuple(where) for name, where in found.items() if len(where) > 1}
    for where, names in _by_value(twice):
        yield from (f"{folder}: {n} is in {' and in '.join(where)}" for n in grouped(names))
    absent = {n: s for n, s in wanted.items() if n not in shards[s]}
    for shard, names in _by_value(absent):
        for name in grouped(names):
            yield f"{folder / shard}: does not contain {name}, but {INDEX} says so"
    extra = {n: where[0] for n, where in found.items() if n not in wanted}
    for shard, names in _by_value(extra):
        for name in grouped(names):
            yield f"{folder / shard}: contains {name}, which {INDEX} does not list"


def _by_value(pairs: dict[str, V]) -> list[tuple[V, list[str]]]:
    groups: dict[V, list[str]] = {}
    for name, value in pairs.items():
        groups.setdefault(value, []).append(name)
    return list(groups.items())
