"""The recipe language: YAML in which every tensor of a model gets its quant type.

    dynquant: 1                      version of the language; may be left out
    name: small                      the file's name without .yaml if left out
    description: what it is for      may be left out
    default: Q4_K                    the type of every tensor that no rule takes
    rules:                           the first rule that fits a tensor decides
      - role: [ffn_down, attn_v]     GGUF role names
        layers: [0-3, -2, -4--1]     numbers and ranges; negative ones count from the end
        name: /^blk\\.[0-3]\\./        the whole GGUF name: a glob, or a /regular expression/
        type: Q6_K
        optional: true               it may fit no tensor
    fallback: [IQ4_NL, Q8_0, F16]    tried in order where no block of the type divides the row
    prediction_layers: drop          or keep: layers beyond the model's own that predict further
                                     tokens (multi-token prediction); dropped if left out

A selector holds if one of its values does; a rule fits where all its selectors hold. The fallback
passes over types with fewer bits per weight than the one they would replace; `fallback: error`, the
same as none, refuses rows that do not divide. A name that begins with `*` or `[` needs
quotes, as YAML has a meaning of its own for these.

Prediction layers that are kept are selected by role (`nextn.eh_proj` and others are theirs alone),
by name, or by number: they come after the model's own layers, the last of which stays -1.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import yaml
from gguf import TENSOR_NAMES

from dynquant.errors import RecipeError
from dynquant.quants.table import QuantType, quant_type
from dynquant.recipe.nodes import MAX_BYTES, Place, Reader, children, compose, kind, nearest

VERSION = "1"
_KEYS = ("dynquant", "name", "description", "default", "rules", "fallback", "prediction_layers")
_RULE_KEYS = ("role", "layers", "name", "type", "optional")
_LAYERS = re.compile(r"(0|-?[1-9]\d{0,3})(?:-(0|-?[1-9]\d{0,3}))?")

# What TensorName.parse makes of every name that some GGUF architecture has. `ffn` is left out: that
# tensor is an activation's scale, and the word is wanted for the group of all feed-forward roles.
ROLES = frozenset(
    role
    for name in TENSOR_NAMES.values()
    if "{bid}" not in (role := name.removeprefix("blk.{bid}.")) and role != "ffn"
)

# Roles of vision, audio and such have dots; they are rarely what a misspelt word was meant to be.
_PLAIN_ROLES = sorted(role for role in ROLES if "." not in role)

# What people who know the checkpoint and not the GGUF write first.
_HF_ROLES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "lm_head": "output",
}


@dataclass(frozen=True)
class LayerRange:
    """Layers first..last, both included; a negative number counts from the end, -1 is the last."""

    first: int
    last: int

    def covers(self, layer: int, n_layers: int) -> bool:
        """Whether the layer lies in the range, in a model of n_layers; the range may reach out."""
        first, last = (n + n_layers if n < 0 else n for n in (self.first, self.last))
        return first <= layer <= last

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True)
class Rule:
    """A type for the tensors that all selectors fit; an empty selector fits every tensor."""

    type: QuantType
    roles: tuple[str, ...]
    layers: tuple[LayerRange, ...]
    names: tuple[str, ...]
    optional: bool
    place: Place

    @property
    def where(self) -> str:
        """File and line, such as `recipes/small.yaml:14`."""
        return f"{self.place.path}:{self.place.line}"

    def __str__(self) -> str:
        selectors = {"role": self.roles, "layers": self.layers, "name": self.names}
        return ", ".join(
            f"{key} {' '.join(map(str, values))}" for key, values in selectors.items() if values
        )


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read and checked.

    path: what messages call the file; text: the file's whole text
    fallback: types to try in order where the type's block does not divide a row, those with fewer
          bits per weight passed over; empty refuses
    keeps_prediction: whether layers that predict further ahead are written
    """

    name: str
    description: str
    path: str
    text: str
    default: QuantType
    default_place: Place
    rules: tuple[Rule, ...]
    fallback: tuple[QuantType, ...]
    keeps_prediction: bool = False


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with dynquant, by name: the installed ones, or a checkout's."""
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        if found := {path.stem: path for path in sorted(folder.glob("*.yaml"))}:
            return found
    return {}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a shipped recipe by its name ("q8_0"), or a recipe file by its path.

    Raises RecipeError with every fault of the file, each with line and column.
    """
    shipped = shipped_recipes()
    if isinstance(name_or_path, str) and name_or_path in shipped:
        path, shown = shipped[name_or_path], f"recipes/{name_or_path}.yaml"
    else:
        path, shown = Path(name_or_path), str(name_or_path)
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError as e:
        raise RecipeError(
            f"{shown!r} is neither a shipped recipe nor a file{nearest(path.stem, shipped)}"
            f" (shipped: {', '.join(shipped)})"
        ) from e
    except OSError as e:
        raise RecipeError(f"{shown}: cannot be read: {e.strerror}") from e
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{shown}: more than {MAX_BYTES} bytes; this is no recipe")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        column = e.start - content.rfind(b"\n", 0, e.start)
        raise RecipeError(f"{shown}:{line}:{column}: not UTF-8 text; save it as UTF-8") from e
    return parse_recipe(text, shown, path.stem)


def parse_recipe(text: str, path: str, name: str) -> Recipe:
    """Read a recipe's text; `path` is what messages call it, `name` stands in for a missing one.

    Raises RecipeError with every fault, in the order of the file.
    """
    reader = _RecipeReader(path)
    recipe = reader.recipe(compose(text, path), text, name)
    RecipeError.raise_any(f"{place}: {message}" for place, message in sorted(reader.faults))
    assert recipe is not None, "a recipe that cannot be made has a fault"
    return recipe


class _RecipeReader(Reader):
    """What each key of a recipe holds."""

    def recipe(self, node: yaml.Node | None, text: str, name: str) -> Recipe | None:
        if node is None:
            self.faults.append(
                (Place(self.path, 1, 1), "empty; a recipe has at least `default: Q4_K`")
            )
            return None
        keys = self.mapping(node, _KEYS, "a recipe")
        if keys is None:
            return None
        if "default" not in keys:
            self.fault(node, "no default; add one, such as `default: Q4_K`")
        default = self.value(keys.get("default"), quant_type)
        self.value(keys.get("dynquant"), _version)
        name = self.value(keys.get("name"), str) or name
        description = self.value(keys.get("description"), str.strip) or ""
        fallback = self.fallback(keys.get("fallback"))
        rules = self.rules(keys.get("rules"))
        keeps = self.value(keys.get("prediction_layers"), _keeps) or False
        if default is None:
            return None
        place = Place.of(self.path, keys["default"].start_mark)
        return Recipe(name, description, self.path, text, default, place, rules, fallback, keeps)

    def rules(self, node: yaml.Node | None) -> tuple[Rule, ...]:
        if node is None:
            return ()
        if not isinstance(node, yaml.SequenceNode):
            self.fault(node, f"rules must be a list, each rule after a dash, not {kind(node)}")
            return ()
        rules = [self.rule(rule) for rule in children(node)]
        return tuple(rule for rule in rules if rule is not None)

    def rule(self, node: yaml.Node) -> Rule | None:
        keys = self.mapping(node, _RULE_KEYS, "a rule")
        if keys is None:
            return None
        if "type" not in keys:
            self.fault(node, "rule without a type; add one, such as `type: Q6_K`")
        if not keys.keys() & {"role", "layers", "name"}:
            self.fault(node, "rule without role, layers or name; the default is for all tensors")
        roles = self.values(keys.get("role"), _role)
        layers = self.values(keys.get("layers"), _layer_range)
        names = self.values(keys.get("name"), _name)
        qtype = self.value(keys.get("type"), quant_type)
        optional = self.value(keys.get("optional"), _truth) or False
        if qtype is None:
            return None
        return Rule(qtype, roles, layers, names, optional, Place.of(self.path, node.start_mark))

    def fallback(self, node: yaml.Node | None) -> tuple[QuantType, ...]:
        if isinstance(node, yaml.ScalarNode) and node.value == "error":
            return ()
        return self.values(node, quant_type)


def _version(text: str) -> str:
    if text != VERSION:
        raise RecipeError(f"version {text!r} of the language; this dynquant reads {VERSION}")
    return text


def _truth(text: str) -> bool:
    if text not in ("true", "false"):
        raise RecipeError(f"{text!r} is neither true nor false; write one of them")
    return text == "true"


def _keeps(text: str) -> bool:
    if text not in ("drop", "keep"):
        raise RecipeError(f"{text!r} is neither drop nor keep; write one of them")
    return text == "keep"


def _role(text: str) -> str:
    if text in ROLES:
        return text
    if text in _HF_ROLES:
        hint = f"; GGUF's name for it is {_HF_ROLES[text]}"
    else:
        hint = nearest(text, _PLAIN_ROLES) or "; roles are GGUF's, such as ffn_down or attn_v"
    raise RecipeError(f"{text!r} is not a role{hint}")


def _layer_range(text: str) -> LayerRange:
    found = _LAYERS.fullmatch(text)
    if not found:
        raise RecipeError(
            f"{text!r} is not a layer; write a number (3, or -1 for the last) or a range"
            " (0-3, -4--1)"
        )
    first = int(found[1])
    last = int(found[2] or found[1])
    if last < first and (first < 0) == (last < 0):
        raise RecipeError(f"{text!r} runs backwards; write {LayerRange(last, first)}")
    return LayerRange(first, last)


def _name(text: str) -> str:
    name_pattern(text)
    return text


@cache
def name_pattern(text: str) -> re.Pattern[str]:
    """Return the pattern to `search` tensor names with, for a glob or a /regular expression/."""
    if not text.startswith("/"):
        return re.compile(r"\A" + fnmatch.translate(text))
    if len(text) < 3 or not text.endswith("/"):
        raise RecipeError(f"{text!r} is not a name; a regular expression stands between slashes")
    try:
        return re.compile(text[1:-1])
    except re.error as e:
        raise RecipeError(f"{text!r} is not a regular expression: {e}") from e
