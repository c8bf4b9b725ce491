"""How much a model loses by errors of a tensor's outputs: by its role and its place in the depth.

To first order the KL divergence of a quantized model is a sum over its tensors, a factor times the
relative error of the outputs: files with one group of tensors quantized have twice the divergence
at twice the error. The factors here are those of the trained models that
scripts/studies/measure_damage.py was run on.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dynquant.arch.base import TensorName

PARTS = 4
"""Parts of the depth that have different factors."""

_PRIORS: Mapping[str, tuple[float, float, float, float]] = {
    "attn_q": (0.25, 0.12, 0.12, 0.07),
    "attn_k": (0.29, 0.30, 0.23, 0.04),
    "attn_v": (0.80, 0.14, 0.11, 0.05),
    "attn_output": (0.80, 0.17, 0.11, 0.11),
    "ffn_gate": (1.00, 0.97, 1.07, 0.91),
    "ffn_up": (0.54, 0.32, 0.36, 0.35),
    "ffn_down": (1.00, 0.47, 0.37, 0.63),
}
_OF_NO_LAYER = {"token_embd": 10.0, "output": 10.0}


@dataclass(frozen=True)
class Factors:
    """The damage of an error by tensor: KL divergence in nats for each unit of relative error.

    measured: by tensor name; others have those of trained models
    n_layers: of the model
    """

    n_layers: int
    measured: Mapping[str, float]

    def of(self, name: str) -> float:
        """Return the factor of a tensor."""
        if name in self.measured:
            return self.measured[name]
        parts = TensorName.parse(name)
        if parts.layer is None:
            return _OF_NO_LAYER.get(parts.role, 1.0)
        part = min(PARTS - 1, parts.layer * PARTS // max(1, self.n_layers))
        return _PRIORS.get(parts.role, _PRIORS["ffn_up"])[part]


def layers_in(names: Iterable[str]) -> int:
    """Return the number of layers that tensors are of."""
    return 1 + max((TensorName.parse(n).layer or 0 for n in names), default=0)
