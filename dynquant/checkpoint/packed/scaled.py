"""Finds weights with separate scales, and reports those that cannot be read.

    X, X_scale_inv or X_scale               FP8 and INT8: one number a weight
    X, X_scale, X_scale_2                   NVFP4 of ModelOpt: U8, two codes a byte
    X_packed, X_scale, X_global_scale       NVFP4 of compressed-tensors; X_packed is U8
    X_packed or X, X_scale                  MXFP4; scales are exponents, X is U8 or I8
    X_packed, X_scale, X_shape, ...         integers of compressed-tensors; X_packed is I32

The stored tensors and their shapes determine the format, not the lists of layers in config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod

from dynquant.checkpoint.packed.mxfp4 import Mxfp4
from dynquant.checkpoint.packed.nvfp4 import FactorOfAll, Nvfp4, is_kept_as_blocks
from dynquant.checkpoint.packed.rows import (
    Cells,
    CodedRows,
    Factor,
    PackedZeros,
    cells_of,
    claimed_shape,
)
from dynquant.checkpoint.packed.settings import Settings
from dynquant.checkpoint.packed.weight import WIDENED, Found, Grid, can_widen, missing_parts
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.tensors import Kept

Tensors = Mapping[str, StoredTensor]

FLOAT8 = ("F8_E4M3", "F8_E5M2")
SCALES = ("_scale_inv", "_scale")
"""Suffixes of the names of scales."""


def find_scaled(tensors: Tensors, settings: Settings, found: Found) -> None:
    """Find all weights that have separate scales."""
    shapes: dict[tuple[tuple[int, ...], ...], tuple[int, ...]] = {}
    for name, tensor in tensors.items():
        base = name.removesuffix("_packed")
        scale = _scale_of(tensors, base)
        if base != name and tensor.dtype == "U8":
            if scale is None:
                found.fault(name, str(missing_parts(["_scale"], tensors, base)))
            else:
                _fp4(tensors, settings, found, base, tensor, scale, ("_global_scale", True))
        elif base != name and tensor.dtype == "I32":
            _integers(tensors, settings, found, base, tensor, shapes)
        elif scale is None:
            continue
        elif tensor.dtype == "U8" or (tensor.dtype == "I8" and settings.method == "fp8"):
            _fp4(tensors, settings, found, name, tensor, scale, ("_scale_2", False))
        elif tensor.dtype in (*FLOAT8, "I8"):
            _numbers(tensors, settings, found, tensor, scale)
    usual = SCALES[0] if settings.method == "fp8" else SCALES[1]
    for name, tensor in tensors.items():
        if tensor.dtype in FLOAT8 and name not in found.consumed:
            found.fault(
                name,
                f"is stored as {tensor.dtype}, but its scales *{usual} are missing; download it"
                " again",
            )


def _scale_of(tensors: Tensors, base: str) -> StoredTensor | None:
    for suffix in SCALES:
        if found := tensors.get(base + suffix):
            return found
    if not base.endswith(".weight"):
        return None
    stem = base.removesuffix("weight")  # the names of DeepSeek-V4 and Mistral
    return tensors.get(stem + "scale") or tensors.get(stem + "qscale_weight")


def _numbers(
    tensors: Tensors,
    settings: Settings,
    found: Found,
    codes: StoredTensor,
    scale: StoredTensor,
) -> None:
    """Find a weight of FP8 or INT8, one number a byte."""
    zero = tensors.get(codes.name + "_zero_point")
    parts = tuple(t.name for t in (codes, scale, zero) if t)
    cells = _cells(settings, found, codes, codes.shape, scale, parts)
    if cells is None:
        return
    zeros: Grid | None = None
    if zero:
        if zero.shape != scale.shape or not can_widen(zero):
            text = (
                f"has zero points {zero.dtype} {list(zero.shape)}, but scales {list(scale.shape)}"
            )
            found.fault(codes.name, text, parts)
            return
        zeros = _grid(zero, codes.shape, cells, settings)
    number = WIDENED[codes.dtype]
    grid = _grid(scale, codes.shape, cells, settings)
    found.add(codes.name, CodedRows(codes, codes.shape, number, cells, grid, zeros), parts)


def _fp4(
    tensors: Tensors,
    settings: Settings,
    found: Found,
    base: str,
    codes: StoredTensor,
    scale: StoredTensor,
    second: tuple[str, bool],
) -> None:
    """Find a weight of FP4; second: suffix of the factor of the scales, and whether it divides."""
    suffix, divides = second
    of_all = tensors.get(base + suffix)
    parts = tuple(t.name for t in (codes, scale, of_all) if t)
    shape = (*codes.shape[:-1], 2 * codes.shape[-1]) if codes.shape else ()
    if scale.dtype in ("U8", "F8_E8M0") and of_all is None:
        if len(shape) > 1 and scale.shape == (*shape[:-1], shape[-1] / 32):
            found.add(base, Mxfp4(codes, scale, shape), parts)
        else:
            found.fault(base, _misfit(shape, scale, "MXFP4 has one scale for 32 weights"), parts)
        return
    if of_all is None:
        found.fault(base, str(missing_parts([suffix], tensors, base)), parts)
        return
    if prod(of_all.shape) not in (1, prod(shape[:-2])) or not can_widen(of_all):
        text = (
            f"has *{suffix} {of_all.dtype} {list(of_all.shape)}, but one number for each matrix or"
            " for all is supported; download it again"
        )
        found.fault(base, text, parts)
        return
    cells = _cells(settings, found, codes, shape, scale, parts)
    if cells is None:
        return
    factor = Factor(of_all, prod(of_all.shape), divides)
    grid = _grid(scale, shape, cells, settings)
    kept = None
    if factor.n == prod(shape[:-2]) and is_kept_as_blocks(shape, scale):
        factors = FactorOfAll(of_all, (factor.n,), divides)
        kept = Kept(Nvfp4(codes, scale, shape), factors)
    found.add(base, CodedRows(codes, shape, "FP4", cells, grid, factor=factor), parts, kept)


def _integers(
    tensors: Tensors,
    settings: Settings,
    found: Found,
    base: str,
    codes: StoredTensor,
    shapes: dict[tuple[tuple[int, ...], ...], tuple[int, ...]],
) -> None:
    """Find a weight of integers packed into words.

    shapes: the values of `X_shape`, by the shapes of the packed weight and of its scales. Only one
            `X_shape` is read for each pair of shapes, not one for each of 60,000 experts; the
            others are checked when their rows are read.
    """
    names = ["_scale", "_shape"]
    if _is_asymmetric(settings):
        names += ["_zero_point"]
    if _is_reordered(settings):
        names += ["_g_idx"]
    if missing := missing_parts(names, tensors, base):
        found.fault(codes.name, missing, (base + n for n in names))
        return
    scale, claim = tensors[base + "_scale"], tensors[base + "_shape"]
    zero, groups = tensors.get(base + "_zero_point"), tensors.get(base + "_g_idx")
    parts = tuple(t.name for t in (codes, scale, claim, zero, groups) if t)
    kind = (codes.shape, scale.shape)
    if kind not in shapes:
        shapes[kind] = claimed_shape(claim) if claim.dtype in ("I64", "I32") else ()
    shape = shapes[kind]
    if len(shape) < 2 or min(shape) < 1 or shape[:-1] != codes.shape[:-1][-len(shape) + 1 :]:
        text = (
            f"is packed as {list(codes.shape)}, which does not fit *_shape {list(shape)}; download"
            " it again"
        )
        found.fault(base, text, parts)
        return
    shape = (*codes.shape[:-1], shape[-1])
    bits = _bits(settings, codes.shape[-1], shape[-1])
    if bits is None:
        text = (
            f"is packed as {list(codes.shape)}, which is not possible for {list(shape)} with any"
            " number of bits; download it again"
        )
        found.fault(base, text, parts)
        return
    cells = _cells(settings, found, codes, shape, scale, parts)
    if cells is None:
        return
    if groups and (groups.shape != shape[-1:] or groups.dtype != "I32"):
        text = (
            f"has groups {groups.dtype} {list(groups.shape)}, but rows of {shape[-1]} weights;"
            " download it again"
        )
        found.fault(base, text, parts)
        return
    zeros: PackedZeros | None = None
    if zero:
        n_matrices = prod(shape[:-2])
        down = -(-cells.n_rows * bits // 32)
        if zero.shape != (*shape[:-2], down, cells.n_columns) or zero.dtype != "I32":
            text = (
                f"has zero points {zero.dtype} {list(zero.shape)}, but scales {list(scale.shape)}"
            )
            found.fault(base, text, parts)
            return
        zeros = PackedZeros(zero, bits, cells.n_rows, cells.n_columns, n_matrices)
    grid = _grid(scale, shape, cells, settings)
    rows = CodedRows(
        codes,
        shape,
        "BITS",
        cells,
        grid,
        zeros,
        float(1 << (bits - 1)),
        groups=groups,
        claim=claim,
        bits=bits,
    )
    found.add(base, rows, parts)


def _is_asymmetric(settings: Settings) -> bool:
    """Whether every group of layers has zero points."""
    groups = settings.weights
    return bool(groups) and all(weights.get("symmetric") is False for weights in groups)


def _is_reordered(settings: Settings) -> bool:
    """Whether the groups of every group of layers are in the order of the activations."""
    groups = settings.weights
    orders = (str(weights.get("actorder")).lower() for weights in groups)
    return bool(groups) and all(order in ("group", "dynamic", "true") for order in orders)


def _bits(settings: Settings, n_words: int, n_per_row: int) -> int | None:
    """Return the width of integers if n_per_row of them fill n_words without gaps."""
    fitting = [b for b in range(1, 9) if -(-n_per_row * b // 32) == n_words]
    stated = [weights.get("num_bits") for weights in settings.weights]
    return next((b for b in stated if b in fitting), fitting[0] if len(fitting) == 1 else None)


def _cells(
    settings: Settings,
    found: Found,
    codes: StoredTensor,
    shape: tuple[int, ...],
    scale: StoredTensor,
    parts: tuple[str, ...],
) -> Cells | None:
    """Return the rectangles of the scales of a weight; None after recording a fault."""
    name = parts[0].removesuffix("_packed")
    if not can_widen(scale, e8m0=settings.e8m0):
        hint = " without scale_fmt ue8m0 in config.json" * (scale.dtype == "U8")
        text = f"has scales stored as {scale.dtype}, which is not supported{hint}"
        found.fault(name, text, parts)
        return None
    cells = None
    if len(shape) > 1 and 0 not in shape and 0 not in scale.shape:
        only_blocks = settings.method == "fp8" and codes.dtype in FLOAT8
        cells = cells_of(shape, scale.shape, settings.blocks, only_blocks=only_blocks)
    if cells is None:
        note = "supported are one scale, one for each row, and equal groups"
        if settings.blocks:
            blocks = " or ".join(str(list(block)) for block in settings.blocks)
            note = f"config.json states blocks of {blocks}"
        found.fault(name, _misfit(shape, scale, note), parts)
    return cells


def _misfit(shape: tuple[int, ...], scale: StoredTensor, note: str) -> str:
    return (
        f"is {list(shape)}, but its scales are {list(scale.shape)}, which does not fit: {note};"
        " correct config.json or download it again"
    )


def _grid(tensor: StoredTensor, shape: tuple[int, ...], cells: Cells, settings: Settings) -> Grid:
    n_matrices = 1 if cells.shared else prod(shape[:-2])
    return Grid(tensor, n_matrices * cells.n_rows, cells.n_columns, settings.e8m0)
