"""What a conversion copied from an earlier output, and why it encoded the rest, as lines."""

from __future__ import annotations

from collections.abc import Iterator

from dynquant.conversion.reuse.decide import Reused
from dynquant.figures import counted, size_text
from dynquant.name_lists import grouped

_SHOWN = 4


def reused_lines(reused: Reused) -> Iterator[str]:
    """Yield how much was copied, and a line for each reason to encode."""
    n_encoded = sum(map(len, reused.encoded.values()))
    yield (
        f"{reused.path}: {len(reused.names)} of"
        f" {counted(len(reused.names) + n_encoded, 'tensor')} copied,"
        f" {size_text(reused.n_bytes)}"
    )
    for reason, names in reused.encoded.items():
        shown = grouped(names)
        more = ", \u2026" if len(shown) > _SHOWN else ""
        yield f"encoded {len(names)}: {reason}: {', '.join(shown[:_SHOWN])}{more}"
