"""The recipe language as a JSON Schema, for editors that complete and check as one types."""

from __future__ import annotations

from typing import Any

from dynquant.quants.search import EFFORTS
from dynquant.quants.table import ALL
from dynquant.recipe.roles import GROUP_NOTES, GROUPS, ROLES
from dynquant.recipe.values import ARCHITECTURES, BOUND, COMPARISON, LAYERS, PERCENTS, SIZE

SCHEMA_NAME = "recipe.schema.json"
"""The file's name where it is shipped, beside the recipes."""

EDITOR_LINE = f"# yaml-language-server: $schema={SCHEMA_NAME}"
"""What a recipe begins with, for an editor to find the schema in the recipe's folder."""

_Schema = dict[str, Any]


def recipe_schema() -> _Schema:
    """Return the schema of a recipe (JSON Schema draft 7, which YAML editors read).

    It knows keys, words and forms. What needs a model, another file or a second look (ranges that
    run backwards, rules that take nothing) only `dynquant recipe check` finds.
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "dynquant recipe",
        "description": "which quant type each tensor of a model gets, in a dynamic GGUF",
        **_keys(
            {
                "dynquant": _noted({"enum": [1, "1"]}, "version of the language"),
                "name": _noted({"type": "string"}, "the file's name if left out"),
                "description": _noted({"type": "string"}, "what it is for, in one line"),
                "extends": _noted(
                    {"type": "string"},
                    "a shipped recipe's name, or a path from this file; own rules come first",
                ),
                "for": _noted(
                    _some({"enum": ARCHITECTURES}),
                    "general.architecture that it is meant for; another one is a warning",
                ),
                "default": _noted(_ref("type"), "the type of every tensor that no rule takes"),
                "importance": _noted(
                    {"enum": ["required", "optional", "ignored"]}, "what becomes of an imatrix"
                ),
                "effort": _noted({"enum": list(EFFORTS)}, "where the user asks for none"),
                "rules": _noted(
                    {"type": "array", "items": _ref("rule")}, "the first that fits decides"
                ),
                "fallback": _noted(
                    {"anyOf": [_ref("chain"), _chains()]},
                    "types to try in order where no block of the type divides the row",
                ),
                "output": _noted(_output(), "how the file is written"),
                "metadata": _noted(
                    {"type": "object", "additionalProperties": _SCALAR},
                    "GGUF keys to set, as --set does",
                ),
                "prediction_layers": _noted(
                    {"enum": ["drop", "keep"]}, "layers that predict further ahead (MTP)"
                ),
            }
        ),
        "anyOf": [{"required": ["default"]}, {"required": ["extends"]}],
        "definitions": {
            "type": _type(),
            "role": _role(),
            "range": _range(),
            "rule": _rule(),
            "pattern": _pattern(),
            "chain": {"anyOf": [{"const": "error"}, _some(_ref("type"))]},
        },
    }


_SCALAR = {"type": ["string", "number", "boolean"]}
_COUNT = {"type": "integer", "minimum": 1}


def _rule() -> _Schema:
    actions = ("type", "choose", "keep", "drop")
    selectors = ("role", "layers", "name", "shape", "when")
    return {
        **_keys(
            {
                "role": _noted(_some(_ref("role")), "GGUF role names, and groups of them"),
                "layers": _noted(
                    _some({"anyOf": [_ref("range"), _ref("pattern")]}),
                    "numbers (3, -1), ranges (0-3, -4--1), parts (0%-25%), patterns",
                ),
                "name": _noted(
                    _some({"type": "string"}), "the whole GGUF name: a glob or a /regex/"
                ),
                "shape": _noted(
                    _keys(dict.fromkeys(("row_multiple_of", "min_weights", "dimensions"), _COUNT)),
                    "what the tensor's shape must be",
                ),
                "when": _noted(_when(), "what must be true of the model"),
                "type": _noted(_ref("type"), "the type that it gives"),
                "choose": _noted(
                    _some(_ref("type")), "for a solver of budgets, which there is not yet"
                ),
                "keep": _noted({"const": True}, "leave it in the type that it is stored in"),
                "drop": _noted({"const": True}, "leave it out of the file"),
                "optional": _noted({"type": "boolean"}, "it may take no tensor"),
                "override": _noted(
                    {"type": "boolean"}, "it may take what the built-in rules protect"
                ),
                "note": _noted({"type": "string"}, "why; shown by plan and explain"),
            }
        ),
        "allOf": [
            {"oneOf": [{"required": [action]} for action in actions]},
            {"anyOf": [{"required": [selector]} for selector in selectors]},
        ],
    }


def _when() -> _Schema:
    compared = _some({"anyOf": [{"type": "integer", "minimum": 0}, _text(COMPARISON.pattern)]})
    return _keys(
        {
            "experts": _noted(compared, "routed experts of a layer, 0 if there are none"),
            "gqa": _noted(compared, "query heads for each key head"),
            "layers": _noted(compared, "layers, those that predict further ahead not counted"),
            "tied_embeddings": _noted({"type": "boolean"}, "the embedding is the output matrix"),
            "importance": _noted({"type": "boolean"}, "an imatrix is given"),
            "architecture": _noted(_some({"enum": ARCHITECTURES}), "general.architecture"),
        }
    )


def _pattern() -> _Schema:
    bound = {"anyOf": [{"type": "integer", "minimum": 0}, _text(BOUND.pattern)]}
    return {
        **_keys(
            {
                "in": _noted(_some(_ref("range")), "positions"),
                "first": _noted(bound, "how many at the beginning: 3, or 12.5%"),
                "last": _noted(bound, "how many at the end"),
                "every": _noted(_COUNT, "each of so many"),
                "from": _noted(bound, "the first that `every` takes"),
                "of": _noted(_some(_ref("role")), "count only layers that have such a tensor"),
            }
        ),
        "description": "layers of which all this holds",
        "dependencies": {"from": ["every"]},
        "anyOf": [{"required": [key]} for key in ("in", "first", "last", "every")],
    }


def _chains() -> _Schema:
    return {
        "type": "object",
        "properties": {name: _ref("chain") for name in (*ALL, "any")},
        "patternProperties": {_ANY_CASE: _ref("chain")},
        "additionalProperties": False,
    }


def _output() -> _Schema:
    shard = {"anyOf": [_COUNT, _text(SIZE.pattern)]}
    return _keys(
        {
            "shard_size": _noted(shard, "at most so much in a file: 50GB, 46GiB"),
            "tensor_order": _noted(
                {"enum": ["model", "layer"]}, "as the model has them, or layer by layer"
            ),
        }
    )


def _type() -> _Schema:
    listed = [{"const": t.name, "description": t.description} for t in ALL.values()]
    return {"anyOf": [{"enum": list(ALL)}, {"oneOf": listed}, _text(_ANY_CASE)]}


def _role() -> _Schema:
    groups = [{"const": name, "description": GROUP_NOTES[name]} for name in GROUPS]
    return {"anyOf": [{"enum": sorted(ROLES | GROUPS.keys())}, {"oneOf": groups}]}


def _range() -> _Schema:
    return {"anyOf": [{"type": "integer"}, _text(f"{LAYERS.pattern}|{PERCENTS.pattern}")]}


_ANY_CASE = "".join(
    (
        "^(",
        "|".join("".join(f"[{c}{c.lower()}]" if c.isalpha() else c for c in name) for name in ALL),
        ")$",
    )
)
"""The names of all types, each in any case: JSON Schema's expressions have no flags."""


def _keys(properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _some(one: _Schema) -> _Schema:
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _text(pattern: str) -> _Schema:
    return {"type": "string", "pattern": pattern if pattern[0] == "^" else f"^(?:{pattern})$"}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/definitions/{name}"}


def _noted(schema: _Schema, note: str) -> _Schema:
    """Return a schema with what an editor shows beside it; draft 7 ignores notes beside $ref."""
    return (
        {"allOf": [schema], "description": note}
        if "$ref" in schema
        else schema | {"description": note}
    )
