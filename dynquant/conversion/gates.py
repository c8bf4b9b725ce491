"""Gates: limits that somebody set for an output, and whether they hold."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.conversion.losses import Loss
from dynquant.errors import GateError
from dynquant.figures import figure, gigabytes


@dataclass(frozen=True)
class Gate:
    """A limit: what was asked, what is, and whether that is within it."""

    what: str
    limit: str
    found: str
    holds: bool

    def __str__(self) -> str:
        return f"{self.what} is {self.found}, and at most {self.limit} was asked for"


def size_gate(n_bytes: int, limit: int) -> Gate:
    """Return whether the output's files are at most `limit` bytes together."""
    return Gate("size", gigabytes(limit), gigabytes(n_bytes), n_bytes <= limit)


def error_gate(loss: Loss | None, limit: float) -> Gate:
    """Return whether the weighted error of all weights is at most `limit`.

    A file whose errors nobody measured does not pass.
    """
    found = loss.weighted if loss else None
    holds = found is not None and found <= limit
    return Gate("error", figure(limit), "not known" if found is None else f"{found:.6g}", holds)


def check_gate(gate: Gate, where: str, advice: str) -> None:
    """Raise GateError if a gate does not hold."""
    if not gate.holds:
        raise GateError(f"{where}: {gate}; {advice}")
