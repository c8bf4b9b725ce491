"""The types that `choose` leaves open, and those of them that a tensor can have."""

from __future__ import annotations

from dataclasses import dataclass

from dynquant.quants.table import ALL, QuantType

# fmt: off
_LADDER = (
    "Q8_0", "Q6_K", "Q5_K", "Q4_K", "IQ4_XS", "IQ3_S", "Q3_K", "IQ3_XXS", "Q2_K", "IQ2_S",
    "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S",
)
# fmt: on
_SMALL_BLOCKS = ("Q8_0", "Q5_1", "Q5_0", "Q4_1", "IQ4_NL")
"""For rows that blocks of 256 weights do not divide. Q4_0 is as large as IQ4_NL, and worse."""

_ANY_ROWS = "F16"


@dataclass(frozen=True)
class Choice:
    """What `choose` allows: the types of a list, or those between two; without both, any type.

    at_least, at_most: types whose bits per weight are the limits, themselves included
    """

    types: tuple[QuantType, ...] = ()
    at_least: QuantType | None = None
    at_most: QuantType | None = None

    def of(self, n_per_row: int, *, importance: bool) -> tuple[QuantType, ...]:
        """Return the types for rows of a length, from most to fewest bits; none if none fits.

        importance: whether the tensor has one; types that need it are left out without

        Of lists, every type that fits; else those that are usual for the length, or F16 if no
        block divides the rows.
        """
        usual = _LADDER if n_per_row % 256 == 0 else _SMALL_BLOCKS
        asked = self.types or tuple(ALL[name] for name in usual)
        found = [
            t
            for t in asked
            if not n_per_row % t.block_size
            and (importance or not t.needs_importance)
            and (self.at_least is None or t.bpw >= self.at_least.bpw)
            and (self.at_most is None or t.bpw <= self.at_most.bpw)
        ]
        if not found and not self.types and n_per_row % 32:
            return (ALL[_ANY_ROWS],)
        return tuple(sorted(found, key=lambda t: -t.bpw))

    @property
    def given(self) -> dict[str, str]:
        """The limits, by key."""
        limits = {"at_least": self.at_least, "at_most": self.at_most}
        return {key: limit.name for key, limit in limits.items() if limit}

    def __str__(self) -> str:
        if self.types:
            return f"[{', '.join(t.name for t in self.types)}]"
        given = self.given
        return "{" + ", ".join(f"{k}: {v}" for k, v in given.items()) + "}" if given else "any"
