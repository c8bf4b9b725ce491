"""llama.cpp's own inputs of every matrix of a GGUF, summed here: an oracle for imatrix files.

llama.cpp calls a function before and after each operation of its graph (`cb_eval`). After a product
of matrices its inputs are read here and summed in double precision, as llama-imatrix does in single
precision. The wheel exports the functions that this needs, but the fields of a tensor have to be
read from the struct: `check_layout` compares its layout with what the library's functions return.

The graph is computed as exactly as llama.cpp can: F32 caches and plain attention.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ctypes import POINTER, Structure, c_bool, c_char, c_char_p, c_int, c_int64, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynquant.evaluate.runtime.binding import (
    FLASH_DISABLED,
    FLASH_ENABLED,
    TYPE_F32,
    Batch,
    library,
    reason,
)
from dynquant.evaluate.runtime.model import LoadedModel
from dynquant.importance.entry import Entry

F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

TYPE_I32 = 26

ONLY_FUSED = ("minimax-m3",)
"""Architectures whose attention llama.cpp computes correctly with fused attention only."""


class Tensor(Structure):
    """The beginning of struct ggml_tensor in ggml.h."""

    _fields_ = (
        ("type", c_int),
        ("buffer", c_void_p),
        ("ne", c_int64 * 4),
        ("nb", c_size_t * 4),
        ("op", c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", c_void_p * 10),
        ("view_src", c_void_p),
        ("view_offs", c_size_t),
        ("data", c_void_p),
        ("name", c_char * 64),
    )


class _InitParams(Structure):
    """Struct ggml_init_params."""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


_Callback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)


@dataclass
class Inputs:
    """Sums over the inputs of a tensor's matrices.

    counts:  int64 [n_matrices], the number of inputs of each
    linear:  float64 [n_matrices, n_channels], the sum of each channel
    squares: float64 [n_matrices, n_channels], the sum of its squares
    """

    counts: I64
    linear: F64
    squares: F64

    @classmethod
    def nothing(cls, n_matrices: int, n_channels: int) -> Inputs:
        shape = n_matrices, n_channels
        return cls(np.zeros(n_matrices, np.int64), np.zeros(shape), np.zeros(shape))

    def add(self, matrix: int, rows: NDArray[np.float32]) -> None:
        """Add inputs of one matrix, float32 [n, n_channels]."""
        x = rows.astype(np.float64)
        self.counts[matrix] += len(x)
        self.linear[matrix] += x.sum(axis=0)
        self.squares[matrix] += np.square(x).sum(axis=0)

    def together(self) -> Inputs:
        """Return the sums over all matrices, as of one."""
        return Inputs(
            self.counts.sum(keepdims=True),
            self.linear.sum(axis=0, keepdims=True),
            self.squares.sum(axis=0, keepdims=True),
        )


def differences(entry: Entry, inputs: Inputs) -> tuple[float, float]:
    """Return how much an imatrix differs from llama.cpp's inputs: in squares and in signed sums.

    Squares relative to their norm; signed sums relative to the largest norm that inputs with these
    squares can have, because positive and negative inputs may cancel.
    """
    shape = inputs.squares.shape
    squares = entry.sums(0, entry.n_values).astype(np.float64).reshape(shape)
    linear = entry.linear_sums(0, entry.n_values)
    assert linear is not None, "dynquant writes them"
    largest = np.sqrt(inputs.squares * inputs.counts[:, None])
    norm = np.linalg.norm
    return (
        float(norm(squares - inputs.squares) / norm(inputs.squares)),
        float(norm(linear.astype(np.float64).reshape(shape) - inputs.linear) / norm(largest)),
    )


def has_counts(entry: Entry, inputs: Inputs) -> bool:
    """Return whether an imatrix has llama.cpp's counts: one of each expert, or one of all."""
    return entry.n_rows in (1, len(inputs.counts)) and bool((inputs.counts == entry.counts).all())


def matching(entry: Entry, inputs: Inputs) -> Inputs:
    """Return inputs in the form of an entry.

    A tensor that the file has as a matrix and llama.cpp as a stack (`attn_output_a` of DeepSeek V4)
    has one row of sums: llama-quantize reads as many as the file's tensor has.
    """
    is_joined = entry.n_values == inputs.squares.shape[1] < inputs.squares.size
    return inputs.together() if is_joined else inputs


def windows_of_text(path: Path, text: bytes, context: int, n: int) -> I32:
    """Return the first windows of a text by llama.cpp's tokens, as llama-imatrix cuts them.

    returns: int32 [n, context]; the BOS token, if the model has one, is the first of each
    """
    with LoadedModel(path, vocab_only=True) as model:
        windows = model.tokenize(text, special=False)[: n * context].reshape(n, context)
        if model.bos is not None:
            windows[:, 0] = model.bos
    return windows


@cache
def _ggml() -> Any:
    """Return the library with the types of the functions that are used here."""
    lib = ctypes.CDLL(library()._name)
    for name, result, arguments in (
        ("ggml_init", c_void_p, [_InitParams]),
        ("ggml_free", None, [c_void_p]),
        ("ggml_new_tensor_3d", c_void_p, [c_void_p, c_int, c_int64, c_int64, c_int64]),
        ("ggml_new_tensor_2d", c_void_p, [c_void_p, c_int, c_int64, c_int64]),
        ("ggml_permute", c_void_p, [c_void_p, c_void_p, c_int, c_int, c_int, c_int]),
        ("ggml_mul_mat", c_void_p, [c_void_p, c_void_p, c_void_p]),
        ("ggml_mul_mat_id", c_void_p, [c_void_p, c_void_p, c_void_p, c_void_p]),
        ("ggml_set_name", c_void_p, [c_void_p, c_char_p]),
        ("ggml_get_name", c_void_p, [c_void_p]),
        ("ggml_get_data", c_void_p, [c_void_p]),
        ("ggml_nbytes", c_size_t, [c_void_p]),
        ("ggml_op_desc", c_char_p, [c_void_p]),
        ("ggml_op_name", c_char_p, [c_int]),
        ("ggml_type_name", c_char_p, [c_int]),
        ("ggml_backend_tensor_get", None, [c_void_p, c_void_p, c_size_t, c_size_t]),
    ):
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    return lib


def check_layout(struct: Any = Tensor) -> None:
    """Raise AssertionError if the library's tensors have another layout than a struct."""
    lib, at = _ggml(), struct.from_address
    context = lib.ggml_init(_InitParams(1 << 20, None, False))
    try:
        matrices = lib.ggml_new_tensor_3d(context, TYPE_F32, 5, 7, 3)
        inputs = lib.ggml_new_tensor_3d(context, TYPE_F32, 5, 2, 4)
        ids = lib.ggml_new_tensor_2d(context, TYPE_I32, 2, 4)
        lib.ggml_set_name(matrices, b"blk.0.matrices")
        permuted = at(lib.ggml_permute(context, matrices, 1, 2, 0, 3))
        flat = lib.ggml_new_tensor_2d(context, TYPE_F32, 5, 6)
        product = at(lib.ggml_mul_mat(context, flat, inputs))
        chosen = at(lib.ggml_mul_mat_id(context, matrices, inputs, ids))
        first = at(matrices)
        found = {
            "type": [lib.ggml_type_name(x.type) for x in (first, at(ids))],
            "ne": [tuple(first.ne), tuple(permuted.ne)],
            "nb": [tuple(first.nb), tuple(permuted.nb)],
            "op": [lib.ggml_op_name(x.op) if 0 < x.op < 64 else x.op for x in (product, chosen)],
            "src": [tuple(product.src)[:3], tuple(chosen.src)[:4]],
            "view_src": permuted.view_src,
            "data": first.data,
            "name": first.name,
            "name's address": lib.ggml_get_name(matrices) - matrices,
        }
        expected = {
            "type": [b"f32", b"i32"],
            "ne": [(5, 7, 3, 1), (3, 5, 7, 1)],
            "nb": [(4, 20, 140, 420), (140, 4, 20, 420)],
            "op": [b"MUL_MAT", b"MUL_MAT_ID"],
            "src": [(flat, inputs, None), (matrices, inputs, ids, None)],
            "view_src": matrices,
            "data": lib.ggml_get_data(matrices),
            "name": b"blk.0.matrices",
            "name's address": struct.name.offset,
        }
    finally:
        lib.ggml_free(context)
    for field, value in expected.items():
        if found[field] != value:
            raise AssertionError(f"ggml_tensor of this wheel: {field} {found[field]}, not {value}")


def _at(address: int) -> Tensor:
    return Tensor.from_address(address)


def _content(address: int) -> NDArray[Any]:
    """Return a copy of a tensor's numbers, float32 or int32 [ne3, ne2, ne1, ne0]."""
    lib, tensor = _ggml(), _at(address)
    kinds = {TYPE_F32: np.float32, TYPE_I32: np.int32}
    if tensor.type not in kinds:
        raise AssertionError(f"{tensor.name.decode()}: type {tensor.type} is not read here")
    content = np.empty(lib.ggml_nbytes(address), np.uint8)
    lib.ggml_backend_tensor_get(address, content.ctypes.data, 0, content.nbytes)
    return np.ndarray(
        tuple(tensor.ne)[::-1], kinds[tensor.type], content.data, 0, tuple(tensor.nb)[::-1]
    )


class _Collector:
    """Sums the inputs of all products with a tensor of the file."""

    def __init__(self) -> None:
        self.found: dict[str, Inputs] = {}
        self.problem: Exception | None = None
        self.callback = _Callback(self._called)

    def _called(self, address: int, ask: bool, _: int | None) -> bool:
        """Return whether a result is wanted; after it is computed, whether to continue."""
        try:
            kind = _ggml().ggml_op_desc(address)
            if kind not in (b"MUL_MAT", b"MUL_MAT_ID"):
                return not ask
            weight, inputs, ids = tuple(_at(address).src)[:3]
            assert weight is not None and inputs is not None, "a product has two factors"
            name = _at(weight).name.decode().split("#")[-1]
            if not name.endswith(".weight"):
                return not ask
            if not ask:
                if ids is None:
                    self._dense(name, _at(weight), _content(inputs))
                else:
                    self._experts(name, _at(weight), _content(inputs), _content(ids))
        except Exception as e:  # raised again by `inputs_of`: none passes through C
            self.problem = e
            return False
        return True

    def _of(self, name: str, n_matrices: int, n_channels: int) -> Inputs:
        return self.found.setdefault(name, Inputs.nothing(n_matrices, n_channels))

    def _dense(self, name: str, weight: Tensor, x: NDArray[np.float32]) -> None:
        """Add the inputs of one matrix, or of several that are used in turn (heads of MLA)."""
        n = weight.ne[2]
        inputs = self._of(name, n, x.shape[-1])
        for pieces in x:
            for number, rows in enumerate(pieces):
                inputs.add(number % n, rows)

    def _experts(self, name: str, weight: Tensor, x: NDArray[np.float32], ids: I32) -> None:
        """Add the inputs of experts.

        x:   float32 [1, n_tokens, n_chosen or 1, n_channels]
        ids: int32 [1, 1, n_tokens, n_chosen]
        """
        n_tokens, n_chosen = ids.shape[2:]
        inputs = self._of(name, weight.ne[2], x.shape[-1])
        rows = np.broadcast_to(x[0], (n_tokens, n_chosen, x.shape[-1]))
        for expert in np.unique(ids):
            inputs.add(int(expert), rows[ids[0, 0] == expert])


def inputs_of(path: Path, windows: Sequence[Sequence[int]]) -> dict[str, Inputs]:
    """Run windows of token ids through a GGUF; return the inputs of each tensor.

    Each head of latent attention, and each expert, is a matrix. Raises RuntimeError if
    llama.cpp rejects the file.
    """
    collector = _Collector()
    check_layout()
    with _context(path, max(map(len, windows)), collector) as context:
        for window in windows:
            _decode(context, window, collector)
    return collector.found


class _Keeper(_Collector):
    """Keeps the inputs of matrices that are not experts."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, NDArray[np.float32]] = {}

    def _dense(self, name: str, weight: Tensor, x: NDArray[np.float32]) -> None:
        del weight
        self.rows[name] = np.array(x.reshape(-1, x.shape[-1]))

    def _experts(self, name: str, weight: Tensor, x: NDArray[np.float32], ids: I32) -> None:
        del name, weight, x, ids


def inputs_by_window(
    path: Path, windows: Sequence[Sequence[int]], threads: int
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Run windows of token ids through a GGUF; yield each window's inputs of each dense matrix.

    Inputs are float32 [n_tokens, n_channels]. Raises RuntimeError as `inputs_of` does.
    """
    keeper = _Keeper()
    check_layout()
    with _context(path, max(map(len, windows)), keeper, threads) as context:
        for window in windows:
            _decode(context, window, keeper)
            yield keeper.rows


@contextmanager
def _context(path: Path, n: int, collector: _Collector, threads: int = 1) -> Iterator[int]:
    """Load a model with caches for n tokens, whose products the collector sees."""
    lib = library()
    with LoadedModel(path) as model:
        parameters = lib.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = n
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.type_k = parameters.type_v = TYPE_F32
        is_fused = model.architecture in ONLY_FUSED
        parameters.flash_attn_type = FLASH_ENABLED if is_fused else FLASH_DISABLED
        parameters.cb_eval = ctypes.cast(collector.callback, c_void_p).value
        context = lib.llama_init_from_model(model.handle, parameters)
        if not context:
            raise RuntimeError(f"{path}: llama.cpp makes no context: {reason()}")
        try:
            yield context
        finally:
            lib.llama_free(context)


def _decode(context: int, window: Sequence[int], collector: _Collector) -> None:
    """Compute one window, with an output for every token: else the last layer skips some."""
    lib, n = library(), len(window)
    lib.llama_memory_clear(lib.llama_get_memory(context), True)
    sequence = (ctypes.c_int32 * 1)(0)
    batch = Batch(
        n_tokens=n,
        token=(ctypes.c_int32 * n)(*window),
        pos=(ctypes.c_int32 * n)(*range(n)),
        n_seq_id=(ctypes.c_int32 * n)(*[1] * n),
        seq_id=(POINTER(ctypes.c_int32) * n)(*[sequence] * n),
        logits=(ctypes.c_int8 * n)(*[1] * n),
    )
    status = lib.llama_decode(context, batch)
    if collector.problem:
        raise collector.problem
    if status:
        raise RuntimeError(f"llama_decode returns {status}")
