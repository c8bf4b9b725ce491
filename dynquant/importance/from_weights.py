"""An importance without any text: what the weights before a matrix say about its inputs.

It is worse than activations, and better than equal weights (docs/explanation/encoders.md). With
inputs of a norm that are of size one and independent, the mean squares behind it are

    matrices that read a norm     gain^2, of the norm's weights
    attn_output                   of channel j: sum_k (V[j, k] gain[k])^2, of the values' rows
    ffn_down                      of channel j: the same of the rows j of gate and of up, multiplied
    all others                    one

Biases and the attention's averaging are left out: only the channels of one matrix are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynquant.arch.base import Model, ModelTensor
from dynquant.arrays import F32, U8
from dynquant.distribution import our_version
from dynquant.errors import ImportanceError
from dynquant.importance.imatrix import write_imatrix
from dynquant.keys import string
from dynquant.quants import decode
from dynquant.tensors import row_bytes

F64 = NDArray[np.float64]

DATASET = "no text: estimated from the weights"
"""What stands in an imatrix in place of its texts; plans, manifests and outputs repeat it."""

_AFTER = {
    "attn_norm": ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_q_a", "attn_kv_a_mqa"),
    "attn_q_a_norm": ("attn_q_b",),
    "attn_kv_a_norm": ("attn_kv_b", "attn_k_b", "attn_v_b"),
    "ffn_norm": (
        *("ffn_gate", "ffn_up", "ffn_gate_up", "ffn_gate_exps", "ffn_up_exps"),
        *("ffn_gate_up_exps", "ffn_gate_shexp", "ffn_up_shexp"),
    ),
    "output_norm": ("output",),
}
"""The matrices that read each norm."""

_NORM_OF = {role: norm for norm, roles in _AFTER.items() for role in roles}
_PIECE = 1 << 22  # weights that are decoded at a time


def write_from_weights(model: Model, out: Path) -> None:
    """Write an imatrix of a model's matrices that is estimated from their weights.

    Raises ImportanceError if it cannot be written.
    """
    tensors = {tensor.name: tensor for tensor in model.tensors}
    entries: dict[str, tuple[F32, Sequence[int]]] = {}
    for tensor in model.tensors:
        if len(tensor.shape) < 2 or not tensor.name.endswith(".weight"):
            continue
        n_heads = _value_heads(model, tensor.parts.layer)
        rows = _importance(tensor, tensors, n_heads)
        scale = rows.mean(axis=1, keepdims=True)
        rows = np.divide(rows, scale, out=np.ones_like(rows), where=scale > 0)
        entries[tensor.name] = rows.astype(np.float32), [1] * len(rows)
    part = out.with_name(f"{out.name}.part")
    try:
        write_imatrix(
            part,
            entries,
            datasets=[DATASET],
            chunk_count=0,
            chunk_size=0,
            more_keys={
                "dynquant.version": string(our_version()),
                "dynquant.imatrix.source": string("weights"),
            },
        )
        part.replace(out)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ImportanceError(f"{out}: cannot be written: {e.strerror}") from e


def _importance(tensor: ModelTensor, tensors: Mapping[str, ModelTensor], n_heads: int) -> F64:
    """Return the importance of a tensor's channels, float64 [n, n_per_row]: a row, or one for each
    expert.

    n_heads: heads of the values
    """
    role, n = tensor.parts.role, tensor.n_per_row
    if role == "attn_output":
        found = _row_squares(_beside(tensor, "attn_v", tensors), tensors)
        return np.ones((1, n)) if found is None else _of_queries(found, n, n_heads)
    if role.startswith("ffn_down"):
        end = role.removeprefix("ffn_down")
        found = np.ones((1, n))
        for other in ("ffn_gate", "ffn_up"):
            rows = _row_squares(_beside(tensor, other + end, tensors), tensors)
            if rows is not None and rows.shape[1] == n:
                found = found * rows
        return found
    return _gain_squares(tensor, tensors)[None]


def _beside(
    tensor: ModelTensor, role: str, tensors: Mapping[str, ModelTensor]
) -> ModelTensor | None:
    """Return the tensor of another role in the same layer."""
    return tensors.get(tensor.name.replace(f"{tensor.parts.role}.weight", f"{role}.weight"))


def _gain_squares(tensor: ModelTensor, tensors: Mapping[str, ModelTensor]) -> F64:
    """Return the squares of the gains of the norm that a tensor reads, float64 [n_per_row]."""
    norm = _beside(tensor, _NORM_OF.get(tensor.parts.role, ""), tensors)
    if norm is None or norm.n_per_row != tensor.n_per_row:
        return np.ones(tensor.n_per_row)
    return np.square(next(_rows(norm))[0].astype(np.float64))


def _row_squares(tensor: ModelTensor | None, tensors: Mapping[str, ModelTensor]) -> F64 | None:
    """Return the mean squares that the outputs of a matrix have, float64 [n_matrices, n_rows]."""
    if tensor is None:
        return None
    gains = _gain_squares(tensor, tensors)
    found = [(np.square(rows.astype(np.float64)) * gains).sum(axis=1) for rows in _rows(tensor)]
    return np.concatenate(found).reshape(prod(tensor.shape[:-2]), -1)


def _of_queries(values: F64, n: int, n_heads: int) -> F64:
    """Return the mean squares of values for each head of the queries, float64 [1, n].

    values: float64 [1, n_heads * n_per_head]
    """
    if not n_heads or values.shape[1] % n_heads or n % values.shape[1]:
        return np.ones((1, n))
    heads = values.reshape(n_heads, -1)
    return np.repeat(heads, n // values.shape[1], axis=0).reshape(1, n)


def _value_heads(model: Model, layer: int | None) -> int:
    """Return the heads of the values in a layer; 0 if the model does not say."""
    key = model.keys.get(f"{model.architecture}.attention.head_count_kv")
    found = key.value if key is not None else 0
    if isinstance(found, tuple):
        found = found[layer] if layer is not None and layer < len(found) else 0
    return found if isinstance(found, int) else 0


def _rows(tensor: ModelTensor) -> Iterator[F32]:
    """Yield the rows of a tensor, float32 [n, n_per_row], some at a time."""
    source = tensor.source
    step = max(1, _PIECE // tensor.n_per_row)
    for start in range(0, tensor.n_rows, step):
        stop = min(start + step, tensor.n_rows)
        content: U8 = np.empty((stop - start) * row_bytes(source), np.uint8)
        source.read(start, stop, content)
        yield decode(content.reshape(stop - start, -1), source.stored, tensor.n_per_row)
