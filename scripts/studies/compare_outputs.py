"""The error of matrices' outputs on text that no imatrix has seen, with one importance or another.

    pip install -e '.[dev,calibrate]'
    dynquant imatrix MODEL --text OTHER --moments layers -o other.imatrix.gguf
    python scripts/studies/compare_outputs.py MODEL --moments other.moments.safetensors \
        --imatrix FILE [--types IQ4_NL,IQ2_XXS] [--layers 2,9,17]

The held-out windows of the file of moments judge: tr(E H' E'), E the errors of the weights. It has
no luck of a network behind it, as KL divergence has, and says nothing of what a model makes of the
error. For each type and role, relative to equal weights of all channels, geometric means over the
layers:

    imatrix    the imatrix's mean squares
    means      and its means
    magnitude  equal channels, errors weighted by the magnitude of the weights, as ggml does
    gains      estimated from the weights before a matrix: the squares of the gains of its norm; for
               ffn_down, the mean squares of the rows of gate and of up, multiplied; for
               attn_output, those of the values
    sqrt       the square roots of these estimates
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from replicas import weights_of
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.arch.base import ModelTensor
from dynquant.importance.audit import Importance, audit
from dynquant.importance.moments import read_moments
from dynquant.quants import ALL, decode, encode

NORMS = {
    "attn_norm": ("attn_q", "attn_k", "attn_v"),
    "ffn_norm": ("ffn_gate", "ffn_up"),
}
COLUMNS = ("imatrix", "means", "magnitude", "gains", "sqrt")


class Estimates:
    """What the weights of a model say about the inputs of its matrices."""

    def __init__(self, tensors: dict[str, ModelTensor], n_heads: int) -> None:
        self._tensors, self._n_heads = tensors, n_heads

    def of(self, tensor: ModelTensor) -> Any:
        """Return mean squares of the channels, float64 [n_per_row]."""
        n = tensor.n_per_row
        if tensor.parts.role == "ffn_down":
            return self._rows(tensor, "ffn_gate") * self._rows(tensor, "ffn_up")
        if tensor.parts.role == "attn_output":
            heads = self._rows(tensor, "attn_v").reshape(self._n_heads, -1)
            return np.repeat(heads, n // heads.size, axis=0).ravel()
        return self._gains(tensor)

    def _beside(self, tensor: ModelTensor, role: str) -> ModelTensor:
        return self._tensors[tensor.name.replace(tensor.parts.role, role)]

    def _gains(self, tensor: ModelTensor) -> Any:
        for norm, roles in NORMS.items():
            if tensor.parts.role in roles:
                return np.square(weights_of(self._beside(tensor, norm)).astype(np.float64))
        return np.ones(tensor.n_per_row)

    def _rows(self, tensor: ModelTensor, role: str) -> Any:
        other = self._beside(tensor, role)
        return np.square(weights_of(other).astype(np.float64)) @ self._gains(other)


def errors_of(x: Any, name: str, importance: Importance, estimate: Any, seen: Any) -> list[float]:
    """Return the error of each choice relative to that of equal weights."""
    n = x.shape[1]
    one, w, mean = np.ones(n), importance.of(0), importance.mean(0)
    estimate = estimate / estimate.mean()

    def error(importance: Any, **more: Any) -> float:
        blocks = encode(x, name, importance.astype(np.float32), **more)
        return float(np.square((x - decode(blocks, name, n)).astype(np.float64) @ seen.T).sum())

    found = [
        error(w),
        error(w, mean=mean) if mean is not None else error(w),
        error(one, weighting="magnitude"),
        error(estimate),
        error(np.sqrt(estimate)),
    ]
    equal = error(one)
    return [value / equal for value in found]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--moments", type=Path, required=True, help="of text unseen by --imatrix")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--types", default="IQ4_NL,IQ2_XXS")
    parser.add_argument("--layers", default="1")
    given = parser.parse_args()
    model = dynquant.load_model(given.model)
    tensors = {tensor.name: tensor for tensor in model.tensors}
    known, _ = audit(dynquant.load_imatrix(given.imatrix), model.tensors)
    moments = read_moments(given.moments)
    n_heads = int(model.keys[f"{model.architecture}.attention.head_count_kv"].value)  # type: ignore
    estimates = Estimates(tensors, n_heads)
    layers = {int(layer) for layer in given.layers.split(",")}
    found: dict[tuple[str, str], list[list[float]]] = defaultdict(list)
    for name, tensor in tensors.items():
        if name not in moments.inputs or tensor.parts.layer not in layers:
            continue
        seen = moments.arrays(name)["held_out"][0].astype(np.float64)
        for type_name in given.types.upper().split(","):
            if tensor.n_per_row % ALL[type_name].block_size == 0:
                x, estimate = weights_of(tensor), estimates.of(tensor)
                errors = errors_of(x, type_name, known[name], estimate, seen)
                found[type_name, tensor.parts.role].append(errors)
    table = Table("type", "role", *COLUMNS, box=None, title=f"{given.model.name}")
    for (type_name, role), errors in found.items():
        means = np.exp(np.log(errors).mean(axis=0))
        table.add_row(type_name, role, *(f"{value:.3f}" for value in means))
    Console(width=None if sys.stdout.isatty() else 100).print(table)


if __name__ == "__main__":
    main()
