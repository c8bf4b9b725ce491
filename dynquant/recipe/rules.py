"""The data of a recipe: rules with selectors and actions, the fallback, settings of the file."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from dynquant.errors import RecipeError
from dynquant.importance.experts import DEFAULT, Policy
from dynquant.quants.search import Effort
from dynquant.quants.table import QuantType
from dynquant.recipe.choice import Choice
from dynquant.recipe.expressions import Expression, expression
from dynquant.recipe.feedback import UNSET, Feedback
from dynquant.recipe.layers import LayerItem
from dynquant.recipe.target import NO_TARGET, Target
from dynquant.recipe.yaml_nodes import Place

Action = Literal["type", "choose", "keep", "drop"]
"""The action of a rule: give a type, leave it to the size, keep the stored type, or leave out
the tensor."""

Use = Literal["required", "optional", "ignored"]
"""How a recipe uses an imatrix."""

TensorOrder = Literal["model", "layer"]
"""The order of tensors in the file: that of the family's table, or layer by layer."""


@dataclass(frozen=True)
class Shape:
    """Requirements for a tensor's shape; None requires nothing."""

    row_multiple_of: int | None = None
    min_weights: int | None = None
    dimensions: int | None = None

    def __str__(self) -> str:
        names = ("row_multiple_of", "min_weights", "dimensions")
        given = {name: getattr(self, name) for name in names}
        return "{" + ", ".join(f"{k}: {v}" for k, v in given.items() if v is not None) + "}"


@dataclass(frozen=True)
class Comparison:
    """`>= 4`: an operator and a number; `8` is `== 8`."""

    operator: Literal["==", "!=", "<", "<=", ">", ">="]
    number: int

    def holds(self, value: int) -> bool:
        """Whether the comparison is true of the value."""
        return {
            "==": value == self.number,
            "!=": value != self.number,
            "<": value < self.number,
            "<=": value <= self.number,
            ">": value > self.number,
            ">=": value >= self.number,
        }[self.operator]

    def __str__(self) -> str:
        return f"{'' if self.operator == '==' else self.operator + ' '}{self.number}"


@dataclass(frozen=True)
class When:
    """Conditions for the model; an empty tuple and None require nothing.

    experts, gqa, layers: comparisons, at least one of which must be true
    architecture:         names, one of which must be the model's
    """

    experts: tuple[Comparison, ...] = ()
    gqa: tuple[Comparison, ...] = ()
    layers: tuple[Comparison, ...] = ()
    tied_embeddings: bool | None = None
    importance: bool | None = None
    architecture: tuple[str, ...] = ()

    def __str__(self) -> str:
        given = {
            "experts": " ".join(map(str, self.experts)),
            "gqa": " ".join(map(str, self.gqa)),
            "layers": " ".join(map(str, self.layers)),
            "tied_embeddings": _truth(self.tied_embeddings),
            "importance": _truth(self.importance),
            "architecture": " ".join(self.architecture),
        }
        return "{" + ", ".join(f"{k}: {v}" for k, v in given.items() if v) + "}"


def _truth(value: bool | None) -> str:
    return "" if value is None else str(value).lower()


@dataclass(frozen=True)
class Selectors:
    """Selectors, all of which must match; an empty one matches every tensor."""

    roles: tuple[str, ...] = ()
    layers: tuple[LayerItem, ...] = ()
    names: tuple[str, ...] = ()
    shape: Shape | None = None
    when: When | None = None

    @property
    def given(self) -> dict[str, str]:
        """The given selectors as text, by key."""
        given = {
            "role": " ".join(self.roles),
            "layers": " ".join(map(str, self.layers)),
            "name": " ".join(self.names),
            "shape": str(self.shape or ""),
            "when": str(self.when or ""),
        }
        return {key: text for key, text in given.items() if text}

    def __str__(self) -> str:
        return ", ".join(f"{key} {text}" for key, text in self.given.items())


@dataclass(frozen=True)
class Rule:
    """The action for tensors that match `match` and none of `excluded`.

    type:      the type of the action "type", else None
    choice:    the types of the action "choose", else None
    fallback:  types to try instead of the recipe's fallback, whatever their bits; None for that one
    optional:  the rule may apply to no tensor
    override:  the rule may change tensors that the built-in rules protect
    feedback:  what the rule says about error feedback; the recipe's for what it does not say
    inherited: the rule is from a recipe that this one extends
    """

    action: Action
    type: QuantType | None
    place: Place
    match: Selectors = Selectors()
    excluded: tuple[Selectors, ...] = ()
    fallback: tuple[QuantType, ...] | None = None
    feedback: Feedback = UNSET
    optional: bool = False
    override: bool = False
    note: str = ""
    inherited: bool = False
    choice: Choice | None = None

    @property
    def where(self) -> str:
        """File and line, such as `recipes/small.yaml:14`."""
        return f"{self.place.path}:{self.place.line}"

    @property
    def selectors(self) -> dict[str, str]:
        """The given selectors as text, by key."""
        excluded = " ".join(f"({one})" for one in self.excluded)
        return self.match.given | ({"not": excluded} if excluded else {})

    def __str__(self) -> str:
        return ", ".join(f"{key} {text}" for key, text in self.selectors.items())


@dataclass(frozen=True)
class Fallback:
    """Types to try in order if a type's block does not divide a row; without any it is an error.

    of_all:  for the types that are not in of_type
    of_type: by the name of the type that they replace
    """

    of_all: tuple[QuantType, ...] = ()
    of_type: Mapping[str, tuple[QuantType, ...]] = field(
        default_factory=dict[str, tuple[QuantType, ...]]
    )

    def of(self, wanted: QuantType) -> tuple[QuantType, ...]:
        """Return the types that may replace a type: none with fewer bits per weight."""
        return tuple(t for t in self.listed(wanted) if t.bpw >= wanted.bpw)

    def listed(self, wanted: QuantType) -> tuple[QuantType, ...]:
        """Return the types that the recipe lists for a type, whatever their bits."""
        return self.of_type.get(wanted.name, self.of_all)


@dataclass(frozen=True)
class Output:
    """Settings of the file: bytes of a shard (None for one file), and the order of tensors."""

    shard_bytes: int | None = None
    tensor_order: TensorOrder = "model"


@dataclass(frozen=True)
class Recipe:
    """A valid recipe, with everything it inherits.

    path:      the file's name in messages; text: the file's whole text
    texts:     the texts of the recipes it extends, in the order of their rules
    extended:  their paths
    intended:  architectures it is meant for; empty for all
    experts:   what experts have of which the imatrix has few tokens or none
    feedback:  of tensors whose rule says nothing about it
    target:    the size of the file, for the types that rules leave open
    effort:    None if the recipe does not set it
    metadata:  GGUF keys to set, with their values as text
    keeps_prediction: whether prediction layers are written
    readers:   programs that have to read all types of the file
    """

    name: str
    description: str
    path: str
    text: str
    default: QuantType
    default_place: Place
    rules: tuple[Rule, ...]
    fallback: Fallback = Fallback()
    texts: tuple[str, ...] = ()
    extended: tuple[str, ...] = field(default=(), compare=False)
    intended: tuple[str, ...] = ()
    importance: Use = "optional"
    experts: Policy = DEFAULT
    feedback: Feedback = UNSET
    target: Target = NO_TARGET
    effort: Effort | None = None
    output: Output = Output()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    keeps_prediction: bool = False
    readers: tuple[str, ...] = ()

    @property
    def has_keep(self) -> bool:
        """Whether a rule keeps the stored type of tensors."""
        return any(rule.action == "keep" for rule in self.rules)

    @property
    def has_choice(self) -> bool:
        """Whether a rule leaves types open."""
        return any(rule.action == "choose" for rule in self.rules)

    @property
    def files(self) -> tuple[str, ...]:
        """The paths of the recipe and of those that it extends."""
        return self.path, *self.extended

    @property
    def sha256(self) -> str:
        """Hash of the recipe's text and of those it extends, in hexadecimal."""
        return hashlib.sha256("\0".join((self.text, *self.texts)).encode()).hexdigest()


@cache
def name_pattern(text: str) -> Expression:
    """Return the pattern to `search` tensor names with, for a glob or a /regular expression/."""
    if not text.startswith("/"):
        return re.compile(r"\A" + fnmatch.translate(text))
    if len(text) < 3 or not text.endswith("/"):
        raise RecipeError(f"{text!r} is not a name; write a regular expression between two slashes")
    return expression(text)
