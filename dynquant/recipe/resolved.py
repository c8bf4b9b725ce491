"""A recipe and all that it extends as the text of one file, which gives every model the same types.

The file has the rules of all files in their order, and every key with the value that counts. Rules
of extended recipes become optional, because one that applies to no tensor is an error only in the
file of its author. The comments of the files are not kept; the notes of rules are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from dynquant.errors import RecipeError
from dynquant.importance.experts import DEFAULT
from dynquant.quants.readers import read_by_all, similar_read
from dynquant.quants.table import QuantType
from dynquant.recipe.choice import Choice
from dynquant.recipe.feedback import Feedback
from dynquant.recipe.layers import LayerItem, LayerPattern
from dynquant.recipe.rules import Fallback, Output, Recipe, Rule, Selectors, Shape, When
from dynquant.recipe.target import Target
from dynquant.recipe.yaml_nodes import MAX_BYTES
from dynquant.recipe.yaml_text import on_one_line


def resolved_text(recipe: Recipe) -> str:
    """Return a recipe as one file: its own text if it extends none.

    Raises RecipeError if the file would be larger than a recipe may be.
    """
    if not recipe.texts:
        return recipe.text
    lines = [f"# {_line(recipe.name)}, with the recipes that it extends in one file."]
    lines += _lines(_keys(recipe))
    if recipe.rules:
        lines += ["", "rules:"]
    for path, rules in groupby(recipe.rules, key=lambda rule: rule.place.path):
        lines.append(f"  # of {_line(Path(path).name)}")
        for rule in rules:
            lines += rule_lines(rule)
        lines.append("")
    return _checked(recipe, lines)


def text_of(recipe: Recipe, head: Sequence[str], rules: Sequence[str]) -> str:
    """Return a recipe with other rules.

    head:  lines of the comment at the beginning
    rules: the lines below `rules:`

    Raises RecipeError if the file would be larger than a recipe may be.
    """
    lines = [f"# {_line(line)}".rstrip() for line in head] + _lines(_keys(recipe))
    return _checked(recipe, [*lines, "", "rules:", *rules] if rules else lines)


def rule_lines(rule: Rule) -> list[str]:
    """Return the lines of a rule in the list below `rules:`."""
    first, *others = _lines(_rule(rule))
    return [f"  - {first}", *(f"    {line}" for line in others)]


def _checked(recipe: Recipe, lines: Sequence[str]) -> str:
    text = "\n".join(lines).rstrip("\n") + "\n"
    if (n_bytes := len(text.encode())) > MAX_BYTES:
        raise RecipeError(
            f"{recipe.path}: has {n_bytes} bytes as one file, and a recipe has at most {MAX_BYTES};"
            " shorten the recipes that it extends"
        )
    return text


def _line(text: str) -> str:
    """Return text for a comment, on one line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def _lines(values: Mapping[str, Any]) -> list[str]:
    return [f"{key}: {on_one_line(value)}" for key, value in values.items()]


def _keys(recipe: Recipe) -> dict[str, Any]:
    """Return the keys of a recipe but its rules, without those that have the default value."""
    return _given(
        {
            "dynquant": 1,
            "name": recipe.name,
            "description": recipe.description,
            "for": _some(recipe.intended),
            "default": _default(recipe).name,
            "importance": _importance(recipe),
            "feedback": _feedback(recipe.feedback),
            "target": _target(recipe.target),
            "effort": recipe.effort,
            "fallback": _fallback(recipe.fallback),
            "output": _output(recipe.output),
            "metadata": dict(recipe.metadata),
            "prediction_layers": "keep" if recipe.keeps_prediction else None,
            "readers": _some(recipe.readers),
        }
    )


def _default(recipe: Recipe) -> QuantType:
    """Return the default, or a similar type that the recipe's readers read.

    An inherited default that they do not read is an error only where it is used.
    """
    if read_by_all(recipe.default, recipe.readers):
        return recipe.default
    return similar_read(recipe.default, recipe.readers)


def _importance(recipe: Recipe) -> Any:
    """Return the use of an imatrix, or a mapping if the recipe has a policy for experts."""
    use = recipe.importance if recipe.importance != "optional" else None
    experts = recipe.experts
    if experts == DEFAULT:
        return use
    shrink = experts.shrink if experts.shrink != DEFAULT.shrink else None
    unseen = experts.unseen if experts.unseen != DEFAULT.unseen else None
    return _given({"use": use, "shrink": shrink, "unseen": unseen})


def _feedback(feedback: Feedback) -> Any:
    """Return the use of second moments, or a mapping if there are settings."""
    given = feedback.given
    return given["use"] if given.keys() == {"use"} else given


def _target(target: Target) -> Any:
    """Return the size alone, or a mapping if there is more."""
    share = None if target.share is None else [list(roles) for roles in target.share]
    given = _given(
        {
            "size": target.size,
            "bpw": target.bpw,
            "fit": target.fit,
            "context": target.context,
            "share": share,
        }
    )
    return given["size"] if given.keys() == {"size"} else given


def _choice(choice: Choice | None) -> Any:
    if choice is None:
        return None
    return _some([t.name for t in choice.types]) or choice.given or "any"


def _rule(rule: Rule) -> dict[str, Any]:
    found = _selectors(rule.match) | _given(
        {
            "not": _some([_selectors(one) for one in rule.excluded]),
            "type": rule.type.name if rule.type else None,
            "choose": _choice(rule.choice),
            "keep": rule.action == "keep",
            "drop": rule.action == "drop",
            "fallback": None if rule.fallback is None else _chain(rule.fallback),
            "feedback": _feedback(rule.feedback),
            "optional": rule.optional or rule.inherited,
            "override": rule.override,
        }
    )
    return found | ({"note": rule.note} if rule.note else {})


def _selectors(selectors: Selectors) -> dict[str, Any]:
    return _given(
        {
            "role": _some(selectors.roles),
            "layers": _some([_layers(item) for item in selectors.layers]),
            "name": _some(selectors.names),
            "shape": _shape(selectors.shape),
            "when": _when(selectors.when),
        }
    )


def _layers(item: LayerItem) -> Any:
    if not isinstance(item, LayerPattern):
        return _number(str(item))
    return _given(
        {
            "in": _some([_number(str(one)) for one in item.inside]),
            "first": None if item.first is None else _number(str(item.first)),
            "last": None if item.last is None else _number(str(item.last)),
            "every": item.every,
            "from": None if item.start is None else _number(str(item.start)),
            "of": _some(item.of),
        }
    )


def _shape(shape: Shape | None) -> dict[str, Any] | None:
    if shape is None:
        return None
    return _given(
        {
            "row_multiple_of": shape.row_multiple_of,
            "min_weights": shape.min_weights,
            "dimensions": shape.dimensions,
        }
    )


def _when(when: When | None) -> dict[str, Any] | None:
    if when is None:
        return None
    found = {
        "experts": _some([_number(str(one)) for one in when.experts]),
        "gqa": _some([_number(str(one)) for one in when.gqa]),
        "layers": _some([_number(str(one)) for one in when.layers]),
        "tied_embeddings": when.tied_embeddings,
        "importance": when.importance,
        "architecture": _some(when.architecture),
    }
    return {key: value for key, value in found.items() if value is not None}


def _fallback(fallback: Fallback) -> Any:
    if not fallback.of_type:
        return _chain(fallback.of_all) if fallback.of_all else None
    chains = {name: _chain(chain) for name, chain in fallback.of_type.items()}
    return chains | ({"any": _chain(fallback.of_all)} if fallback.of_all else {})


def _chain(types: Sequence[QuantType]) -> Any:
    return _some([t.name for t in types]) or "error"


def _output(output: Output) -> dict[str, Any]:
    order = output.tensor_order if output.tensor_order != Output().tensor_order else None
    return _given({"shard_size": output.shard_bytes, "tensor_order": order})


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that are given: neither None nor false nor empty."""
    return {
        key: value
        for key, value in values.items()
        if value is not None and value is not False and value not in ("", {})
    }


def _some(values: Sequence[Any]) -> Any:
    """Return one value, a list of several, or None."""
    return (values[0] if len(values) == 1 else list(values)) if values else None


def _number(text: str) -> int | str:
    """Return a whole number, as schemas expect it, or else the text."""
    return int(text) if text.removeprefix("-").isdecimal() else text
