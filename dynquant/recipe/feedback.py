"""Error feedback as recipes ask for it: which tensors may have it, and its settings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

FeedbackUse = Literal["auto", "off", "required"]
"""How second moments are used: where they are given, never, or not without them."""

DAMPING = 0.2
MIN_DAMPING = 0.01
"""Less would be less than the rounding of correlations, which are stored as F16."""

SWEEPS = 1
MAX_SWEEPS = 8


@dataclass(frozen=True)
class FeedbackSetting:
    """How the errors of a tensor are fed back into the columns that follow.

    damping: from 0.01 to 1; more damping feeds back less of each error
    sweeps:  passes of coordinate descent over all columns afterwards
    """

    damping: float = DAMPING
    sweeps: int = SWEEPS

    def __str__(self) -> str:
        return f"damping {self.damping:g}, sweeps {self.sweeps}"


@dataclass(frozen=True)
class Feedback:
    """What a recipe or a rule says about error feedback; None where it says nothing."""

    use: FeedbackUse | None = None
    damping: float | None = None
    sweeps: int | None = None

    @classmethod
    def first_of(cls, given: Iterable[Feedback]) -> Feedback:
        """Return each value of the first that has it."""
        every = list(given)
        return cls(
            next((f.use for f in every if f.use is not None), None),
            next((f.damping for f in every if f.damping is not None), None),
            next((f.sweeps for f in every if f.sweeps is not None), None),
        )

    @property
    def setting(self) -> FeedbackSetting | None:
        """The setting of tensors that have moments; None if it is off."""
        if self.use == "off":
            return None
        return FeedbackSetting(
            DAMPING if self.damping is None else self.damping,
            SWEEPS if self.sweeps is None else self.sweeps,
        )

    @property
    def given(self) -> dict[str, str | float | int]:
        """What it says, by key."""
        values = {"use": self.use, "damping": self.damping, "sweeps": self.sweeps}
        return {key: value for key, value in values.items() if value is not None}

    def __str__(self) -> str:
        given = self.given
        if given.keys() == {"use"}:
            return str(self.use)
        return "{" + ", ".join(f"{k}: {v}" for k, v in given.items()) + "}" if given else ""


UNSET = Feedback()
"""Says nothing: second moments are used where they are given, with the default settings."""
