"""The recipe language: YAML that gives every tensor of a model its quant type.

    dynquant: 1                      version of the language; optional
    name: small                      default: the file's name without .yaml
    description: its purpose         optional
    extends: dynamic-4bit            a shipped recipe, or a path from this file, or a list of them,
                                     of which later ones override earlier ones (extending.py)
    for: [llama, qwen3]              intended general.architecture; others give a warning
    default: Q4_K                    the type of every tensor that no rule matches
    importance: optional             required, optional or ignored: the use of an imatrix; or
                                     {use: optional, shrink: 64, unseen: mean} (experts.py)
    target: {size: 131GB}            the size, for rules with `choose`; or {bpw: 2.1}, or
                                     {fit: 24GiB, context: 8192}
    effort: normal                   fast, normal or best, unless the user gives one
    rules:                           the first rule that matches a tensor decides
      - role: [ffn_down, experts]    GGUF role names, and groups of them (roles.py)
        layers: [0-3, -1, 50%-75%]   numbers, ranges, parts of the depth, and patterns such as
                                     {first: 6, of: experts} or {every: 4, from: 2}
        name: /^blk\\.[0-3]\\./        the whole GGUF name: a glob, or a /regular expression/
        shape: {row_multiple_of: 256, min_weights: 1000000}
        when: {experts: ">= 8"}      facts of the model: experts, gqa, layers, tied_embeddings,
                                     importance, architecture
        not: {role: attn_v}          selectors again: tensors that match them are left to other
                                     rules; or a list of such mappings
        type: Q6_K                   or `keep: true`, the stored type; or `drop: true`; or
                                     `choose: [Q5_K, Q6_K]`, `choose: {at_least: Q4_K}` or
                                     `choose: any`: the size of the file decides
        fallback: Q5_1               for this rule alone, whatever its bits; or a list, or error
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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from dynquant.errors import RecipeError
from dynquant.recipe.extending import Given, joined
from dynquant.recipe.reader import ExtendsError, Parent, RecipeReader
from dynquant.recipe.rules import Recipe, Rule
from dynquant.recipe.yaml_nodes import MAX_BYTES, compose, nearest
from dynquant.untrusted import shown

ALIASES = {"q3_k": "Q3_K_M", "q4_k": "Q4_K_M", "q5_k": "Q5_K_M"}
"""Other names of shipped recipes, in lower case: llama-quantize's aliases of its mixes."""

MAX_FILES = 64
"""Most files of a recipe, those that it extends included; usual are two or three."""

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
    return joined(_Files().load(name_or_path))


def parse_recipe(text: str, path: str, name: str) -> Recipe:
    """Read a recipe's text; path: its name in messages; name: used if the text has none.

    Raises RecipeError with every fault, in the order of the file.
    """
    return joined(_Files().parse(text, path, name, os.path.realpath(path)))


def recipe_of_texts(texts: Sequence[str], name: str) -> Recipe:
    """Return the recipe of a text and of those that it extends, in the order of their rules.

    name: of the recipe

    Raises RecipeError with the faults of the texts; messages call the others `NAME, extended 1`.
    """
    if len(texts) > MAX_FILES:
        raise RecipeError(f"{name}: extends {len(texts) - 1} recipes; at most {MAX_FILES - 1} can")
    found: list[Given] = []
    faults: list[str] = []
    for i, text in enumerate(texts):
        path = f"{name}, extended {i}" if i else name
        if len(text) > MAX_BYTES:
            faults.append(f"{path}: more than {MAX_BYTES} bytes; this is not a recipe")
            continue
        try:
            found += _parse(text, path, path, lambda _: ())
        except RecipeError as e:
            faults += e.messages
    if not faults and all(file.default is None for file in found):
        faults.append(f"{name}: no default; add one, such as `default: Q4_K`")
    RecipeError.raise_any(faults)
    return replace(joined(found), name=name)


@cache
def built_in_rules() -> tuple[Rule, ...]:
    """Return the built-in rules, which precede the rules of every recipe except overriding ones."""
    reader = RecipeReader("built-in", lambda _: ())
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


class _Files:
    """Reads a recipe's files, each once, however many others extend it."""

    def __init__(self) -> None:
        self._read: dict[str, Sequence[Given] | RecipeError] = {}
        self._open: dict[str, str] = {}  # the files being read, by their place on the disk

    def load(self, name_or_path: str | Path) -> Sequence[Given]:
        """Return a file and those that it extends, in the order of their rules."""
        path, called = _find(name_or_path, list(self._open.values())[-1:])
        place = os.path.realpath(path)
        if place in self._open:
            names = list(self._open.values())
            circle = " -> ".join((*names[list(self._open).index(place) :], called))
            raise ExtendsError(
                f"{shown(str(name_or_path))} extends itself: {circle}; remove one `extends`"
            )
        found = self._read.get(place)
        if found is None:
            if len(self._read) + len(self._open) == MAX_FILES:
                raise ExtendsError(
                    f"{shown(str(name_or_path))} follows {MAX_FILES} recipes that extend each"
                    " other; merge some of them"
                )
            try:
                found = self.parse(_read(path, called), called, path.stem, place)
            except RecipeError as e:
                found = e
            self._read[place] = found
        if isinstance(found, RecipeError):
            raise found
        return found

    def parse(self, text: str, path: str, name: str, place: str) -> Sequence[Given]:
        """Return a text and the files that it extends; place: where the text is on the disk."""
        self._open[place] = path
        try:
            return _parse(text, path, name, self.load)
        finally:
            del self._open[place]


def _find(name_or_path: str | Path, extending: Sequence[str]) -> tuple[Path, str]:
    """Return a recipe's file and its name in messages.

    extending: the file that extends it, if there is one

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
    folder = Path(extending[0]).parent if extending else Path()
    path = Path(os.path.normpath(folder / name_or_path))
    # The user may name a pipe (`<(...)` of a shell); a recipe may only name a file.
    if not _is_there(path) or (extending and not path.is_file()):
        raise ExtendsError(
            f"{shown(str(name_or_path))} is neither a shipped recipe nor a file"
            f"{nearest(path.stem, shipped)} (`dynquant recipes` lists the shipped ones)"
        )
    return path, str(path if extending else name_or_path)


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


def _parse(text: str, path: str, name: str, parent: Parent) -> Sequence[Given]:
    reader = RecipeReader(path, parent)
    files = reader.recipe(compose(text, path), text, name)
    own = (f"{place}: {message}" for place, message in sorted(reader.faults))
    RecipeError.raise_any((*own, *reader.inherited_faults))
    assert files, "a recipe that cannot be read has a fault"
    return files
