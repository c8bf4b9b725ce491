"""The importance of experts that the calibration text chose seldom or never.

A router sends each expert its own share of the tokens. With few of them, the mean squares of an
expert are mostly chance: a channel that a few tokens excite looks important. What is known of all
experts is then a better estimate, and the expert's mean squares are for channels that it has seen
often. The posterior mean of a model in which experts vary around a common shape is a mixture:

    importance of expert e = scale_e * (n_e * shape_e + k * common) / (n_e + k)

n_e is the number of its tokens, and k the tokens that the common shape counts as (`shrink`): the
variance of one token's squares, divided by the variance between experts. shape_e are the mean
squares of expert e divided by their mean over all channels, scale_e. The encoders compare channels
of one matrix only, so that the scale of an expert has no effect on its blocks. It may differ a lot,
because the inputs of `ffn_down` are the expert's activations; without the division, one loud expert
would be the mean of all.

Experts of `ffn_gate` and `ffn_up` read the same hidden state: `common` is the layer's mean, the
mean of shape_e over the experts with data, each weighted by n_e / (n_e + k), so that experts with
many tokens count equally, however popular they are. The channels of `ffn_down` are the neurons of
an expert, and neuron i of one expert has nothing to do with neuron i of another: `common` is one
for all channels.

Everything is added in one order, so that all machines give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import F32

F64 = NDArray[np.float64]

SHRINK = 64
"""Tokens that the common shape counts as, unless a recipe sets `shrink`. Measured on tiny-moe by
scripts/studies/shrink_experts.py; the table is in docs/guides/importance.md."""

Unseen = Literal["mean", "uniform", "error"]
"""What experts without data have: the common shape, equal weights, or no plan."""


@dataclass(frozen=True)
class Policy:
    """What experts with few tokens have, and those without any.

    shrink: tokens that the common shape counts as; with 0, experts have only their own figures
    unseen: what experts without data have; "error" also refuses tensors without any
    """

    shrink: int = SHRINK
    unseen: Unseen = "mean"


DEFAULT = Policy()
"""The policy of a recipe that does not set it."""

ALONE = Policy(0, "uniform")
"""The policy of files that record none: early versions used the figures as they are."""


@dataclass(frozen=True, eq=False)
class Common:
    """What the experts of a tensor have in common.

    shape: float64 [n_per_row], relative importance of the channels; its mean is 1
    scale: mean importance of a channel
    """

    shape: F64
    scale: float

    @classmethod
    def of(
        cls, experts: Iterable[tuple[F32, int]], shrink: int, *, same_inputs: bool
    ) -> Self | None:
        """Return the mean of experts with data, given as sums [n_per_row] and count; None of none.

        shrink:      as in `Policy`
        same_inputs: whether channel i is the same for all experts
        """
        shape, scale, total = np.zeros(1), 0.0, 0.0
        for sums, count in experts:
            own, loudness = _shape(sums, count)
            weight = count / (count + shrink)
            shape, scale, total = shape + weight * own, scale + weight * loudness, total + weight
        if not total:
            return None
        return cls(shape / total if same_inputs else np.ones_like(shape), scale / total)

    def mixed(self, sums: F32, count: int, shrink: int) -> F32:
        """Return the importance of an expert with data, float32 [n_per_row]."""
        own, scale = _shape(sums, count)
        return _float32(scale * ((count * own + shrink * self.shape) / (count + shrink)))

    @property
    def importance(self) -> F32:
        """The importance of an expert without data, float32 [n_per_row]."""
        return _float32(self.scale * self.shape)


def _shape(sums: F32, count: int) -> tuple[F64, float]:
    """Return mean squares divided by their mean, and that mean."""
    means = sums.astype(np.float64) / count
    scale = sum_in_order(means) / len(means)
    return means / scale, scale


def sum_in_order(values: F64) -> float:
    """Return the sum of an array, added in the same order on every machine."""
    while len(values) > 1:
        half = len(values) // 2
        rest = values[2 * half :]
        values = values[:half] + values[half : 2 * half]
        values[: len(rest)] += rest
    return float(values[0])


def _float32(values: F64) -> F32:
    return np.minimum(values, np.finfo(np.float32).max).astype(np.float32)
