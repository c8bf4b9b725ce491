"""Text for numbers that users read: sizes and errors."""

from __future__ import annotations

from decimal import Decimal


def gigabytes(n_bytes: int) -> str:
    """Return a size in units of disks (GB) and of memory (GiB)."""
    if n_bytes < 10_000_000:
        return f"{n_bytes / 1e6:.2f} MB ({n_bytes / 2**20:.2f} MiB)"
    return f"{n_bytes / 1e9:.2f} GB ({n_bytes / 2**30:.2f} GiB)"


def figure(value: float | None) -> str:
    """Return an error with three digits; a dash for None, an error that was not measured."""
    if value is None:
        return "–"
    text_ = f"{value:.3g}"
    return f"{Decimal(text_):f}" if value > 1e-8 else text_
