"""The size that a recipe's file should have, for the types that `choose` leaves open."""

from __future__ import annotations

from dataclasses import dataclass

SHARED = (("ffn_gate", "ffn_up"), ("ffn_gate_exps", "ffn_up_exps"))
"""Roles of a layer that share a type unless a recipe names others: llama.cpp multiplies both by
the same inputs."""

CONTEXT = 8192
"""Tokens that `fit` leaves room for."""


@dataclass(frozen=True)
class Target:
    """One of three sizes, and what else `target` says.

    size:    bytes of all files
    bpw:     mean bits of a weight, over all tensors
    fit:     bytes of memory for the weights, the cache of `context` tokens, and buffers
    context: None for the default
    share:   roles of a layer that share a type; None for the default
    """

    size: int | None = None
    bpw: float | None = None
    fit: int | None = None
    context: int | None = None
    share: tuple[tuple[str, ...], ...] | None = None

    @property
    def is_given(self) -> bool:
        """Whether there is a size."""
        return self.size is not None or self.bpw is not None or self.fit is not None

    def over(self, other: Target) -> Target:
        """Return what this one says, and of what it does not say, what the other does."""
        size = self if self.is_given else other
        return Target(
            size.size,
            size.bpw,
            size.fit,
            self.context if self.context is not None else other.context,
            self.share if self.share is not None else other.share,
        )


NO_TARGET = Target()
"""Says nothing."""
