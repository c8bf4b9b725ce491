"""Products with parameters that a model computes itself, without calling a linear layer.

Mamba multiplies by the matrix of a linear layer that it never calls, hyper-connections have their
matrices as parameters, and Llama 4 multiplies all tokens by all experts at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

from dynquant.calibrate.sums import Sums

See = Callable[[Any, bool, Callable[[], list[Sums]]], None]
"""Called with a parameter, whether it is a linear layer's own call, and a function that returns the
sums of its inputs: one, or one for each matrix of a stack."""


class Products(TorchFunctionMode):
    """Reports the products of a thread while it is entered."""

    def __init__(self, see: See) -> None:
        super().__init__()
        self._see = see

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch; report it first if it is a product."""
        name = getattr(function, "__name__", "")
        if name in ("matmul", "__matmul__"):
            weight, inputs = args
            self._see(weight, False, lambda: [Sums.of(inputs.transpose(-1, -2))])
        elif name == "linear":
            inputs, weight = args[:2]
            self._see(weight, True, lambda: [Sums.of(inputs)])
        elif name == "bmm":
            inputs, weight = args
            self._see(weight, False, lambda: [_chosen(rows) for rows in inputs])
        return function(*args, **(kwargs or {}))


def _chosen(rows: Any) -> Sums:
    """Return the sums of an expert's tokens; the rows of those that chose others are zero."""
    return Sums.of(rows[rows.any(dim=-1)])
