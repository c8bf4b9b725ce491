"""Limits that a user sets for an output: its size, and its error."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.conversion.losses import Loss
from dynquant.errors import GateError
from dynquant.figures import figure, size_text


@dataclass(frozen=True)
class Gate:
    """A limit, the figure that it is compared with, and whether the check passed."""

    what: str
    limit: str
    found: str
    holds: bool

    def __str__(self) -> str:
        return f"{self.what} is {self.found}, the limit is {self.limit}"


def size_gate(n_bytes: int, limit: int) -> Gate:
    """Check that the output's files have at most `limit` bytes together."""
    return Gate("size", size_text(limit), size_text(n_bytes), n_bytes <= limit)


def error_gate(loss: Loss | None, limit: float) -> Gate:
    """Check that the mean relative error is at most `limit`: see `Loss.weighted`.

    loss: None if it was not measured; the check fails
    """
    found = loss.weighted if loss else None
    holds = found is not None and found <= limit
    return Gate("error", figure(limit), "not known" if found is None else f"{found:.6g}", holds)


def check_gate(gate: Gate, where: str, advice: str) -> None:
    """Raise GateError if a check failed."""
    if not gate.holds:
        raise GateError(f"{where}: {gate}; {advice}")
