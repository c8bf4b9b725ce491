"""The recipe language as a JSON Schema, with which editors complete and check recipes."""

from __future__ import annotations

from typing import Any

from dynquant.importance.experts import SHRINK
from dynquant.quants.readers import READERS
from dynquant.quants.search import EFFORTS
from dynquant.quants.table import ALL
from dynquant.recipe.feedback import DAMPING, MAX_SWEEPS, MIN_DAMPING, SWEEPS
from dynquant.recipe.loader import shipped_recipes
from dynquant.recipe.reader import ACTIONS, NOT, SELECTORS, SHAPE_KEYS
from dynquant.recipe.roles import COMMON, GROUP_NOTES, GROUPS, ROLES
from dynquant.recipe.target import CONTEXT
from dynquant.recipe.values import (
    ARCHITECTURES,
    BOUND,
    COMPARISON,
    LAYERS,
    MAX_TOKENS,
    PERCENTS,
    SIZE,
)

SCHEMA_NAME = "recipe.schema.json"
"""The name of the shipped file, beside the recipes."""

EDITOR_LINE = f"# yaml-language-server: $schema={SCHEMA_NAME}"
"""The first line of a recipe, by which editors find the schema in the recipe's folder."""

_Schema = dict[str, Any]


def recipe_schema() -> _Schema:
    """Return the schema of a recipe (JSON Schema draft 7, which YAML editors read).

    It describes keys, words and formats. `dynquant recipe check` also finds faults that need a
    model, another file or a comparison of values (a reversed range, a rule that applies to none).
    """
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "dynquant recipe",
        "description": "the quant type of each tensor in a dynamic GGUF",
        **_keys(
            {
                "dynquant": _noted({"enum": [1, "1"]}, "version of the recipe language"),
                "name": _noted(
                    {"type": "string"}, "the name of the recipe; default: the file's name"
                ),
                "description": _noted({"type": "string"}, "the purpose of the recipe, in one line"),
                "extends": _noted(
                    _some({"anyOf": [{"enum": list(shipped_recipes())}, {"type": "string"}]}),
                    "shipped recipes, or paths from this file; later ones override earlier ones,"
                    " and this file overrides all",
                ),
                "for": _noted(
                    _some(_ref("architecture")),
                    "intended general.architecture; other models give a warning",
                ),
                "default": _noted(_ref("type"), "the type of every tensor that no rule matches"),
                "importance": _noted(
                    {"anyOf": [{"enum": _USES}, {**_importance(), "minProperties": 1}]},
                    "how an imatrix is used: required, optional or ignored; or a mapping",
                ),
                "feedback": _noted(
                    _ref("feedback"),
                    "how second moments are used for error feedback: auto, off or required; or a"
                    " mapping",
                ),
                "target": _noted(
                    _target(), "the size that `choose` fills: of the files, or a mapping"
                ),
                "effort": _noted(
                    {"enum": list(EFFORTS)}, "how hard the encoders search, unless the user sets it"
                ),
                "rules": _noted(
                    {"type": "array", "items": _ref("rule")},
                    "the first rule that matches a tensor decides",
                ),
                "fallback": _noted(
                    {"anyOf": [_ref("chain"), _chains()]},
                    "types to try in order if the block of a type does not divide the row",
                ),
                "output": _noted(_output(), "settings of the output file"),
                "metadata": _noted(
                    {"type": "object", "additionalProperties": _SCALAR},
                    "GGUF keys to set, as --set does",
                ),
                "prediction_layers": _noted(
                    {"enum": ["drop", "keep"]}, "layers for multi-token prediction (MTP)"
                ),
                "readers": _noted(
                    _some({"enum": list(READERS)}),
                    "programs that have to read all types of the file",
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
            "architecture": {"enum": ARCHITECTURES},
            "feedback": _feedback(),
            "chain": {"anyOf": [{"const": "error"}, _some(_ref("type"))]},
        },
    }


_USES = ["required", "optional", "ignored"]
_SCALAR = {"type": ["string", "number", "boolean"]}
_COUNT = {"type": "integer", "minimum": 1}


def _rule() -> _Schema:
    return {
        **_keys(
            {
                **_selectors(),
                "not": _noted(
                    _some({**_keys(_selectors()), "minProperties": 1}),
                    "the rule does not apply to tensors that match these selectors",
                ),
                "type": _noted(_ref("type"), "the type of the matching tensors"),
                "choose": _noted(
                    _choice(), "the types that the size decides between: any, a list, or limits"
                ),
                "keep": _noted({"const": True}, "keep the stored type of the tensor"),
                "drop": _noted({"const": True}, "leave the tensor out of the file"),
                "fallback": _noted(
                    _ref("chain"), "types to try in place of the recipe's fallback, in order"
                ),
                "feedback": _noted(
                    _ref("feedback"), "error feedback, where it differs from the recipe's"
                ),
                "optional": _noted({"type": "boolean"}, "the rule may apply to no tensor"),
                "override": _noted(
                    {"type": "boolean"},
                    "the rule may change tensors that the built-in rules protect",
                ),
                "note": _noted(
                    {"type": "string"}, "the reason for the rule; shown by plan and explain"
                ),
            }
        ),
        "dependencies": {
            "fallback": ["type"],
            "feedback": {"anyOf": [{"required": [action]} for action in ("type", "choose")]},
        },
        "allOf": [
            {
                "oneOf": [{"required": [action]} for action in ACTIONS],
                "errorMessage": "give one of type, choose, keep and drop",
            },
            {
                "anyOf": [{"required": [selector]} for selector in (*SELECTORS, NOT)],
                "errorMessage": f"add a selector: {', '.join(SELECTORS)} or {NOT}",
            },
        ],
    }


def _selectors() -> _Schema:
    """Return the selectors of a rule, which `not` has again."""
    return {
        "role": _noted(_some(_ref("role")), "GGUF role names, groups of roles, or globs (attn_*)"),
        "layers": _noted(
            _some({"anyOf": [_ref("range"), _ref("pattern")]}),
            "numbers (3, -1), ranges (0-3, 10-, -4--1), parts of the depth (0%-25%), patterns",
        ),
        "name": _noted(_some({"type": "string"}), "the whole GGUF name: a glob or a /regex/"),
        "shape": _noted(
            {**_keys(dict.fromkeys(SHAPE_KEYS, _COUNT)), "minProperties": 1},
            "requirements for the tensor's shape",
        ),
        "when": _noted({**_when(), "minProperties": 1}, "conditions for the model"),
    }


def _when() -> _Schema:
    compared = _some({"anyOf": [{"type": "integer", "minimum": 0}, _text(COMPARISON.pattern)]})
    return _keys(
        {
            "experts": _noted(compared, "routed experts of a layer, 0 if there are none"),
            "gqa": _noted(compared, "query heads for each key head"),
            "layers": _noted(compared, "number of layers, without prediction layers"),
            "tied_embeddings": _noted(
                {"type": "boolean"}, "the embedding is also the output matrix"
            ),
            "importance": _noted({"type": "boolean"}, "an imatrix is given"),
            "architecture": _noted(_some(_ref("architecture")), "general.architecture"),
        }
    )


def _pattern() -> _Schema:
    bound = {"anyOf": [{"type": "integer", "minimum": 0}, _text(BOUND.pattern)]}
    return {
        **_keys(
            {
                "in": _noted(_some(_ref("range")), "ranges of positions"),
                "first": _noted(bound, "number of layers at the beginning: 3, or 12.5%"),
                "last": _noted(bound, "number of layers at the end"),
                "every": _noted(_COUNT, "the step: 4 is every fourth layer"),
                "from": _noted(bound, "the first layer of `every`"),
                "of": _noted(
                    _some(_ref("role")), "count only layers that have a tensor of these roles"
                ),
            }
        ),
        "description": "layers that meet all these conditions",
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


def _importance() -> _Schema:
    return _keys(
        {
            "use": _noted({"enum": _USES}, "whether an imatrix is needed, used or ignored"),
            "shrink": _noted(
                {"type": "integer", "minimum": 0, "maximum": MAX_TOKENS},
                "tokens that what experts have in common counts as when it is mixed with the"
                f" importance of each; default: {SHRINK}; 0: not mixed",
            ),
            "unseen": _noted(
                {"enum": ["mean", "uniform", "error"]},
                "importance of experts without data: the mean of their layer, equal weights, or"
                " an error",
            ),
        }
    )


def _feedback() -> _Schema:
    # YAML 1.1, which some editors read, has false for `off`.
    uses = ["auto", "off", "required", False]
    keys = _keys(
        {
            "use": _noted(
                {"enum": uses},
                "auto: where moments are given; off: never; required: refuse to plan without them",
            ),
            "damping": _noted(
                {"type": "number", "minimum": MIN_DAMPING, "maximum": 1},
                f"from {MIN_DAMPING} to 1; more damping feeds back less of each error;"
                f" default: {DAMPING}",
            ),
            "sweeps": _noted(
                {"type": "integer", "minimum": 0, "maximum": MAX_SWEEPS},
                "passes over all columns that improve the codes afterwards, from 0 to"
                f" {MAX_SWEEPS}; default: {SWEEPS}",
            ),
        }
    )
    return {"anyOf": [{"enum": uses}, {**keys, "minProperties": 1}]}


def _choice() -> _Schema:
    limits = _keys(
        {
            "at_least": _noted(_ref("type"), "the type of the fewest bits"),
            "at_most": _noted(_ref("type"), "the type of the most bits"),
        }
    )
    return {"anyOf": [{"const": "any"}, _some(_ref("type")), {**limits, "minProperties": 1}]}


def _target() -> _Schema:
    size = {"anyOf": [_COUNT, _text(SIZE.pattern)]}
    bits = {"type": "number", "exclusiveMinimum": 0, "maximum": 32}
    roles = {"type": "array", "items": _ref("role"), "minItems": 2}
    keys = _keys(
        {
            "size": _noted(size, "of all files: 131GB, 24GiB"),
            "bpw": _noted(bits, "mean bits of a weight, over all tensors"),
            "fit": _noted(size, "memory for the weights, the cache and buffers of llama.cpp"),
            "context": _noted(_COUNT, f"tokens that `fit` has room for; default: {CONTEXT}"),
            "share": _noted(
                {"type": "array", "items": roles},
                "lists of roles of a layer that share a type; default: gate and up where they may"
                " have the same types; []: none",
            ),
        }
    )
    return {"anyOf": [size, {**keys, "minProperties": 1}]}


def _output() -> _Schema:
    shard = {"anyOf": [_COUNT, _text(SIZE.pattern)]}
    return _keys(
        {
            "shard_size": _noted(shard, "the largest size of a shard: 50GB, 46GiB"),
            "tensor_order": _noted(
                {"enum": ["model", "layer"]}, "the order of the model, or layer by layer"
            ),
        }
    )


def _type() -> _Schema:
    listed = [{"const": t.name, "description": t.description} for t in ALL.values()]
    return {"anyOf": [{"enum": list(ALL)}, {"oneOf": listed}, _text(_ANY_CASE)]}


def _role() -> _Schema:
    groups = [{"const": name, "description": GROUP_NOTES[name]} for name in GROUPS]
    roles = [*GROUPS, *COMMON, *sorted(ROLES - {*COMMON})]  # completion offers them in this order
    return {"anyOf": [{"enum": roles}, {"oneOf": groups}, _text(r"[a-z_.0-9]*\*[a-z_.0-9*]*")]}


def _range() -> _Schema:
    return {"anyOf": [{"type": "integer"}, _text(f"{LAYERS.pattern}|{PERCENTS.pattern}")]}


_ANY_CASE = "".join(
    (
        "^(",
        "|".join("".join(f"[{c}{c.lower()}]" if c.isalpha() else c for c in name) for name in ALL),
        ")$",
    )
)
"""The names of all types in any case; regular expressions of JSON Schema have no flags."""


def _keys(properties: _Schema) -> _Schema:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _some(one: _Schema) -> _Schema:
    return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


def _text(pattern: str) -> _Schema:
    return {"type": "string", "pattern": pattern if pattern[0] == "^" else f"^(?:{pattern})$"}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/definitions/{name}"}


def _noted(schema: _Schema, note: str) -> _Schema:
    """Return a schema with a description, which draft 7 ignores beside $ref."""
    return (
        {"allOf": [schema], "description": note}
        if "$ref" in schema
        else schema | {"description": note}
    )
