"""Attacks by words beside the weights: model cards, recipes, lists of types, journals."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path
from typing import Any

from attacks.making import (
    on,
    reference,
)

# Words beside the weights


@on("model card", "CheckpointError", "an alias")
def front_matter_that_laughs_a_thousand_million_times(at: Path) -> None:
    """README.md with ten lists, each of nine aliases of the one before"""
    reference(at, "llama-3.1")
    lines = ["l0: &l0 [lol, lol]", *(f"l{i}: &l{i} [{f'*l{i - 1}, ' * 9}x]" for i in range(1, 11))]
    (at / "README.md").write_text("\n".join(["---", *lines, "tags: *l10", "---"]))


@on("model card", "CheckpointError", "nested too deep")
def front_matter_without_bottom(at: Path) -> None:
    """README.md with 10,000 lists in each other"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\ntags: " + "[" * 10_000 + "\n---\n")


@on("model card", "CheckpointError", "front matter is not YAML")
def front_matter_that_runs_code(at: Path) -> None:
    """README.md with a tag !!python/object/apply:os.system"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\ntags: !!python/object/apply:os.system [touch owned]\n---\n")


@on("model card", "CheckpointError", "front matter is not YAML")
def a_date_that_is_none(at: Path) -> None:
    """README.md with 2024-99-99, of which YAML makes a date"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\nversion: 2024-99-99\n---\n")


@on("model card", "CheckpointError", "a link out of the folder")
def a_model_card_elsewhere(at: Path) -> None:
    """README.md is a link to /etc/passwd"""
    reference(at, "llama-3.1")
    (at / "README.md").symlink_to("/etc/passwd")


@on("model card", "ArchitectureError", "is not in this folder")
def modules_elsewhere(at: Path) -> None:
    """modules.json that names ../../ as the folder of its pooling"""
    reference(at, "llama-3.1")
    (at / "modules.json").write_text('[{"type": "m.Pooling", "path": "../../"}]')


@on("model card", "ArchitectureError", "pooling by")
def a_mode_that_cannot_be_looked_up(at: Path) -> None:
    """1_Pooling/config.json with a list for its mode"""
    reference(at, "llama-3.1")
    (at / "p").mkdir()
    (at / "modules.json").write_text('[{"type": "m.Pooling", "path": "p"}]')
    (at / "p" / "config.json").write_text('{"pooling_mode": ["mean"]}')


# Recipes and lists of types


def recipe(at: Path, rule: str) -> None:
    """Write a recipe of one rule, which need take no tensor."""
    (at / "r.yaml").write_text(f"default: F16\nrules: [{{{rule}, type: F16, optional: true}}]\n")


@on("recipe")
def a_pattern_with_two_to_the_63_ways(at: Path) -> None:
    """name: /^([a-z0-9_.]+)+!$/, and more of the kind"""
    patterns = [r"^([a-z0-9_.]+)+!$", r"(\w|\w)*!", r"(.*)*(.*)*!", r".*.*.*.*.*.*.*!"]
    recipe(at, "name: [" + ", ".join(f"'/{p}/'" for p in (*patterns, "(.|.)" * 50 + "!")) + "]")


@on("recipe", "RecipeError", "may take for ever")
def a_pattern_that_refers_back(at: Path) -> None:
    r"""name: /(\w+)+\1!/"""
    recipe(at, r"name: '/(\w+)+\1!/'")


@on("recipe", "RecipeError", "nested too deep")
def a_pattern_of_brackets(at: Path) -> None:
    """name: / and 5000 brackets"""
    recipe(at, f"name: '/{'(' * 5000}a{')' * 5000}/'")


@on("recipe", "RecipeError", "repetition number is too large")
def a_pattern_that_repeats_too_often(at: Path) -> None:
    """name: /a{99999999999}/"""
    recipe(at, "name: '/a{99999999999}/'")


@on("recipe", "RecipeError", "recipes that each extend the next")
def a_chain_of_a_thousand_recipes(at: Path) -> None:
    """a recipe that extends one that extends one ..."""
    for i in range(1000):
        (at / f"{i}.yaml").write_text(f"extends: {i + 1}.yaml")
    (at / "r.yaml").write_text("extends: 0.yaml")


@on("recipe", "RecipeError", "neither a shipped recipe nor a file")
def a_recipe_that_extends_a_pipe(at: Path) -> None:
    """extends a FIFO"""
    os.mkfifo(at / "p")
    (at / "r.yaml").write_text("extends: p")


@on("recipe", "RecipeError", "neither a shipped recipe nor a file")
def a_recipe_that_extends_a_device(at: Path) -> None:
    """extends /dev/zero"""
    (at / "r.yaml").write_text("extends: /dev/zero")


@on("recipe", "RecipeError", "neither a shipped recipe nor a file")
def a_recipe_that_extends_a_name_too_long(at: Path) -> None:
    """extends a name of 5000 letters"""
    (at / "r.yaml").write_text(f"extends: {'x' * 5000}")


@on("list of types", "RecipeError", "at most 4096 are read")
def a_pattern_of_a_hundred_thousand_letters(at: Path) -> None:
    """a pattern of 100,000 brackets, looked at from each of them"""
    (at / "types.txt").write_text("[" * 100_000 + "=q4_k")


@on("list of types", "RecipeError", "takes no tensor")
def patterns_of_a_list_that_take_for_ever(at: Path) -> None:
    """(.|.) fifty times and zz, which is searched in every name that GGUF knows"""
    (at / "types.txt").write_text("attn_q=q8_0\na" + "(.|.)" * 50 + "x=q4_k")


# The journal


@on("journal", "ConvertError", "is not a journal")
def a_journal_without_bottom(at: Path) -> None:
    """an identity of 100,000 lists in each other, beside a checkpoint that is converted"""
    (at / "m.journal").write_bytes(b"[" * 100_000 + b"\n")


@on("journal", "ConvertError", "begin anew")
def a_journal_of_another_conversion(at: Path) -> None:
    """an identity whose source is a text of a megabyte, and 64 objects in each other"""
    deep: Any = "x"
    for _ in range(60):
        deep = {"a": deep}
    identity = json.dumps({"version": deep, "source": "x" * 1_000_000})
    record = struct.pack("<IQQQ5d", 2**32 - 2, 2**64 - 1, 0, 0, *[float("nan")] * 5)
    record += struct.pack("<I", zlib.crc32(record))
    (at / "m.journal").write_bytes(identity.encode() + b"\n" + record)


@on("journal", "ConvertError", "Too many levels of symbolic links")
def a_journal_that_is_a_link(at: Path) -> None:
    """m.journal is a link to a file elsewhere, which would be emptied"""
    (at.parent / "precious").write_text("precious")
    (at / "m.journal").symlink_to("../precious")


@on("journal", "ConvertError", "cannot be read")
def a_journal_that_is_a_pipe(at: Path) -> None:
    """m.journal is a FIFO"""
    os.mkfifo(at / "m.journal")
