"""Random changes of valid files for fuzzing: of bytes, and of JSON by its structure."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from random import Random
from typing import Any

NUMBERS = (0, 1, 2, 255, 2**15, 2**24 + 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)
"""Replacements of a length, an offset or a count."""

VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 10**9, -(10**9), 2**31, 2**63, 10**30, 10**4000),
    *(0.0, -0.0, 0.5, 1e-300, 1e300, float("inf"), float("-inf"), float("nan")),
    *("", "a", "NaN", "\0", "../../../etc/passwd", "/dev/zero", "\x1b[2J", "x" * 5000, "\u2581"),
    *([], [[]], [0], [-1], ["a"], [None], {}, {"a": 1}, {"type": "Sequence"}, [1e300] * 8),
)
"""Replacements of a JSON value."""

WORDS = (b"null", b"-1", b"0", b"1e999", b"NaN", b"[]", b"{}", b'""', b"true", b"9" * 30)
WORDS += (b"9" * 5000, b'"\\ud800"', b"[" * 300, b'{"a":' * 300, b"\0", b"\xff\xfe", b"*a", b"&a ")
"""Replacements of a number in a text; also inserted anywhere."""

_DIGITS = re.compile(rb"\d+")


def mutated(content: bytes, random: Random) -> bytes:
    """Return bytes with one to four changes."""
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        content = _changed(content, random)
    return content


def _changed(content: bytes, random: Random) -> bytes:
    n = len(content)
    # Half of the changes are near the front, because headers are there.
    at = random.randrange(n + 1) if random.random() < 0.5 else random.randrange(min(n, 256) + 1)
    size = random.choice((1, 2, 4, 8, 16, 64, 256, 4096))
    other = random.randrange(n + 1)
    match random.randrange(9):
        case 0:
            flipped = bytes([content[at] ^ 1 << random.randrange(8)]) if at < n else b""
            return content[:at] + flipped + content[at + 1 :]
        case 1:
            width = random.choice((1, 4, 8))
            number = random.choice((*NUMBERS, n, n + 1)) % (1 << 8 * width)
            return content[:at] + number.to_bytes(width, "little") + content[at + width :]
        case 2:
            return content[:at]
        case 3:
            return content[:at] + content[at + size :]
        case 4:
            return content[: at + size] + content[at:]
        case 5:
            return content[:at] + content[other : other + size] + content[at:]
        case 6:
            return content[:at] + content[other : other + size] + content[at + size :]
        case 7:
            return content[:at] + random.choice(WORDS) + content[at:]
        case _:
            found = _DIGITS.search(content, at)
            if found is None:
                return content + random.choice(WORDS)
            return content[: found.start()] + random.choice(WORDS) + content[found.end() :]


def mutated_json(content: bytes, random: Random) -> bytes:
    """Return a JSON text with one to four changed values, removed keys or repeated keys."""
    value = json.loads(content)
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = _changed_value(value, random)
    text = json.dumps(value)
    if random.random() < 0.05:
        text = text.replace("{", '{"a": 1, "a": 2, ', 1)
    return text.encode()


def _changed_value(root: Any, random: Random) -> Any:
    parent, key = [root], 0
    holder: Any = parent
    while True:
        value = holder[key]
        if not isinstance(value, (dict, list)) or not value or random.random() < 0.1:
            break
        holder = value
        keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = random.choice(keys)
    match random.randrange(5):
        case 0 if holder is not parent:
            del holder[key]
        case 1:
            for _ in range(random.choice((1, 3, 80))):
                holder[key] = [holder[key]]
        case 2:
            holder[key] = deepcopy(_elsewhere(root, random))
        case 3 if isinstance(holder, dict):
            holder[random.choice(("", "a", "type", "../x", "\x1b"))] = deepcopy(holder[key])
        case _:
            holder[key] = deepcopy(random.choice(VALUES))
    return parent[0]


def _elsewhere(value: Any, random: Random) -> Any:
    while isinstance(value, (dict, list)) and value and random.random() < 0.8:
        value = random.choice(list(value.values()) if isinstance(value, dict) else value)
    return value
