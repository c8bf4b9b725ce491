"""GPTQ, AWQ, AutoRound: words of integers along the outputs, [inputs, outputs], not its transpose.

    NAME.qweight  I32, GPTQ [inputs * bits / 32, outputs], AWQ [inputs, outputs / 8]
    NAME.qzeros   I32 [groups, outputs * bits / 32]
    NAME.scales   [groups, outputs]
    NAME.g_idx    I32 [inputs], the group of each input; without it, groups are consecutive inputs

A row of the weight is a column of the stored matrix. Panels of columns are read and cached for the
rows that follow; a whole matrix is never in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np

from dynquant.arrays import F32, I32, U8
from dynquant.checkpoint.packed.settings import Settings, gptq_format
from dynquant.checkpoint.packed.weight import Found, float_rows, missing_parts, read_groups, widened
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import CheckpointError
from dynquant.part_cache import Parts
from dynquant.quants.stored import Packing, decode_transposed, numbers
from dynquant.quants.table import ALL, FLOATS, QuantType

PANEL_BYTES = 1 << 22
"""Packed bytes of a panel: 8 million weights of 4 bits. Reading them takes milliseconds, encoding
them a second; the piece of each row of words is kilobytes long."""

_ALIGNMENT = 64
"""The columns of a panel are a multiple of this, so that zeros of any width fill whole words."""

GPTQ_BITS = (2, 3, 4, 8)
_ACROSS = [0, 4, 1, 5, 2, 6, 3, 7]
"""The nibble of a word with each of eight outputs; the inverse of the order in which AWQ packs."""

# One in each field of a word: GPTQ's first format stores every zero minus one.
_ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}


@dataclass(frozen=True, eq=False)
class _Panel:
    """Some outputs of a weight; scale and zero are float32 [groups, outputs]."""

    words: U8
    scale: F32
    zero: F32
    groups: I32


@dataclass(frozen=True, eq=False)
class TransposedRows:
    """Rows of a weight whose words are along the outputs: (code - zero) * scale, as F32.

    shape:     [outputs, inputs]
    groups:    the group of each input; None if every group is group_size consecutive inputs
    minus_one: zeros are stored minus one
    """

    words: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    groups: StoredTensor | None
    group_size: int
    kind: Packing
    bits: int
    shape: tuple[int, ...]
    minus_one: bool
    _panels: Parts[_Panel] = field(default_factory=lambda: Parts[_Panel](), init=False, repr=False)

    @property
    def stored(self) -> QuantType:
        """F32, as decoded."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop, from the panels that contain them."""
        width = self.panel_width
        with float_rows(into, self.shape[-1]) as x:
            for index in range(start // width, -(-stop // width)):
                first, last = max(start, index * width), min(stop, (index + 1) * width)
                self._read(index, first - index * width, x[first - start : last - start])

    def _read(self, index: int, first: int, x: F32) -> None:
        """Fill x with rows of a panel, from its row `first`."""
        n_bytes = self.panel_width * self._output_bytes
        with self._panels.use(index, n_bytes, self._panel) as panel:
            decode_transposed(
                panel.words,
                self.kind,
                self.bits,
                first,
                x,
                scale=panel.scale,
                zero=panel.zero,
                groups=panel.groups,
            )

    @property
    def panel_width(self) -> int:
        """Outputs in a panel."""
        return max(_ALIGNMENT, PANEL_BYTES // self._output_bytes // _ALIGNMENT * _ALIGNMENT)

    @property
    def _output_bytes(self) -> int:
        """Packed bytes of one output."""
        return max(1, self.words.n_bytes // self.shape[0])

    def _panel(self, index: int) -> _Panel:
        n_outputs, n_inputs = self.shape
        n_groups = self.scales.shape[0]
        first = index * self.panel_width
        last = min(n_outputs, first + self.panel_width)
        zero = _columns(self.zeros, first, last, n_outputs)
        if self.groups:
            groups = read_groups(self.groups, n_groups)
        else:
            groups = np.arange(n_inputs, dtype=np.int32) // np.int32(self.group_size)
        scale = _columns(self.scales, first, last, n_outputs)
        return _Panel(
            _columns(self.words, first, last, n_outputs),
            widened(scale, self.scales.dtype, last - first),
            _zeros(self, zero, last - first),
            groups,
        )


def _columns(tensor: StoredTensor, first: int, last: int, n_outputs: int) -> U8:
    """Return outputs first..last of each row, uint8 [rows, bytes]."""
    n_rows = tensor.shape[0]
    size = tensor.n_bytes // n_rows
    low, high = first * size // n_outputs, last * size // n_outputs
    found = np.empty((n_rows, high - low), np.uint8)
    if high - low == size:
        tensor.file.read(tensor.offset, found.reshape(-1))
    else:
        for row in range(n_rows):
            tensor.file.read(tensor.offset + row * size + low, found[row])
    return found


def _zeros(weight: TransposedRows, words: U8, n: int) -> F32:
    """Decode packed zeros, float32 [groups, n]."""
    if weight.minus_one and weight.bits in _ONES:
        # As in GPTQModel, one is added to whole words: a field that overflows carries over.
        added = words.view("<u4") + np.uint32(_ONES[weight.bits])
        words = added.astype("<u4").view(np.uint8)
    zero = numbers(words, "BITS", n, weight.bits)
    if weight.minus_one and weight.bits not in _ONES:
        zero = (zero + 1) % (1 << weight.bits)
    if weight.kind == "across":
        zero = zero.reshape(len(zero), -1, 8)[:, :, _ACROSS].reshape(len(zero), n)
    return np.ascontiguousarray(zero, np.float32)


def find_transposed(tensors: Mapping[str, StoredTensor], settings: Settings, found: Found) -> None:
    """Find all weights of GPTQ or AWQ; raise CheckpointError for an unsupported number of bits."""
    is_gptq = settings.method == "gptq"
    bits = settings.number("bits" if "bits" in settings.values else "w_bit")
    size_key = "group_size" if "group_size" in settings.values else "q_group_size"
    group_sizes = [settings.number(size_key, default=-1), *_layers_group_sizes(settings)]
    known = GPTQ_BITS if is_gptq else (4,)
    if bits not in known:
        raise CheckpointError(
            f"{settings.where}: quantization_config: {settings.method} of {bits} bits is not"
            f" supported; supported: {', '.join(map(str, known))}"
        )
    names = [".qzeros", ".scales"]
    if is_gptq and settings.values.get("desc_act"):
        names += [".g_idx"]
    for name, words in tensors.items():
        base = name.removesuffix(".qweight")
        if base == name:
            continue
        if missing := missing_parts(names, tensors, base):
            found.fault(name, missing, (base + n for n in names))
            continue
        zeros, scales = tensors[base + ".qzeros"], tensors[base + ".scales"]
        groups = tensors.get(base + ".g_idx")
        parts = tuple(t.name for t in (words, zeros, scales, groups) if t)
        rows = _transposed(words, zeros, scales, groups, settings, bits, group_sizes)
        if isinstance(rows, str):
            found.fault(f"{base}.weight", rows, parts)
        else:
            found.add(f"{base}.weight", rows, parts)


def _layers_group_sizes(settings: Settings) -> list[int]:
    """Return the group sizes that GPTQModel and AutoRound state for single layers."""
    layers = (settings.values.get(key) for key in ("dynamic", "extra_config"))
    stated = (
        cast("dict[str, Any]", layer).get("group_size")
        for named in layers
        if isinstance(named, dict)
        for layer in cast("dict[str, Any]", named).values()
        if isinstance(layer, dict)
    )
    return [size for size in dict.fromkeys(stated) if isinstance(size, int)]


def _transposed(
    words: StoredTensor,
    zeros: StoredTensor,
    scales: StoredTensor,
    groups: StoredTensor | None,
    settings: Settings,
    bits: int,
    group_sizes: list[int],
) -> TransposedRows | str:
    """Return the rows of one weight, or its problem.

    group_sizes: that of the checkpoint, and those of single layers
    """
    shapes = f"qweight {list(words.shape)}, qzeros {list(zeros.shape)}, scales {list(scales.shape)}"
    if any(len(t.shape) != 2 or 0 in t.shape for t in (words, zeros, scales)):
        return f"has {shapes}, which are not matrices; download it again"
    dtypes = [t.dtype for t in (words, zeros, groups or zeros)]
    if set(dtypes) != {"I32"} or scales.dtype not in FLOATS:
        return (
            f"has words of {', '.join(dict.fromkeys(dtypes))} and scales of {scales.dtype};"
            " supported are words of I32 and scales of floats"
        )
    n_groups, n_outputs = scales.shape
    if settings.method == "awq":
        n_inputs, fits = words.shape[0], words.shape[1] * 8 == n_outputs
    else:
        # A layer may differ from config.json in the number of bits; its zeros state it.
        bits = zeros.shape[1] * 32 // n_outputs
        n_inputs = words.shape[0] * 32 // bits if bits in GPTQ_BITS else 0
        fits = n_inputs > 0 and words.shape == (n_inputs * bits // 32, n_outputs)
        fits = fits and n_inputs * bits % 32 == 0
    fits = fits and zeros.shape == (n_groups, n_outputs * bits // 32) and n_outputs * bits % 32 == 0
    if not fits:
        return f"has {shapes}, which do not fit together; download it again"
    sizes = dict.fromkeys(n_inputs if size < 1 else min(size, n_inputs) for size in group_sizes)
    fitting = [size for size in sizes if -(-n_inputs // size) == n_groups]
    if groups is None and len(fitting) != 1:
        stated = f"group_size {group_sizes[0]}"
        if fitting:
            stated = f"one of group sizes {', '.join(map(str, fitting))}, since all of them do,"
        return (
            f"has {n_inputs} inputs and scales of {n_groups} groups, which does not fit {stated}"
            " in config.json; correct config.json or download it again"
        )
    if groups and groups.shape != (n_inputs,):
        return f"has g_idx {list(groups.shape)} for {n_inputs} inputs; download it again"
    minus_one = settings.method == "gptq" and gptq_format(settings.values) != "gptq_v2"
    kind: Packing = "across" if settings.method == "awq" else "down"
    return TransposedRows(
        words,
        zeros,
        scales,
        groups,
        fitting[0] if fitting else n_inputs,
        kind,
        bits,
        (n_outputs, n_inputs),
        minus_one,
    )
