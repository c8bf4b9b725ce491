"""Shards without an index: their numbers show whether the set is complete."""

from __future__ import annotations

import re
from pathlib import Path

from dynquant.errors import CheckpointError
from dynquant.stored_files import ALL_HERE, Elsewhere, is_there

_NUMBERED = re.compile(
    r"(?!consolidated|adapter)(?P<stem>[\w.-]+)-(?P<number>[0-9]{1,5})-of-(?P<count>[0-9]{1,5})"
    r"\.safetensors",
)
"""Names as transformers gives them, but not those of Mistral's layout and of adapters."""

_MAX_NAMED = 8
"""Limit on the files that a message names."""


def numbered_shards(folder: Path, index: str, elsewhere: Elsewhere = ALL_HERE) -> list[str]:
    """Return the files of a complete set, in the order of their numbers; empty if there is none.

    index: name of the index that the folder does not have, for messages

    Raises CheckpointError if numbers are missing or superfluous, or if there are several sets.
    """
    paths = {*folder.glob("*-of-*.safetensors"), *(p for p in elsewhere if p.parent == folder)}
    matches = [m for p in sorted(paths) if (m := _NUMBERED.fullmatch(p.name))]
    if not matches:
        return []
    without = f"and there is no {index}"
    sets = sorted({f"{m['stem']}-*-of-{m['count']}.safetensors" for m in matches})
    if len(sets) > 1:
        raise CheckpointError(
            f"{folder}: has several sets of shards ({_some(sets)}), {without}; remove those that"
            " are not part of the model"
        )
    stem, count, width = matches[0]["stem"], matches[0]["count"], len(matches[0]["number"])
    found = {int(m["number"]): m[0] for m in matches if is_there(folder / m[0], elsewhere)}
    first = 0 if 0 in found and int(count) not in found else 1
    wanted = range(first, first + int(count))
    absent = [f"{stem}-{n:0{width}}-of-{count}.safetensors" for n in wanted if n not in found]
    if absent:
        raise CheckpointError(
            f"{folder}: missing {_some(absent)}, {without}; download the checkpoint again"
        )
    superfluous = sorted({m[0] for m in matches} - {found[n] for n in wanted})
    if superfluous:
        raise CheckpointError(
            f"{folder}: {_some(superfluous)}: one too many for {int(count)} shards, {without};"
            " remove it if it is not part of the model"
        )
    return [found[n] for n in wanted]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
