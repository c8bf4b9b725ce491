"""What an encoder minimises, and how hard it tries: named choices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Effort = Literal["fast", "normal", "best"]
"""How much is searched; the format is the same. `best` takes several times as long as `normal`."""

Weighting = Literal["importance", "magnitude"]
"""What squared errors are weighed by: the importance alone, or, as ggml does it, the importance
times sqrt(mean x^2 + x^2), the mean over the block."""

Gain = Literal["least-squares", "half", "preserving"]
"""What the scale of a block is chosen for once its codes are: the least error; a decoded block that
has the original's length along it, <x, decoded> = <x, x>; or half the way between the two."""

EFFORTS: tuple[Effort, ...] = get_args(Effort)
WEIGHTINGS: tuple[Weighting, ...] = get_args(Weighting)
GAINS: dict[Gain, float] = {"least-squares": 0.0, "half": 0.5, "preserving": 1.0}
"""The share of the way from least squares to preserving."""


@dataclass(frozen=True)
class Search:
    """The choices of one encoding; None takes the quant type's own default."""

    effort: Effort = "normal"
    weighting: Weighting | None = None
    gain: Gain | None = None


NORMAL = Search()
