"""Find blocks that no encoder writes: scales that are not finite, codes that a type does not have.

A decoded weight is a scale times small integers, so it is infinite or NaN only if the scale is: f16
scales reach 65504, and no product of one with a block's integers overflows float32. Checking only
the scales is many times as fast as decoding. MXFP4 is the exception: with scales of 2^126 and 2^127
the larger levels overflow.

Source: the layouts of ggml-common.h, and ggml_validate_row_data in ggml-quants.c, which checks the
f16 scales and MXFP4's exponent. It accepts any NVFP4 scale and any ternary code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import U8
from dynquant.quants.codec import decode
from dynquant.quants.table import ALL, QuantType

Mask = NDArray[np.bool_]

_F16_SCALES = {
    **dict.fromkeys(("Q4_0", "Q5_0", "Q8_0", "IQ4_NL", "Q1_0", "Q2_0"), (0,)),
    **dict.fromkeys(("IQ4_XS", "IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_S"), (0,)),
    **dict.fromkeys(("Q4_1", "Q5_1", "Q4_K", "Q5_K"), (0, 2)),
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q6_K": (208,),
    "TQ1_0": (52,),
    "TQ2_0": (64,),
}
"""Byte offsets of the f16 numbers in a block."""

_SCALE = "a scale that is not finite"

# The byte of five ternary digits, or of four and a zero, is the number they make, as a fraction of
# 243 in 256ths, rounded up (csrc/tq1_0.h).
_FIVE_DIGITS = bytes(-(-256 * v // 243) for v in range(243))
_FOUR_DIGITS = bytes(-(-256 * v // 243) for v in range(0, 243, 3))


@dataclass(frozen=True)
class BadBlocks:
    """Blocks with the same problem: how many, and the index of the first."""

    what: str
    count: int
    first: int


def bad_blocks(blocks: U8, qtype: QuantType) -> list[BadBlocks]:
    """Return the problems of blocks of a type; none for types in which every byte is valid.

    blocks: uint8 [n_blocks, qtype.type_size], C order
    """
    found: list[BadBlocks] = []
    for what, check in _CHECKS.get(qtype.name, ()):
        wrong = check(blocks)
        if count := int(np.count_nonzero(wrong)):
            found.append(BadBlocks(what, count, int(wrong.argmax())))
    return found


def _f16_scale(offset: int) -> Callable[[U8], Mask]:
    # Infinity and NaN have an exponent of ones: bits 2 to 6 of the upper byte.
    return lambda blocks: (blocks[:, offset + 1] & 0x7C) == 0x7C


def _iq1_m_scale(blocks: U8) -> Mask:
    # The scale is in the upper four bits of four words from byte 48; these two hold its upper byte.
    return ((blocks[:, 55] & 0x70) == 0x70) & ((blocks[:, 53] & 0xC0) == 0xC0)


def _mxfp4_scale(blocks: U8) -> Mask:
    return blocks[:, 0] == 255


def _mxfp4_overflow(blocks: U8) -> Mask:
    wrong = blocks[:, 0] >= 253
    wrong &= blocks[:, 0] < 255
    found = np.flatnonzero(wrong)
    if len(found):
        wrong[found] = ~np.isfinite(decode(blocks[found], ALL["MXFP4"], 32)).all(axis=1)
    return wrong


def _nvfp4_scale(blocks: U8) -> Mask:
    return np.any((blocks[:, :4] & 0x7F) == 0x7F, axis=1, keepdims=True)[:, 0]


def _tq1_0_codes(blocks: U8) -> Mask:
    wrong = np.zeros(len(blocks), np.bool_)
    for codes, valid in ((blocks[:, :48], _FIVE_DIGITS), (blocks[:, 48:52], _FOUR_DIGITS)):
        # Almost always there is nothing to find, and this is the fastest way to know.
        if codes.tobytes().translate(None, valid):
            wrong |= np.any(~np.isin(codes, list(valid)), axis=1, keepdims=True)[:, 0]
    return wrong


def _tq2_0_codes(blocks: U8) -> Mask:
    codes = blocks[:, :64]
    return np.any(codes & codes >> 1 & 0x55, axis=1, keepdims=True)[:, 0]


def _number(word: str, exponent: int) -> Callable[[U8], Mask]:
    mask = np.array(exponent, word)
    return lambda blocks: (blocks.view(word)[:, 0] & mask) == mask


_Check = tuple[str, Callable[[U8], Mask]]


def _f16_scales(name: str) -> tuple[_Check, ...]:
    return tuple((_SCALE, _f16_scale(offset)) for offset in _F16_SCALES[name])


_NUMBER = "a number that is not finite"

_CHECKS: dict[str, tuple[_Check, ...]] = {
    **{name: _f16_scales(name) for name in _F16_SCALES},
    "TQ1_0": (
        *_f16_scales("TQ1_0"),
        ("a byte that is not a valid group of ternary codes", _tq1_0_codes),
    ),
    "TQ2_0": (*_f16_scales("TQ2_0"), ("a code of 3, which is not ternary", _tq2_0_codes)),
    "IQ1_M": ((_SCALE, _iq1_m_scale),),
    "MXFP4": (
        ("a scale that is not a number (255)", _mxfp4_scale),
        ("a scale that makes weights overflow", _mxfp4_overflow),
    ),
    "NVFP4": (("a scale that is not a number (127)", _nvfp4_scale),),
    "F16": ((_NUMBER, _number("<u2", 0x7C00)),),
    "BF16": ((_NUMBER, _number("<u2", 0x7F80)),),
    "F32": ((_NUMBER, _number("<u4", 0x7F800000)),),
    "F64": ((_NUMBER, _number("<u8", 0x7FF0000000000000)),),
}
"""The problems that blocks of each type can have, and how to find them. In all other types, every
code is valid, and so is every integer."""
