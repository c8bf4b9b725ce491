"""What an encoder minimises, and how much it searches: named choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from dynquant.errors import EncodeError

Effort = Literal["fast", "normal", "best"]
"""How much is searched; the format is the same. `best` takes several times as long as `normal`."""

Weighting = Literal["importance", "magnitude"]
"""The weight of a squared error: the importance, or, as in ggml, the importance times
sqrt(mean x^2 + x^2), the mean over the block."""

Gain = Literal["least-squares", "half", "preserving"]
"""How the scale of a block is chosen for its final codes: for the least error; so that the decoded
block is as long as the original in its direction, <x, decoded> = <x, x>; or half way between."""

EFFORTS: tuple[Effort, ...] = get_args(Effort)
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
GAINS: dict[Gain, float] = {"least-squares": 0.0, "half": 0.5, "preserving": 1.0}
"""The share of the way from least squares to preserving."""


HALFWAY = frozenset(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S"))
"""Types whose default gain is "half": those of at most 3.5 bits, but Q3_K, whose models disagree.

Least squares shortens each block by its relative error, and in a model these losses of length add
up from matrix to matrix. Measured by KL divergence: docs/explanation/encoders.md.
"""


def default_gain(type_name: str) -> Gain:
    """Return the gain of a type for which none is chosen."""
    return "half" if type_name in HALFWAY else "least-squares"


@dataclass(frozen=True)
class Search:
    """The choices of one encoding.

    weighting: None is "importance"; gain: None is `default_gain` of the type
    """

    effort: Effort = "normal"
    weighting: Weighting | None = None
    gain: Gain | None = None

    def __post_init__(self) -> None:
        """Raise EncodeError for a word that is not a choice."""
        for name, value, choices in (
            ("effort", self.effort, EFFORTS),
            ("weighting", self.weighting, (None, *WEIGHTINGS)),
            ("gain", self.gain, (None, *GAINS)),
        ):
            if value not in choices:
                words = ", ".join(word for word in choices if word)
                raise EncodeError(f"{name}={value!r} is not supported; use one of {words}")


NORMAL = Search()
