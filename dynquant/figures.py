"""Text for numbers that users read: sizes, counts and errors."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

_PREFIXES = ("", "k", "M", "G", "T", "P")


def size_text(n_bytes: int) -> str:
    """Return a size in units of disks and of memory, three digits each: `93.1 MB (88.8 MiB)`."""
    power = _power(n_bytes)
    if not power:
        return f"{n_bytes} bytes"
    prefix = _PREFIXES[power]
    binary = f"{three_digits(n_bytes / 1024**power)} {prefix.upper()}iB"
    return f"{_in_unit(n_bytes, power)} ({binary})"


def size_column(sizes: Sequence[int]) -> list[str]:
    """Return sizes for a column of a table: all in the unit of the largest, in units of disks."""
    power = _power(max(map(abs, sizes), default=0))
    return [_in_unit(n, power) for n in sizes]


def _power(n_bytes: int) -> int:
    """Return the power of 1000 of the unit in which a size has one to three digits."""
    power = 0
    while power + 1 < len(_PREFIXES) and abs(n_bytes) >= 999.5 * 1000**power:
        power += 1
    return power


def _in_unit(n_bytes: int, power: int) -> str:
    return f"{three_digits(n_bytes / 1000**power)} {_PREFIXES[power]}B"


def counted(n: int, noun: str) -> str:
    """Return a number of things as text: `1 file`, `3 files`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def three_digits(value: float) -> str:
    """Return a number with three significant digits, without an exponent: 1,230, 93.1, 0.00560."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{Decimal(f'{value:#.3g}'):f}" if value else "0"


def figure(value: float | None) -> str:
    """Return an error with three digits; a dash for None, an error that was not measured."""
    if value is None:
        return "–"
    text_ = f"{value:.3g}"
    return f"{Decimal(text_):f}" if value > 1e-8 else text_
