"""Say what to type for an argument of `verify` that is no GGUF: a folder, part of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dynquant.checkpoint.gguf_shards import NAME, shard_names
from dynquant.checkpoint.hub import is_hub_name

_MANIFEST = ".manifest.json"


def not_a_gguf(given: str, file: str = "OUT.gguf") -> str | None:
    """Return why an argument cannot be verified and what to type; None if it may be a GGUF.

    file: the GGUF that the argument may have been meant as the source of, for the message
    """
    path = Path(given)
    compare = f"to compare {file} with it: dynquant verify {file} --against"
    local = "and verify reads files on this machine; download it first"
    if is_hub_name(given):
        return f"{given}: is on the Hub, {local}; {compare} {given}"
    if given.startswith(("https:/", "http:/")):
        return f"{given}: is an address, {local}"
    if path.is_dir():
        if ggufs := whole_models(sorted(map(str, path.glob("*.gguf")))):
            several = f", one of the {len(ggufs)} in it" if len(ggufs) > 1 else ""
            return f"{given}: is a folder; give the GGUF: dynquant verify {ggufs[0]}{several}"
        if (path / "config.json").exists():
            return f"{given}: is a folder with a checkpoint, not a GGUF; {compare} {given}"
        return f"{given}: is a folder without a GGUF; give the path of a GGUF"
    if path.suffix == ".safetensors":
        return f"{given}: is part of a checkpoint, not a GGUF; {compare} {path.parent}"
    if given.endswith(_MANIFEST):
        return (
            f"{given}: is a manifest, not a GGUF; verify finds it beside the GGUF: dynquant verify"
            f" {given.removesuffix(_MANIFEST)}"
        )
    return None


def whole_models(paths: Iterable[str]) -> list[str]:
    """Return the first path of each model: shards of one model count as one file."""
    found: dict[str, str] = {}
    for given in paths:
        path = Path(given)
        shard = NAME.fullmatch(path.name)
        names = shard_names(path.name) if shard else []
        found.setdefault(str(path.with_name(names[0])) if names else given, given)
    return list(found.values())
