"""Models on the Hub whose weights stay there; small files are fetched into the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from glob import escape
from pathlib import Path

from dynquant.checkpoint.gguf_shards import shard_names
from dynquant.checkpoint.hub import HubName, absent, fetch_names, hub_errors
from dynquant.checkpoint.remote.hub_ranges import HubRanges
from dynquant.checkpoint.remote.remote_file import RemoteFile
from dynquant.stored_files import REQUESTS_AT_ONCE, Elsewhere

_UNLISTED = re.compile(r"model(-\d+-of-\d+)?\.safetensors")


def hub_files(name: HubName, folder: Path, files: Iterable[str], *, is_copied: bool) -> Elsewhere:
    """Return the files of a model that are not in the cache, by their places there.

    name:   with its commit; files: names in the repository
    folder: of the commit in the cache
    is_copied: as in `RemoteFile`

    Raises CheckpointError if the Hub cannot be reached, or if it does not have a file.
    """
    left = [file for file in files if not (folder / file).exists()]
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        found = list(pool.map(partial(HubRanges, name), left))
    return {
        folder / file: RemoteFile(folder / file, ranges, is_copied=is_copied)
        for file, ranges in zip(left, found, strict=True)
    }


def unlisted_files(name: HubName) -> list[str]:
    """Return the weights of a model without an index: one file, or shards with numbers."""
    from huggingface_hub import HfApi

    with hub_errors(name):
        names = HfApi().list_repo_files(name.repo, revision=name.revision)
    found = [file for file in names if _UNLISTED.fullmatch(file)]
    if not found:
        raise absent(name, ["model.safetensors"])
    return ["model.safetensors"] if "model.safetensors" in found else found


def hub_gguf(name: HubName, *, is_copied: bool) -> tuple[Path, HubName, Elsewhere]:
    """Return a GGUF's place in the cache, its name with the commit, and the files elsewhere."""
    assert name.file is not None
    folder, pinned = fetch_names(name, [escape("README.md")])
    parent, slash, last = name.file.rpartition("/")
    names = [parent + slash + n for n in shard_names(last) or [last]]
    whole = HubName(pinned.repo, pinned.revision)
    return folder / name.file, pinned, hub_files(whole, folder, names, is_copied=is_copied)
