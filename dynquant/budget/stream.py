"""How much each part of a layer adds to the residual stream, and how large the logits are.

All from an imatrix and a sample of rows: with h the mean squares of a matrix's inputs, its outputs
have the mean square sum h w^2. The stream begins as the embedding; attention and the feed-forward
network of each layer add their outputs to it, which are taken as uncorrelated. An output that is
a tenth of the stream passes on a tenth of its relative error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np

from dynquant.arch.base import TensorName
from dynquant.arrays import F32
from dynquant.budget.sample import read_runs, runs_of, usual_inputs
from dynquant.plan.plan import Plan, TensorPlan
from dynquant.quants.codec import decode

WEIGHTS = 1 << 17
"""Weights of a tensor that are looked at, about."""

_WRITERS = {
    "attn_output": "attn",
    "ssm_out": "ssm",
    "ffn_down": "ffn",
    "ffn_down_exps": "exps",
    "ffn_down_shexp": "shexp",
}
"""Matrices whose outputs are added to the stream, and their branches."""

_POST_NORMS = {"post_attention_norm": "attn", "post_ffw_norm": "ffn"}
"""Norms of what a branch adds, in layers that have both."""


@dataclass(frozen=True)
class Stream:
    """Parts of the residual stream.

    shares: by layer and branch, the mean square of what the branch adds over that of the stream
            after it; nothing where it is not known
    logits: their mean square; None where it is not known
    """

    shares: Mapping[tuple[int, str], float]
    logits: float | None

    def share(self, name: str) -> float | None:
        """Return the share of the branch that a tensor is in."""
        parts = TensorName.parse(name)
        if parts.layer is None:
            return None
        return self.shares.get((parts.layer, branch_of(parts.role)))


def branch_of(role: str) -> str:
    """Return the branch that a role is in."""
    if role.endswith(("_exps", "_shexp")):
        return role.rpartition("_")[2]
    return role.partition("_")[0]


def stream_of(plan: Plan) -> Stream:
    """Look at a sample of the rows of a plan's model, with its importance.

    Raises what reading rows raises.
    """
    tensors = {t.name: t for t in plan.tensors}
    head = tensors.get("output.weight") or tensors.get("token_embd.weight")
    logits = _mean_square(plan, head) if head else None
    start = _start(plan, tensors)
    if start is None:
        return Stream({}, logits)
    shares: dict[tuple[int, str], float] = {}
    whole = start
    for layer, roles in _layers(plan.tensors).items():
        adds = _added(plan, roles)
        for branches in (("attn", "ssm"), ("ffn", "exps", "shexp")):
            whole += sum(adds.get(b, 0.0) for b in branches)
            shares |= {(layer, b): adds[b] / whole for b in branches if adds.get(b)}
    return Stream(shares, logits)


def _layers(tensors: Iterable[TensorPlan]) -> dict[int, dict[str, TensorPlan]]:
    """Return the tensors of each layer by role, in the order of the layers."""
    found: dict[int, dict[str, TensorPlan]] = {}
    for t in tensors:
        parts = TensorName.parse(t.name)
        if parts.layer is not None:
            found.setdefault(parts.layer, {}).setdefault(parts.role, t)
    return dict(sorted(found.items()))


def _start(plan: Plan, tensors: Mapping[str, TensorPlan]) -> float | None:
    """Return the mean square of the embedding, as the first layer reads it."""
    table = tensors.get("token_embd.weight")
    if table is None or not plan.importance:
        return None
    scale = _number(plan, "embedding_scale", 1.0)
    # The graphs of Gemma multiply by the root of the width, of which no key speaks.
    if plan.architecture.startswith("gemma"):
        scale = table.n_per_row**0.5
    rows = np.concatenate([x for _, x in _rows(plan, table)])
    return scale**2 * float(np.square(rows, dtype=np.float64).mean())


def _added(plan: Plan, roles: Mapping[str, TensorPlan]) -> dict[str, float]:
    """Return the mean square of what each branch of a layer adds, where it is known."""
    scale = _number(plan, "residual_scale", 1.0) ** 2
    found: dict[str, float] = {}
    for role, branch in _WRITERS.items():
        if role in roles and (its := _mean_square(plan, roles[role])) is not None:
            found[branch] = scale * its * (_of_routing(plan) if branch == "exps" else 1.0)
    if all(role in roles for role in _POST_NORMS):
        for role, branch in _POST_NORMS.items():
            gains = np.concatenate([x for _, x in _rows(plan, roles[role])])
            of_norm = scale * float(np.square(gains, dtype=np.float64).mean())
            parts = [b for b in found if b == branch or (branch == "ffn" and b != "attn")]
            total = sum(found[b] for b in parts)
            found |= {b: of_norm * found[b] / total for b in parts if total}
    return found


def _of_routing(plan: Plan) -> float:
    """Return what the experts of a token add together beside the mean of one.

    Their weights are taken as equal; normed, they add up to one.
    """
    used = _number(plan, "expert_used_count", 1.0)
    scale = _number(plan, "expert_weights_scale", 1.0) or 1.0
    return scale**2 / used if used else 1.0


def _number(plan: Plan, name: str, default: float) -> float:
    key = plan.keys.get(f"{plan.architecture}.{name}")
    value = default if key is None else key.value
    many = cast("tuple[float, ...]", value if isinstance(value, tuple) else (value,))
    return float(max(many))


def _mean_square(plan: Plan, tensor: TensorPlan) -> float | None:
    """Return the mean square of a matrix's outputs; None if its inputs are not known.

    Equal importance was not measured.
    """
    its = plan.importance.get(tensor.name)
    if its is None:
        return None
    sums, weights = 0.0, 0.0
    for matrix, x in _rows(plan, tensor):
        h = its.of(matrix)
        if h is None or np.ptp(h) == 0:
            continue
        tokens = its.sums(matrix)[1] if its.is_counted else 1.0
        squares = np.square(x, dtype=np.float64) * usual_inputs(h)
        sums += tokens * float(squares.sum(axis=1).mean())
        weights += tokens
    return sums / weights if weights else None


def _rows(plan: Plan, tensor: TensorPlan) -> Iterator[tuple[int, F32]]:
    """Yield the number of each matrix, and a sample of its rows, float32 [n, n_per_row]."""
    its = plan.importance.get(tensor.name)
    n_matrices = its.n_matrices if its else 1
    n, source = tensor.n_per_row, plan.sources[tensor.name].source
    by_matrix: dict[int, list[F32]] = {}
    for run in runs_of(tensor.n_weights // n, n_matrices, n, WEIGHTS):
        stored = source.stored
        blocks = read_runs(source, [run]).reshape(-1, stored.row_size(n))
        by_matrix.setdefault(run.matrix, []).append(decode(blocks, stored, n))
    for matrix, parts in by_matrix.items():
        yield matrix, np.concatenate(parts)
