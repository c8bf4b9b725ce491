"""A plan: every tensor's type, size and place, and every key, before a byte is written."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

from gguf import GGUF_DEFAULT_ALIGNMENT, GGUFType

from dynquant.arch.base import ModelTensor
from dynquant.importance.audit import Importance
from dynquant.importance.experts import DEFAULT, Policy
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.keys import Keys
from dynquant.measure.grids import OnGrid
from dynquant.plan.shards import Shard
from dynquant.quants.encoder import is_copied
from dynquant.quants.search import Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.feedback import FeedbackSetting
from dynquant.recipe.rules import Recipe

ALIGNMENT = GGUF_DEFAULT_ALIGNMENT
"""Bytes that every tensor's offset is a multiple of: GGUF's default, which needs no key."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output.

    shape:      as in numpy, slowest dimension first
    offset:     bytes from the start of its file's data section
    n_bytes:    bytes of all its blocks, without the padding that follows
    rule:       where its type comes from: file and line of a recipe, or a built-in rule
    instead_of: the rule's type, if its block size does not divide the rows and a fallback is used
    importance: "yes", or how many of the experts have importance; None if all input channels are
                weighted equally, and for types that store each weight separately
    note:       the note of the rule
    shard:      the file that it is in, counted from 0
    on_grid:    the type is the grid that the stored floats lie on; blocks must reproduce them
    """

    name: str
    shape: tuple[int, ...]
    type: QuantType
    offset: int
    n_bytes: int
    rule: str
    instead_of: QuantType | None = None
    importance: str | None = None
    note: str = ""
    shard: int = 0
    on_grid: bool = False

    @property
    def n_weights(self) -> int:
        """Weights in the tensor."""
        return prod(self.shape)

    @property
    def n_per_row(self) -> int:
        """Weights in a row."""
        return self.shape[-1]


class Totals:
    """Totals of the tensors of a whole output."""

    tensors: tuple[TensorPlan, ...]

    @property
    def n_weights(self) -> int:
        """Weights of all tensors."""
        return sum(t.n_weights for t in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors, without padding."""
        return sum(t.n_bytes for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a weight over all tensors."""
        return 8 * self.tensor_bytes / self.n_weights


@dataclass(frozen=True)
class RecipeText:
    """The recipe that a plan was made by, as text.

    path:   what messages call its file
    texts:  the texts of the recipes it extends, in the order of their rules
    places: paths of the files that its rules are in
    """

    name: str
    description: str
    path: str
    text: str
    texts: tuple[str, ...] = ()
    places: frozenset[str] = frozenset()

    @classmethod
    def of(cls, recipe: Recipe) -> RecipeText:
        """Return the text of a recipe."""
        places = {*recipe.files, recipe.default_place.path, *(r.place.path for r in recipe.rules)}
        return cls(
            recipe.name,
            recipe.description,
            recipe.path,
            recipe.text,
            recipe.texts,
            frozenset(places),
        )

    @property
    def sha256(self) -> str:
        """Hash of the recipe's text and of those it extends, in hexadecimal."""
        return hashlib.sha256("\0".join((self.text, *self.texts)).encode()).hexdigest()

    def short(self, text: str) -> str:
        """Return a text with the files of rules named without their folders, which are local."""
        # The longest first: one path may be the end of another.
        for path in sorted(self.places, key=lambda p: (-len(p), p)):
            text = text.replace(f"{path}:", f"{Path(path).name}:")
        return text


@dataclass(frozen=True)
class Plan(Totals):
    """A whole output: `keys` and `tensors` in the order they are written in.

    shards:     its files, one or several
    sources:    the rows of each tensor, by its name
    ignored:    stored tensors that the output leaves out, with the reason
    files:      files of the model that must not be overwritten, besides those of `sources`
    importance: by tensor, from the imatrix
    experts:    what experts have of which the imatrix has few tokens or none
    moments:    the second moments of the inputs, if tensors are encoded with them: `inputs` has
                the input of each tensor of `feedback`
    feedback:   the tensors that are encoded with error feedback, and its settings
    effort:     how much the encoders search
    prediction: layers among the tensors that predict further ahead
    set_keys:   names of the keys that the plan sets; all others are the model's
    allow_requantize: whether tensors that are quantized in a GGUF may get another type
    missing:    parts of the model without which no file can be written, as in `Model`
    refusals:   reasons not to write a file from this draft: missing importance
    leave_out:  globs of stored names that the user leaves out
    grids:      the grids that tensors of stored floats lie on, by name; not of a saved plan
    choices:    of a plan whose recipe leaves types open: those that each tensor can have
    """

    architecture: str
    recipe: RecipeText
    keys: Keys
    tensors: tuple[TensorPlan, ...]
    shards: tuple[Shard, ...]
    sources: dict[str, ModelTensor] = field(repr=False)
    warnings: tuple[str, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    files: tuple[Path, ...] = ()
    imatrix: Imatrix | None = None
    importance: Mapping[str, Importance] = field(default_factory=dict[str, Importance], repr=False)
    experts: Policy = DEFAULT
    moments: Moments | None = None
    feedback: Mapping[str, FeedbackSetting] = field(default_factory=dict[str, FeedbackSetting])
    effort: Effort = "normal"
    prediction: range = range(0)
    set_keys: frozenset[str] = frozenset()
    allow_requantize: bool = False
    missing: tuple[str, ...] = ()
    refusals: tuple[str, ...] = ()
    leave_out: tuple[str, ...] = ()
    grids: Mapping[str, OnGrid] = field(default_factory=dict[str, OnGrid])
    choices: Mapping[str, tuple[QuantType, ...]] = field(
        default_factory=dict[str, tuple[QuantType, ...]], repr=False
    )

    @property
    def unweighted(self) -> tuple[str, ...]:
        """Names of the tensors whose encoder weights all input channels equally."""
        return tuple(
            t.name
            for t in self.tensors
            if not (
                t.type.is_float
                or t.importance
                or is_copied(self.sources[t.name].source.stored, t.type)
            )
        )

    @property
    def is_adapter(self) -> bool:
        """Whether the output is a LoRA adapter, and not a model."""
        kind = self.keys.get("general.type")
        return kind is not None and kind.value == GGUFType.ADAPTER

    @property
    def data_bytes(self) -> int:
        """Bytes of the data sections: the tensors, each padded to the alignment."""
        return sum(shard.n_bytes for shard in self.shards)

    @property
    def type_counts(self) -> dict[str, int]:
        """Number of tensors of each type, the most frequent first."""
        return dict(Counter(t.type.name for t in self.tensors).most_common())


def padded(n_bytes: int) -> int:
    """Return n_bytes rounded up to the alignment."""
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT
