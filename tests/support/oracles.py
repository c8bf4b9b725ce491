"""Oracles for the encoders: ggml's encoders, and the decoders of gguf and llama.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
from gguf import quants

from dynquant.arrays import F32, U8
from dynquant.quants import QuantType


@cache
def ggml() -> ctypes.CDLL:
    """Return llama.cpp's library from the xllamacpp wheel; its encoder is exported as C symbols."""
    import xllamacpp

    (library,) = Path(next(iter(xllamacpp.__path__))).glob("xllamacpp*.so")
    loaded = ctypes.CDLL(str(library))
    loaded.ggml_quantize_chunk.restype = ctypes.c_size_t
    loaded.ggml_quantize_requires_imatrix.restype = ctypes.c_bool
    loaded.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        *[ctypes.c_void_p] * 2,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    loaded.ggml_validate_row_data.restype = ctypes.c_bool
    loaded.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    loaded.ggml_type_name.restype = ctypes.c_char_p
    loaded.ggml_type_size.restype = ctypes.c_size_t
    loaded.ggml_blck_size.restype = ctypes.c_int64
    return loaded


def ggml_encode(x: F32, qtype: QuantType, importance: F32 | None = None) -> U8:
    """Encode with `ggml_quantize_chunk`, the encoder to beat."""
    x = np.ascontiguousarray(x)
    blocks = np.empty((len(x), qtype.row_size(x.shape[1])), np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance).ctypes.data
    ggml().ggml_quantize_chunk(
        int(qtype.ggml_type), x.ctypes.data, blocks.ctypes.data, 0, *x.shape, weights
    )
    return blocks


def requires_importance(qtype: QuantType) -> bool:
    """Return whether ggml's encoder of a type aborts without importance."""
    required: bool = ggml().ggml_quantize_requires_imatrix(qtype.ggml_type)
    return required


def ggml_accepts(blocks: U8, qtype: QuantType) -> bool:
    """Return whether llama.cpp would load these blocks: `ggml_validate_row_data`."""
    blocks = np.ascontiguousarray(blocks)
    return ggml().ggml_validate_row_data(qtype.ggml_type, blocks.ctypes.data, blocks.nbytes)


NOT_IN_GGUF = ("Q1_0", "Q2_0")
"""Types that the gguf package (0.19) does not decode."""


def gguf_decode(blocks: U8, qtype: QuantType) -> F32:
    """Decode with the gguf package, or with llama.cpp for types that it does not have."""
    if qtype.name in NOT_IN_GGUF:
        return ggml_decode(blocks, qtype)
    with np.errstate(all="ignore"):  # random blocks may have nonfinite scales
        return quants.dequantize(blocks, qtype.ggml_type).astype(np.float32, copy=False)


def ggml_decode(blocks: U8, qtype: QuantType) -> F32:
    """Decode with llama.cpp's own function for the type."""
    blocks = np.ascontiguousarray(blocks)
    n_rows, row_size = blocks.shape
    x = np.empty((n_rows, row_size // qtype.type_size * qtype.block_size), np.float32)
    decode = getattr(ggml(), f"dequantize_row_{qtype.name.lower()}")
    decode.restype = None
    decode.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    decode(blocks.ctypes.data, x.ctypes.data, x.size)
    return x


def weighted_error(x: F32, decoded: F32, importance: F32 | None = None) -> float:
    """Return sum w (x - decoded)^2 / sum w x^2 in double precision."""
    w = np.ones(x.shape[1]) if importance is None else importance.astype(np.float64)
    exact = x.astype(np.float64)
    return float((w * (exact - decoded) ** 2).sum() / (w * exact**2).sum())


def error_at_equal_gain(x: F32, decoded: F32, importance: F32 | None = None) -> float:
    """Return 1 - cos^2 of the angle between x and decoded: the error that no gain can reduce."""
    w = np.ones(x.shape[1]) if importance is None else importance.astype(np.float64)
    a, b = x.astype(np.float64), decoded.astype(np.float64)
    return float(1 - (w * a * b).sum() ** 2 / ((w * a * a).sum() * (w * b * b).sum()))


def matrices(n_rows: int = 24, n_per_row: int = 1024) -> Iterator[tuple[str, F32]]:
    """Yield weights as in models: Gaussian, and heavy-tailed with a few outliers."""
    rng = np.random.default_rng(20261121)
    shape = (n_rows, n_per_row)
    yield "gaussian", (0.02 * rng.standard_normal(shape)).astype(np.float32)
    heavy = 0.02 * rng.standard_t(5, shape)
    heavy[rng.random(shape) < 2e-4] *= 6
    yield "student-t", heavy.astype(np.float32)


def log_normal_importance(n_per_row: int) -> F32:
    """Return importances with the spread of real imatrix files: log-normal, sigma one."""
    return np.exp(np.random.default_rng(7).standard_normal(n_per_row)).astype(np.float32)


def degenerate_rows() -> list[tuple[str, F32]]:
    """Return rows of 512 weights that break careless encoders."""
    rng = np.random.default_rng(3)
    normal = rng.standard_normal(512).astype(np.float32)
    outlier = (normal * 1e-3).astype(np.float32)
    outlier[77] = 50
    holes = normal.copy()
    holes[32:64] = holes[256:400] = 0
    rows = {
        "zero": np.zeros(512),
        "constant": np.full(512, 0.25),
        "negative constant": np.full(512, -3.0),
        "one outlier": outlier,
        "zero groups inside a block": holes,
        "subnormal": normal * 1e-41,
        "tiny": normal * 1e-30,
        "near f16's least": normal * 3e-8,
        "near f16's least scale": normal * 1e-5,
        "huge": normal * 1e30,
        "largest floats": np.sign(normal) * np.float64(3.4e38),
        "huge beside tiny": np.where(np.arange(512) % 7 == 0, 1e30, 1e-30),
        "positive": np.abs(normal) + 5,
        "negative": -np.abs(normal) - 5,
        "signed zeros": np.where(np.arange(512) % 2 == 0, -0.0, 0.0),
    }
    return [(name, np.asarray(row, np.float32).reshape(1, 512)) for name, row in rows.items()]
