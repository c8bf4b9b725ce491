"""Numbers as people read them: sizes and errors."""

from __future__ import annotations

from decimal import Decimal


def gigabytes(n_bytes: int) -> str:
    """Return a size as people compare it with disks (GB) and with memory (GiB)."""
    if n_bytes < 10_000_000:
        return f"{n_bytes / 1e6:.2f} MB ({n_bytes / 2**20:.2f} MiB)"
    return f"{n_bytes / 1e9:.2f} GB ({n_bytes / 2**30:.2f} GiB)"


def figure(value: float | None) -> str:
    """Return an error as people compare it, with three digits; a dash where nobody measured."""
    if value is None:
        return "–"
    text_ = f"{value:.3g}"
    return f"{Decimal(text_):f}" if value > 1e-8 else text_
