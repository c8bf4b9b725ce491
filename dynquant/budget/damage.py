"""How much a model loses by errors of a tensor: by its role and its place in the depth.

To first order the KL divergence of a quantized model is a sum over its tensors, a factor times the
relative error: a group of tensors has ten times the divergence at ten times the error.

The matrix that makes the logits has the factor that its model shows (stream.py): relative errors
times the mean square of the logits are the errors of the logits, whose divergence is known.

The factors of layers are geometric means of trained models (scripts/studies/fit_damage.py), drawn
towards their neighbours where only one model has the role: a dense model of four layers,
SmolLM2-135M, Gemma 3 270M, and a mixture with latent attention. Within a quarter of the depth, they
differ by what the layers of the model add to the residual stream: the first layers and the last
often add most. They say what matters more, and only roughly how much a model loses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import exp, log
from types import MappingProxyType
from typing import NamedTuple

from dynquant.arch.base import TensorName
from dynquant.budget.stream import Stream, branch_of, stream_of
from dynquant.plan.plan import Plan

PARTS = 4
"""Parts of the depth that have different factors."""

_Parts = tuple[float, float, float, float]

_PRIORS: Mapping[str, _Parts] = {
    "attn_q": (0.9, 0.3, 0.45, 0.25),
    "attn_k": (0.6, 0.55, 0.6, 0.3),
    "attn_v": (1.8, 0.8, 0.95, 0.6),
    "attn_output": (1.5, 0.6, 0.8, 0.45),
    "attn_q_a": (3.5, 0.4, 0.75, 0.3),
    "attn_q_b": (1.5, 0.8, 1.5, 0.8),
    "attn_kv_a_mqa": (2.5, 2.0, 3.0, 1.5),
    "attn_k_b": (1.0, 0.6, 0.8, 0.5),
    "attn_v_b": (2.0, 0.7, 1.0, 0.5),
    "ffn_gate": (2.0, 1.3, 1.6, 2.1),
    "ffn_up": (2.2, 1.3, 1.7, 2.1),
    "ffn_down": (4.0, 2.0, 2.1, 3.1),
    "ffn_gate_exps": (1.5, 1.5, 0.9, 1.0),
    "ffn_up_exps": (0.8, 0.8, 0.5, 0.55),
    "ffn_down_exps": (2.5, 2.5, 1.7, 1.6),
    "ffn_gate_shexp": (0.6, 0.6, 0.5, 0.7),
    "ffn_up_shexp": (0.4, 0.4, 0.4, 0.5),
    "ffn_down_shexp": (0.8, 0.8, 0.7, 0.7),
}
"""Factors over the geometric mean of a model's layers."""

_OTHER_ROLES: _Parts = (1.5, 1.0, 1.0, 1.0)

_MIDDLE = 0.07
"""The geometric mean of a model's layers: 0.12, 0.010, 0.067 and 0.103 in those four."""

_POWER = 0.5
"""How much layers of one part of the depth differ: between 0, not at all, and 1, as much as what
they add to the stream. One ffn_down at a time in SmolLM2 and Gemma 3 (measure_damage.py --each):
layers that add more cost more, such as the first of both, and Gemma's fourth."""

_LAST, _DEEP = 2.5, 8
"""The last feed-forward network of deep models, beside the share that it adds: 5 and 2.4 times."""

_LOGITS = 0.36
"""Divergence for each unit of the mean square of the logits' errors. Independent errors of small
variance v have the divergence v / 2 (1 - sum p^2); the four models have 0.72, 0.28, 0.24 and 0.38.
"""

_TIED, _INPUT, _OUTPUT = 18.0, 3.0, 5.0
"""The embedding if it makes the logits, too, and if not; the output matrix; where the size of the
logits is not known."""


_SPREAD = 0.7
"""Standard deviation of the logarithm of what is usual, beside what a model shows."""


class MeasuredFactor(NamedTuple):
    """A factor that was measured on some tokens, with its standard error; noise may be below 0."""

    value: float
    standard_error: float

    @property
    def is_clear(self) -> bool:
        """Whether it is more than noise."""
        return self.value > 2 * self.standard_error

    def beside(self, usual: float) -> float:
        """Return the likely factor: what is usual counts as much as the measurement is uncertain.

        It is at most two standard errors above the measured value.
        """
        most = max(self.value, 0.0) + 2 * self.standard_error
        if self.value <= 0 or usual <= 0:
            return min(usual, most)
        doubt = (self.standard_error / self.value) ** 2
        weight = _SPREAD**2 / (_SPREAD**2 + doubt)
        return min(most, exp(weight * log(self.value) + (1 - weight) * log(usual)))


@dataclass(frozen=True)
class Factors:
    """The damage of an error by tensor: KL divergence in nats for each unit of relative error.

    measured: by tensor name, for the mean of a part of the depth
    n_layers: of the model
    is_tied:  whether the embedding makes the logits, too
    stream:   what layers add, and the logits
    """

    n_layers: int
    measured: Mapping[str, MeasuredFactor]
    is_tied: bool
    stream: Stream

    @classmethod
    def of_plan(
        cls, plan: Plan, measured: Mapping[str, MeasuredFactor] = MappingProxyType({})
    ) -> Factors:
        """Return the factors of a plan's model; raise what reading rows raises."""
        names = {t.name for t in plan.tensors}
        return cls(layers_in(names), measured, "output.weight" not in names, stream_of(plan))

    def of(self, name: str) -> float:
        """Return the factor of a tensor."""
        parts, its = TensorName.parse(name), self.measured.get(name)
        if parts.layer is None:
            usual = self._of_no_layer(parts.role)
            return its.beside(usual) if its else usual
        part = self._part(parts.layer)
        factor = self._level * self._usual(parts)
        factor = its.beside(factor) if its else factor
        if self.n_layers >= _DEEP and parts.layer == self.n_layers - 1 and "ffn" in parts.role:
            factor *= _LAST
        if (share := self.stream.share(name)) is None:
            return factor
        return factor * (share / self._mean_shares[branch_of(parts.role), part]) ** _POWER

    def _usual(self, parts: TensorName) -> float:
        """Return the factor of trained models."""
        part = self._part(parts.layer or 0)
        return _MIDDLE * _PRIORS.get(parts.role, _OTHER_ROLES)[part]

    @cached_property
    def _level(self) -> float:
        """What the model's layers have beside those of trained models, by what is clear of them."""
        found = {
            name: TensorName.parse(name) for name, its in self.measured.items() if its.is_clear
        }
        logs = [
            log(self.measured[name].value / self._usual(parts))
            for name, parts in found.items()
            if parts.layer is not None
        ]
        return exp(sum(logs) / len(logs)) if logs else 1.0

    def _part(self, layer: int) -> int:
        """Return the part of the depth that a layer is in."""
        return min(PARTS - 1, layer * PARTS // max(1, self.n_layers))

    @cached_property
    def _mean_shares(self) -> dict[tuple[str, int], float]:
        """The mean share of each branch in each part of the depth."""
        found: dict[tuple[str, int], list[float]] = {}
        for (layer, branch), share in self.stream.shares.items():
            found.setdefault((branch, self._part(layer)), []).append(share)
        return {key: sum(some) / len(some) for key, some in found.items()}

    def _of_no_layer(self, role: str) -> float:
        is_last = role == ("token_embd" if self.is_tied else "output")
        if is_last and self.stream.logits:
            return _LOGITS * self.stream.logits
        usual = {"token_embd": _TIED if self.is_tied else _INPUT, "output": _OUTPUT}
        return usual.get(role, _MIDDLE)


def layers_in(names: Iterable[str]) -> int:
    """Return the number of layers that tensors are of."""
    return 1 + max((TensorName.parse(n).layer or 0 for n in names), default=0)


def label_of(name: str, n_layers: int) -> str:
    """Return the group that a tensor is changed with: its role and part of the depth."""
    parts = TensorName.parse(name)
    if parts.layer is None:
        return parts.role
    return f"{parts.role} {parts.layer * PARTS // n_layers + 1}/{PARTS}"
