"""The JSON Schema of recipes agrees with the reader; the oracle is the jsonschema package."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
import yaml
from every_key import EVERY_KEY
from places import ROOT

from dynquant.errors import RecipeError
from dynquant.recipe.loader import parse_recipe, shipped_recipes
from dynquant.recipe.schema import EDITOR_LINE, recipe_schema

VALIDATOR = jsonschema.Draft7Validator(recipe_schema())


def accepts(text: str) -> bool:
    return VALIDATOR.is_valid(yaml.safe_load(text))


def reads(text: str) -> bool:
    try:
        parse_recipe(text, "r.yaml", "r")
    except RecipeError:
        return False
    return True


def test_schema_is_valid() -> None:
    jsonschema.Draft7Validator.check_schema(recipe_schema())


def test_shipped_schema_is_current() -> None:
    shipped = json.loads((ROOT / "recipes" / "recipe.schema.json").read_text())
    assert shipped == recipe_schema()


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_name_the_schema_and_are_valid(name: str) -> None:
    path = shipped_recipes()[name]
    first = path.read_text().splitlines()[0]
    *head, pointer = first.partition("$schema=")
    assert "".join(head) == EDITOR_LINE.partition("$schema=")[0] + "$schema="
    assert (path.parent / pointer).resolve() == ROOT / "recipes" / "recipe.schema.json"
    document: Any = yaml.safe_load(path.read_text())
    assert [e.message for e in VALIDATOR.iter_errors(document)] == []


def test_a_recipe_with_every_key_is_valid() -> None:
    assert accepts(EVERY_KEY) and reads(EVERY_KEY)


BODY = "default: Q4_K\nrules:\n  - "
WRONG = [
    "default: q4km",
    "defualt: Q4_K",
    "name: no default",
    "- a list",
    "default: Q4_K\ndynquant: 2",
    "default: Q4_K\nfor: lama",
    "default: Q4_K\nimportance: needed",
    "default: Q4_K\nimportance: {}",
    "default: Q4_K\nimportance: [required]",
    "default: Q4_K\nimportance: {use: needed}",
    "default: Q4_K\nimportance: {shrink: -1}",
    "default: Q4_K\nimportance: {shrink: 1.5}",
    "default: Q4_K\nimportance: {shrink: 1000000000}",
    "default: Q4_K\nimportance: {unseen: zero}",
    "default: Q4_K\nimportance: {few: 3}",
    "default: Q4_K\nfeedback: on",
    "default: Q4_K\nfeedback: []",
    "default: Q4_K\nfeedback: {}",
    "default: Q4_K\nfeedback: {use: optional}",
    "default: Q4_K\nfeedback: {damping: 1.5}",
    "default: Q4_K\nfeedback: {damping: -0.1}",
    "default: Q4_K\nfeedback: {damping: small}",
    "default: Q4_K\nfeedback: {sweeps: 9}",
    "default: Q4_K\nfeedback: {sweeps: -1}",
    "default: Q4_K\nfeedback: {sweeps: 1.5}",
    "default: Q4_K\nfeedback: {rounds: 2}",
    "default: Q4_K\neffort: high",
    "default: Q4_K\nfallback: {Q9: F16}",
    "default: Q4_K\nfallback: [Q8_0, f17]",
    "default: Q4_K\noutput: {shard_size: 50 apples}",
    "default: Q4_K\noutput: {order: layer}",
    "default: Q4_K\nprediction_layers: maybe",
    "default: Q4_K\nreaders: vllm",
    "default: Q4_K\nreaders: []",
    BODY + "role: attn_v",
    BODY + "type: Q6_K",
    BODY + "{role: attn_v, type: Q6_K, keep: true}",
    BODY + "{role: attn_v, keep: false}",
    BODY + "{role: ffn_dwon, type: Q6_K}",
    BODY + "{role: [], type: Q6_K}",
    BODY + "{layers: first, type: Q6_K}",
    BODY + "{layers: 0%-200, type: Q6_K}",
    BODY + "{layers: {evry: 2}, type: Q6_K}",
    BODY + "{layers: {every: 0}, type: Q6_K}",
    BODY + "{layers: {from: 2}, type: Q6_K}",
    BODY + "{layers: {of: experts}, type: Q6_K}",
    BODY + "{shape: {rows: 3}, type: Q6_K}",
    BODY + "{when: {experts: many}, type: Q6_K}",
    BODY + "{when: {importance: maybe}, type: Q6_K}",
    BODY + "{role: attn_v, type: Q6_K, optional: perhaps}",
    BODY + "{role: attn_v, shape: {}, type: Q6_K}",
    BODY + "{role: attn_v, when: {}, type: Q6_K}",
    BODY + "{role: attn_v, layers: {}, type: Q6_K}",
    BODY + "{role: attn_v, not: {}, type: Q6_K}",
    BODY + "{role: attn_v, not: [], type: Q6_K}",
    BODY + "{role: attn_v, not: attn_q, type: Q6_K}",
    BODY + "{role: attn_v, not: {not: {layers: 1}}, type: Q6_K}",
    BODY + "{role: attn_v, not: {type: Q6_K}, type: Q6_K}",
    BODY + "{role: attn_v, fallback: Q9, type: Q6_K}",
    BODY + "{role: attn_v, fallback: {any: F16}, type: Q6_K}",
    BODY + "{role: attn_v, fallback: F16, keep: true}",
    BODY + "{role: attn_v, feedback: off, keep: true}",
    BODY + "{role: attn_v, feedback: {sweep: 1}, type: Q6_K}",
    "extends: []",
    "extends: [q8_0, {a: b}]",
]


@pytest.mark.parametrize("text", WRONG)
def test_reader_refuses_recipes_that_the_schema_refuses(text: str) -> None:
    assert not accepts(text)
    assert not reads(text)


RIGHT = [
    "default: q4_k",
    "extends: q8_0",
    "extends: [q8_0, dynamic-4bit]",
    BODY + "{not: {role: attn_v}, type: Q6_K}",
    BODY + "{role: attention, not: [{role: attn_v, layers: 0-3}, {name: '*.k'}], type: Q6_K}",
    BODY + "{role: attn_v, type: Q6_K, fallback: Q5_1}",
    BODY + "{role: attn_v, type: Q6_K, fallback: error}",
    BODY + "{role: attention, layers: [3, 0-3, -4--1, 0%-12.5%], type: Q6_K}",
    BODY + "{layers: {every: 3, from: 12.5%+2, of: [experts, attn_v]}, type: iq4_nl}",
    BODY + "{layers: {in: 1-3, first: 25%, last: 9}, type: Q6_K}",
    BODY + "{when: {experts: ['>= 8', 4], gqa: 1, architecture: [llama, qwen3]}, type: Q6_K}",
    "default: Q4_K\nimportance: {shrink: 0}",
    "default: Q4_K\nimportance: {use: optional, shrink: 999999999, unseen: error}",
    "default: Q4_K\nfeedback: off",
    "default: Q4_K\nfeedback: {use: 'off'}",
    "default: Q4_K\nfeedback: {damping: 0.01, sweeps: 8}",
    "default: Q4_K\nfeedback: {use: required, damping: 1.0e-01, sweeps: 0}",
    BODY + "{role: attn_v, type: Q6_K, feedback: auto}",
    BODY + "{role: attn_v, type: Q6_K, feedback: {damping: 1}}",
    "default: Q4_K\nfallback: error",
    "default: Q4_K\nfallback: {iq1_s: error, Q4_K: [Q5_0, F16], any: F16}",
    "default: Q4_K\noutput: {shard_size: 46.5GiB, tensor_order: layer}",
    "default: Q4_K\nmetadata: {general.name: Tiny, general.size: 3, x.y: 1.5, x.z: true}",
]


@pytest.mark.parametrize("text", RIGHT)
def test_schema_accepts_recipes_that_the_reader_accepts(text: str) -> None:
    assert accepts(text)
    assert reads(text)
