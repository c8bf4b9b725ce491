"""Rotary sections (M-RoPE): pairs of a head that count time, height or width in images.

In text all three counts are a token's position, so that a model answers to text as without
sections. llama.cpp's graphs of such models need the key all the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from dynquant.arch.config import Natural, read_config
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, i32s

_SETS = ("rope_parameters", "rope_scaling")
_OWN = ("mrope_section", "mrope_interleaved")
SECTIONS = frozenset(_OWN)
"""Settings that are read here in rope_parameters and rope_scaling."""


@dataclass(frozen=True)
class _Sections:
    mrope_section: tuple[Natural, ...]


def split_sections(
    config: Mapping[str, Any], where: str, default: tuple[int, ...] | None = None
) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Return config.json without rotary sections, and the sections: pairs, up to four numbers.

    default: those of the family's class; None if config.json must state them

    Raises ArchitectureError if they are missing or not such numbers.
    """
    plain, stated = dict(config), {} if default is None else {"mrope_section": default}
    for name in _SETS:
        found = config.get(name)
        if not isinstance(found, dict):
            continue
        settings = cast("dict[str, Any]", found)
        stated |= {k: v for k, v in settings.items() if k == "mrope_section" and v is not None}
        rest = {k: v for k, v in settings.items() if k not in _OWN}
        for key in ("type", "rope_type"):
            if rest.get(key) == "mrope":
                rest[key] = "default"
        plain[name] = rest
    sections = read_config(_Sections, stated, f"{where}: rope_parameters").mrope_section
    if not 0 < len(sections) <= 4 or not sum(sections):
        raise ArchitectureError(
            f"{where}: rope_parameters: mrope_section is {list(sections)}; llama.cpp needs one to"
            " four numbers of rotary pairs"
        )
    return plain, sections


def section_keys(arch: str, sections: tuple[int, ...], n_rotated: int, where: str) -> Keys:
    """Return the key of the sections of heads with so many rotated weights.

    Raises ArchitectureError if they have more pairs than a head.
    """
    if sum(sections) > n_rotated // 2:
        raise ArchitectureError(
            f"{where}: mrope_section {list(sections)} has {sum(sections)} rotary pairs, but heads"
            f" have {n_rotated // 2}; llama.cpp stops at such a model"
        )
    return {f"{arch}.rope.dimension_sections": i32s([*sections, 0, 0, 0][:4])}


def unrotated_pairs(sections: tuple[int, ...], n_rotated: int, where: str) -> tuple[str, ...]:
    """Return a warning about pairs that llama.cpp does not rotate if sections are interleaved.

    Pair 3i counts time, 3i+1 height and 3i+2 width, each as often as its section says. The pairs
    that are then left count a fourth number in llama.cpp, which is zero in text, and time in
    transformers. Source: ggml_mrope_cache_init in ggml-cpu/ops.cpp.
    """
    counts, n = [*sections, 0, 0][:3], sum(sections)
    pairs = [p for p in range(n_rotated // 2) if p % n >= 3 * counts[p % n % 3]]
    if not pairs:
        return ()
    return (
        f"{where}: mrope_section is {list(sections)}: llama.cpp does not rotate {len(pairs)} of the"
        f" pairs of each head ({', '.join(map(str, pairs))}), and the model's own code does;"
        " results differ, most in long texts",
    )
