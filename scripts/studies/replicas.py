"""Replicas of a model: the same function, met by an encoder as other blocks.

The channels of the residual stream, of the feed-forward layers and of the values are permuted, and
some negated, in all tensors that speak of them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from losses import WINDOW
from numpy.typing import NDArray

import dynquant
from dynquant.arch.base import Model, ModelTensor
from dynquant.arrays import F32, I64, U8
from dynquant.importance.imatrix import Imatrix, write_imatrix
from dynquant.importance.moments import Moments, MomentsWriter, full_matrix, upper_triangle
from dynquant.quants import ALL, CORE, Batch, QuantType
from dynquant.tensors import row_bytes

F64 = NDArray[np.float64]

# What the rows and columns of each role count: an axis with one order and one choice of signs. The
# order of queries and keys is the rotation's, and their rows share no block, so they stay.
_ROWS = {
    "attn_output": "hidden",
    "attn_v": "value",
    "ffn_down": "hidden",
    "ffn_gate": "gate",
    "ffn_up": "up",
}
_COLUMNS = {
    "attn_k": "hidden",
    "attn_norm": "norm",
    "attn_output": "heads",
    "attn_q": "hidden",
    "attn_v": "hidden",
    "ffn_down": "up",
    "ffn_gate": "hidden",
    "ffn_norm": "norm",
    "ffn_up": "hidden",
    "output": "hidden",
    "output_norm": "norm",
    "token_embd": "hidden",
}
_LEFT_ALONE = {"attn_k_norm", "attn_q_norm", "rope_freqs"}


@dataclass(frozen=True)
class Axis:
    """New channel i is old channel order[i], negated where signs[i] is -1."""

    order: I64
    signs: F32

    @classmethod
    def drawn(cls, rng: np.random.Generator, n: int) -> Axis:
        """Draw an order and signs."""
        return cls(rng.permutation(n), rng.choice(np.array([-1, 1], np.float32), n))

    @property
    def unsigned(self) -> Axis:
        """The same order; for what signs pass through or must not reach."""
        return Axis(self.order, np.ones_like(self.signs))


def draw_axes(model: Model, seed: int) -> dict[str, Axis]:
    """Draw the channels' orders and signs; those of values within each head, the same in all."""
    rng = np.random.default_rng(seed)
    shapes = {t.name: t.shape for t in model.tensors}
    n_ffn, n_hidden = shapes["blk.0.ffn_up.weight"]
    n_heads = int(model.keys[f"{model.architecture}.attention.head_count"].value)  # type: ignore
    n_head = shapes["blk.0.attn_output.weight"][1] // n_heads
    hidden, up, head = (Axis.drawn(rng, n) for n in (n_hidden, n_ffn, n_head))

    def repeated(n: int) -> Axis:
        starts = np.arange(0, n, n_head)[:, None]
        return Axis((starts + head.order).ravel(), np.tile(head.signs, len(starts)))

    return {
        "hidden": hidden,
        "norm": hidden.unsigned,
        "up": up,
        "gate": up.unsigned,
        "value": repeated(shapes["blk.0.attn_v.weight"][0]),
        "heads": repeated(n_heads * n_head),
    }


@dataclass(frozen=True)
class InMemory:
    """Rows that are in memory, as float32."""

    x: F32
    stored: QuantType = ALL["F32"]

    @property
    def shape(self) -> tuple[int, ...]:
        """As in numpy, slowest dimension first."""
        return self.x.shape

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        into[:] = (
            np.ascontiguousarray(self.x.reshape(-1, self.shape[-1])[start:stop])
            .view(np.uint8)
            .ravel()
        )


def replica_moments(moments: Moments, model: Model, axes: dict[str, Axis], path: Path) -> Moments:
    """Write and read second moments with the channels in the axes' order."""
    roles = {t.name: t.parts.role for t in model.tensors}
    inputs = list({i.name: i for n, i in moments.inputs.items() if n in roles}.values())
    writer = MomentsWriter(path, inputs, moments.metadata)
    writer.begin()
    for each in inputs:
        found = moments.arrays(each.tensors[0])
        axis = axes[_COLUMNS[roles[each.tensors[0]]]]
        for row, correlations in enumerate(found["correlations"]):
            ordered = full_matrix(correlations, each.n)[axis.order][:, axis.order]
            ordered *= axis.signs[:, None] * axis.signs
            writer.write(f"{each.name}.correlations", upper_triangle(ordered), row)
        writer.write(f"{each.name}.squares", found["squares"][:, axis.order])
        writer.write(f"{each.name}.counts", found["counts"])
        held_out = found["held_out"][..., axis.order] * axis.signs
        writer.write(f"{each.name}.held_out", held_out)
    writer.finish()
    return dynquant.load_moments(path)


def weights_of(tensor: ModelTensor) -> F32:
    """Read a tensor as float32, in its shape."""
    source = tensor.source
    raw = np.empty(tensor.n_rows * row_bytes(source), np.uint8)
    source.read(0, tensor.n_rows, raw)
    batch = Batch(raw, source.stored, tensor.n_per_row, ALL["F32"])
    return CORE.encode(batch, measure=False).blocks.view(np.float32).reshape(tensor.shape)


def replica(model: Model, axes: dict[str, Axis] | None) -> Model:
    """Return the model in memory, its channels in the axes' order; None leaves them."""
    tensors: list[ModelTensor] = []
    for t in model.tensors:
        x, role = weights_of(t), t.parts.role
        if axes is not None and role not in _LEFT_ALONE:
            if role not in _COLUMNS:
                raise SystemExit(f"error: {t.name}: no rule for its channels; take --replicas 1")
            is_bias = t.name.endswith(".bias")
            rows = _ROWS.get(role) if x.ndim > 1 or is_bias else None
            if rows is not None:
                x = (x[axes[rows].order].T * axes[rows].signs).T
            if not is_bias:
                columns = axes[_COLUMNS[role]]
                x = x[..., columns.order] * columns.signs
        tensors.append(ModelTensor(t.name, InMemory(np.ascontiguousarray(x))))
    return replace(model, tensors=tuple(tensors))


def replica_imatrix(imatrix: Imatrix, model: Model, axes: dict[str, Axis], path: Path) -> Imatrix:
    """Write and read the imatrix with the channels in the axes' order."""
    roles = {t.name: t.parts.role for t in model.tensors}
    entries: dict[str, tuple[F32, list[int]]] = {}
    linear: dict[str, F32] = {}
    for name, entry in imatrix.entries.items():
        sums = entry.sums(0, entry.n_values).reshape(entry.n_rows, -1)
        signed = entry.linear_sums(0, entry.n_values)
        if name in roles:
            axis = axes[_COLUMNS[roles[name]]]
            sums = sums[:, axis.order]
            if signed is not None:
                linear[name] = signed.reshape(sums.shape)[:, axis.order] * axis.signs
        entries[name] = sums, list(entry.counts)
    write_imatrix(
        path,
        entries,
        datasets=imatrix.datasets,
        chunk_count=0,
        chunk_size=WINDOW,
        linear=linear,
    )
    return dynquant.load_imatrix(path)
