"""The quant types dynquant encodes: names and sizes, as GGUF defines them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType

from dynquant.errors import EncodeError


@dataclass(frozen=True)
class QuantType:
    """A block format of GGUF.

    ggml_type:  its number in GGUF files
    block_size: weights in a block; type_size: bytes of a block
    needs_importance: it has too few bits to be useful without an imatrix; a plan requires one
    """

    name: str
    ggml_type: int
    block_size: int
    type_size: int
    description: str
    needs_importance: bool = False

    @property
    def bpw(self) -> float:
        """Bits per weight."""
        return 8 * self.type_size / self.block_size

    @property
    def is_float(self) -> bool:
        """Whether a block is a single weight, so that any row length fits."""
        return self.block_size == 1

    def row_size(self, n_per_row: int) -> int:
        """Return the bytes of a row of n_per_row weights.

        Raises EncodeError if the row is not a whole number of blocks.
        """
        if n_per_row % self.block_size:
            raise EncodeError(
                f"a row of {n_per_row} weights is no multiple of {self.name}'s block of"
                f" {self.block_size}; take a type with smaller blocks"
            )
        return n_per_row // self.block_size * self.type_size


_NOT_IN_GGUF = {"Q2_0": (42, 64, 18)}
"""Number, block size and type size of types that llama.cpp has and the gguf package (0.19) does not
have, from ggml.h and ggml-common.h. test_quants.py compares all types with llama.cpp's library."""


def _quant_type(name: str, description: str) -> QuantType:
    """Return a type with the number and sizes of the gguf package, if that has it."""
    if name not in GGMLQuantizationType.__members__:
        return QuantType(name, *_NOT_IN_GGUF[name], description)
    ggml_type = GGMLQuantizationType[name]
    return QuantType(
        name,
        int(ggml_type),
        *GGML_QUANT_SIZES[ggml_type],
        description,
        needs_importance=name in _NEED_IMPORTANCE,
    )


_ROWS = (
    ("F32", "IEEE single precision: stored as it is computed with"),
    ("F16", "IEEE half precision: 11 significant bits, up to 65504"),
    ("BF16", "bfloat16: 8 significant bits, the range of F32"),
    ("Q8_0", "8-bit quants, one scale per 32 weights"),
    ("Q6_K", "6-bit quants, an 8-bit scale per 16 weights"),
    ("Q5_1", "5-bit quants, a scale and a min per 32 weights"),
    ("Q5_K", "5-bit quants, a 6-bit scale and min per 32 weights"),
    ("Q5_0", "5-bit quants, one scale per 32 weights"),
    ("Q4_1", "4-bit quants, a scale and a min per 32 weights"),
    ("Q4_K", "4-bit quants, a 6-bit scale and min per 32 weights"),
    ("IQ4_NL", "4-bit quants on a non-linear grid, one scale per 32 weights"),
    ("Q4_0", "4-bit quants, one scale per 32 weights"),
    ("NVFP4", "4-bit floats, an 8-bit float scale per 16 weights"),
    ("IQ4_XS", "4-bit quants on a non-linear grid, a 6-bit scale per 32 weights"),
    ("MXFP4", "4-bit floats, a power of two per 32 weights"),
    ("IQ3_S", "512 points of four weights with free signs, a 4-bit scale per 32 weights"),
    ("Q3_K", "3-bit quants, a 6-bit scale per 16 weights"),
    ("IQ3_XXS", "256 points of four weights, a 4-bit scale per 32 weights"),
    ("Q2_K", "2-bit quants, a 4-bit scale and min per 16 weights"),
    ("IQ2_S", "1024 points of eight weights with free signs, a 4-bit scale per 16 weights"),
    ("IQ2_XS", "512 points of eight weights, a 4-bit scale per 16 weights"),
    ("Q2_0", "2-bit quants from -1 to 2, one scale per 64 weights"),
    ("IQ2_XXS", "256 points of eight weights, a 4-bit scale per 32 weights"),
    ("TQ2_0", "ternary in 2 bits, one scale per 256 weights"),
    ("IQ1_M", "2048 ternary points of eight weights, a 3-bit scale per 16 weights"),
    ("TQ1_0", "ternary, five weights to a byte, one scale per 256 weights"),
    ("IQ1_S", "2048 ternary points of eight weights, a 3-bit scale per 32 weights"),
    ("Q1_0", "signs, one scale per 128 weights"),
)

# The types for which llama-quantize requires an imatrix (tensor_requires_imatrix in
# llama-quant.cpp): with so few codes, it matters most which weights are decoded well.
_NEED_IMPORTANCE = ("IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S")

ALL: dict[str, QuantType] = {name: _quant_type(name, description) for name, description in _ROWS}
"""Every type that can be encoded and decoded, by GGUF name, from most to fewest bits."""

FLOATS = {name: ALL[name] for name in ("F32", "F16", "BF16")}
"""The float types of checkpoints, one number a weight; safetensors has the same names."""

KEPT = {
    name: _quant_type(name, description)
    for name, description in (
        ("I8", "8-bit integers"),
        ("I16", "16-bit integers"),
        ("I32", "32-bit integers: tables such as the experts of each token"),
        ("I64", "64-bit integers"),
        ("F64", "IEEE double precision"),
    )
}
"""Types of GGUF that are copied, neither encoded nor decoded: a tensor of such a type keeps it.
safetensors has the same names."""


def quant_type(name: str) -> QuantType:
    """Return the type of that name, in any case; raise EncodeError naming the nearest one."""
    found = ALL.get(name.upper())
    if found is None:
        raise EncodeError(unknown_type(name))
    return found


def unknown_type(name: str) -> str:
    """Return the message for a name that is not a quant type, with the nearest valid one."""
    near = difflib.get_close_matches(name.upper(), ALL, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else ""
    if name.upper() in GGMLQuantizationType.__members__:
        return (
            f"{name!r} is a type of GGUF, but none that weights are encoded in"
            " (`dynquant types` lists those)"
        )
    if f"MOSTLY_{name.upper()}" in LlamaFileType.__members__:
        return f"{name!r} is llama-quantize's name of a mixture, not a quant type{hint}"
    return f"{name!r} is not a quant type{hint} (`dynquant types` lists them)"
