"""The recipe language: YAML in which every tensor of a model gets its quant type.

    dynquant: 1                      version of the language; may be left out
    name: small                      the file's name without .yaml if left out
    description: what it is for      may be left out
    extends: dynamic-4bit            a shipped recipe, or a path from this file: its rules come
                                     after the own ones, its other keys are taken where not given
    for: [llama, qwen3]              general.architecture it is meant for; others are warned of
    default: Q4_K                    the type of every tensor that no rule takes
    importance: optional             required, optional or ignored: what becomes of an imatrix
    effort: normal                   fast, normal or best, where the user asks for none
    rules:                           the first rule that fits a tensor decides
      - role: [ffn_down, experts]    GGUF role names, and groups of them (roles.py)
        layers: [0-3, -1, 50%-75%]   numbers, ranges, parts of the depth, and patterns such as
                                     {first: 6, of: experts} or {every: 4, from: 2}
        name: /^blk\\.[0-3]\\./        the whole GGUF name: a glob, or a /regular expression/
        shape: {row_multiple_of: 256, min_weights: 1000000}
        when: {experts: ">= 8"}      facts of the model: experts, gqa, layers, tied_embeddings,
                                     importance, architecture
        type: Q6_K                   or `keep: true`, the stored type; or `drop: true`
        optional: true               it may take no tensor
        override: true               it may take tensors that the built-in rules protect
        note: why                    shown by plan and explain
    fallback: [IQ4_NL, Q8_0, F16]    tried in order where no block of the type divides the row; or
                                     a chain for each type: {IQ1_S: [IQ4_NL, F16], any: error}
    output: {shard_size: 50GB}       and tensor_order: model or layer
    metadata: {general.name: Mine}   GGUF keys to set, as --set does
    prediction_layers: drop          or keep: layers beyond the model's own that predict further
                                     tokens (multi-token prediction); dropped if left out

A selector holds if one of its values does; a rule fits where all its selectors hold. A rule whose
`when` does not hold is passed over. The fallback passes over types with fewer bits per weight than
the one they would replace; `fallback: error`, the same as none, refuses rows that do not divide. A
name that begins with `*` or `[` needs quotes, as YAML has a meaning of its own for these.

Prediction layers that are kept are selected by role (`nextn.eh_proj` and others are theirs alone,
the group `mtp` is all of theirs), by name, or by number: they come after the model's own layers,
the last of which stays -1.
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from dynquant.errors import RecipeError
from dynquant.recipe.reader import ExtendsError, RecipeReader
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.yaml_nodes import MAX_BYTES, compose, nearest
from dynquant.untrusted import shown

ALIASES = {"q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M"}
"""Other names of shipped recipes, in lower case: those that llama-quantize takes for its mixes."""

MAX_CHAIN = 64
"""Recipes that extend each other; two or three say what there is to say."""

_BUILT_IN = Path(__file__).parent / "built-in.yaml"


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that come with dynquant, by name: the installed ones, or a checkout's.

    The mixes of llama-quantize, in a folder of their own, come last.
    """
    package = Path(__file__).parent.parent
    for folder in (package / "recipes", package.parent / "recipes"):
        own, mixes = sorted(folder.glob("*.yaml")), sorted(folder.glob("llama.cpp/*.yaml"))
        if own:
            return {path.stem: path for path in (*own, *mixes)}
    return {}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Read a shipped recipe by its name ("q8_0", in any case), or a recipe file by its path.

    Raises RecipeError with every fault of the file, each with line and column.
    """
    return _load(name_or_path, ())


def parse_recipe(text: str, path: str, name: str) -> Recipe:
    """Read a recipe's text; `path` is what messages call it, `name` stands in for a missing one.

    Raises RecipeError with every fault, in the order of the file.
    """
    return _parse(text, path, name, (path,))


@cache
def built_in_rules() -> tuple[Rule, ...]:
    """Return the rules that come before every recipe's own, except those that override them."""
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
    """Read a recipe; chain: the files, as messages call them, that extend each other up to it."""
    path, called = _find(name_or_path, chain)
    if called in chain:
        circle = " -> ".join((*chain[chain.index(called) :], called))
        raise ExtendsError(
            f"{shown(str(name_or_path))} goes round in a circle: {circle}; take one out"
        )
    if len(chain) == MAX_CHAIN:
        raise ExtendsError(
            f"{shown(str(name_or_path))} comes after {MAX_CHAIN} recipes that each extend"
            " the next; put some of them together"
        )
    return _parse(_read(path, called), called, path.stem, (*chain, called))


def _find(name_or_path: str | Path, chain: tuple[str, ...]) -> tuple[Path, str]:
    """Return a recipe's file, and what messages call it; a path is from the file that extends."""
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
    # What a person names may be a pipe (`<(...)` of a shell), what a recipe names is a file.
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
        raise RecipeError(f"{called}: more than {MAX_BYTES} bytes; this is no recipe")
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
    assert recipe is not None, "a recipe that cannot be created has a fault"
    return recipe
