"""The recipe language: YAML that gives every tensor of a model its quant type.

    dynquant: 1                      version of the language; optional
    name: small                      default: the file's name without .yaml
    description: its purpose         optional
    extends: dynamic-4bit            a shipped recipe, or a path from this file: its rules come
                                     after this file's; its other keys are the defaults
    for: [llama, qwen3]              intended general.architecture; others give a warning
    default: Q4_K                    the type of every tensor that no rule matches
    importance: optional             required, optional or ignored: the use of an imatrix
    effort: normal                   fast, normal or best, unless the user gives one
    rules:                           the first rule that matches a tensor decides
      - role: [ffn_down, experts]    GGUF role names, and groups of them (roles.py)
        layers: [0-3, -1, 50%-75%]   numbers, ranges, parts of the depth, and patterns such as
                                     {first: 6, of: experts} or {every: 4, from: 2}
        name: /^blk\\.[0-3]\\./        the whole GGUF name: a glob, or a /regular expression/
        shape: {row_multiple_of: 256, min_weights: 1000000}
        when: {experts: ">= 8"}      facts of the model: experts, gqa, layers, tied_embeddings,
                                     importance, architecture
        type: Q6_K                   or `keep: true`, the stored type; or `drop: true`
        optional: true               it may apply to no tensor
        override: true               it may change tensors that the built-in rules protect
        note: the reason             shown by plan and explain
    fallback: [IQ4_NL, Q8_0, F16]    tried in order if the block does not divide the row; or a
                                     list for each type: {IQ1_S: [IQ4_NL, F16], any: error}
    output: {shard_size: 50GB}       and tensor_order: model or layer
    metadata: {general.name: Mine}   GGUF keys to set, as --set does
    prediction_layers: drop          or keep: the layers for multi-token prediction, after the
                                     model's main layers; default: drop
    readers: [mistral.rs, candle]    programs that have to read all types: other types are errors,
                                     and fallback types are chosen from those that they read

A selector matches if one of its values matches; a rule matches if all its selectors match. A rule
whose `when` is false is skipped. The fallback skips types with fewer bits per weight than the type
they would replace; with `fallback: error`, the default, rows that do not divide are an error. A
name that begins with `*` or `[` needs quotes, because YAML gives these characters a meaning.

Prediction layers that are kept can be selected by role (only they have `nextn.eh_proj` and
similar roles; the group `mtp` contains all their tensors), by name, or by number. Their numbers
follow those of the main layers; -1 is still the last main layer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dynquant.errors import RecipeError
from dynquant.recipe.reader import ExtendsError, RecipeReader
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.yaml_nodes import MAX_BYTES, compose, nearest
from dynquant.untrusted import shown

ALIASES = {"q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M"}
"""Other names of shipped recipes, in lower case: llama-quantize's aliases of its mixes."""

MAX_CHAIN = 64
"""Longest chain of recipes that extend each other; usual are two or three."""

_BUILT_IN = Path(__file__).parent / "built-in.yaml"


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with dynquant, by name.

    They are those of the installed package, or else those of a checkout. The mixes of
    llama-quantize, in a separate folder, come last.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        own, mixes = sorted(folder.glob("*.yaml")), sorted(folder.glob("llama.cpp/*.yaml"))
        if own:
            return {path.stem: path for path in (*own, *mixes)}
    return {}


def is_shipped(recipe: Recipe) -> bool:
    """Whether a recipe is one of the package's own, which its user did not write."""
    return recipe.name in shipped_recipes() and recipe.path == f"recipes/{recipe.name}.yaml"


def load_recipe(name_or_path: str | Path | Mapping[str, Any]) -> Recipe:
    """Read a shipped recipe by its name ("q8_0", in any case), or a recipe file by its path.

    A mapping is a recipe as YAML would load it: `{"default": "Q4_K", "rules": [...]}`.

    Raises RecipeError with all faults of the file, each with line and column.
    """
    if isinstance(name_or_path, Mapping):
        try:
            text = yaml.safe_dump(dict(name_or_path), sort_keys=False)
        except yaml.YAMLError as e:
            raise RecipeError(f"the mapping cannot be written as a recipe: {e}") from e
        return parse_recipe(text, "recipe", "recipe")
    return _load(name_or_path, ())


def parse_recipe(text: str, path: str, name: str) -> Recipe:
    """Read a recipe's text; path: its name in messages; name: used if the text has none.

    Raises RecipeError with every fault, in the order of the file.
    """
    return _parse(text, path, name, (path,))


@cache
def built_in_rules() -> tuple[Rule, ...]:
    """Return the built-in rules, which precede the rules of every recipe except overriding ones."""
    reader = RecipeReader("built-in", load_recipe)
    root = compose(built_in_text(), "built-in")
    assert root is not None
    keys = reader.mapping(root, ("dynquant", "name", "description", "rules"), "built-in.yaml")
    assert keys is not None
    rules = reader.rules(keys["rules"])
    assert not reader.faults, "the built-in rules have no faults"
    return rules


def built_in_text() -> str:
    """Return the YAML of the built-in rules."""
    return _BUILT_IN.read_text("utf-8")


def _load(name_or_path: str | Path, chain: tuple[str, ...]) -> Recipe:
    """Read a recipe; chain: the files that extend each other up to it, as named in messages."""
    path, called = _find(name_or_path, chain)
    if called in chain:
        circle = " -> ".join((*chain[chain.index(called) :], called))
        raise ExtendsError(
            f"{shown(str(name_or_path))} extends itself: {circle}; remove one `extends`"
        )
    if len(chain) == MAX_CHAIN:
        raise ExtendsError(
            f"{shown(str(name_or_path))} follows a chain of {MAX_CHAIN} recipes that extend"
            " each other; merge some of them"
        )
    return _parse(_read(path, called), called, path.stem, (*chain, called))


def _find(name_or_path: str | Path, chain: tuple[str, ...]) -> tuple[Path, str]:
    """Return a recipe's file and its name in messages.

    A relative path is resolved from the folder of the file that extends it.
    """
    shipped = shipped_recipes()
    if isinstance(name_or_path, str):
        by_lower = {name.lower(): name for name in shipped}
        lower = name_or_path.lower()
        name = name_or_path if name_or_path in shipped else by_lower.get(lower)
        if name is None and ALIASES.get(lower) in shipped:
            name = ALIASES[lower]
        if name is not None:
            folder = next(p for p in shipped[name].parents if p.name == "recipes")
            return shipped[name], f"recipes/{shipped[name].relative_to(folder).as_posix()}"
    folder = Path(chain[-1]).parent if chain else Path()
    path = Path(os.path.normpath(folder / name_or_path))
    # The user may name a pipe (`<(...)` of a shell); a recipe may only name a file.
    if not _is_there(path) or (chain and not path.is_file()):
        raise ExtendsError(
            f"{shown(str(name_or_path))} is neither a shipped recipe nor a file"
            f"{nearest(path.stem, shipped)} (`dynquant recipes` lists the shipped ones)"
        )
    return path, str(path if chain else name_or_path)


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the system
        return False


def _read(path: Path, called: str) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise RecipeError(f"{called}: cannot be read: {e.strerror}") from e
    if len(content) > MAX_BYTES:
        raise RecipeError(f"{called}: more than {MAX_BYTES} bytes; this is not a recipe")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = content.count(b"\n", 0, e.start) + 1
        column = e.start - content.rfind(b"\n", 0, e.start)
        raise RecipeError(f"{called}:{line}:{column}: not UTF-8 text; save it as UTF-8") from e


def _parse(text: str, path: str, name: str, chain: tuple[str, ...]) -> Recipe:
    reader = RecipeReader(path, lambda parent: _load(parent, chain))
    recipe = reader.recipe(compose(text, path), text, name)
    own = (f"{place}: {message}" for place, message in sorted(reader.faults))
    RecipeError.raise_any((*own, *reader.inherited_faults))
    assert recipe is not None, "a recipe that cannot be made has a fault"
    return recipe
