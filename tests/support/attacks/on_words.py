"""Attacks with other text files: model cards, recipes, lists of types, journals."""

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

# Model cards


@on("model card", "CheckpointError", "an alias")
def front_matter_of_a_billion_laughs(at: Path) -> None:
    """README.md with ten lists, each of nine aliases of the one before"""
    reference(at, "llama-3.1")
    lines = ["l0: &l0 [lol, lol]", *(f"l{i}: &l{i} [{f'*l{i - 1}, ' * 9}x]" for i in range(1, 11))]
    (at / "README.md").write_text("\n".join(["---", *lines, "tags: *l10", "---"]))


@on("model card", "CheckpointError", "nested too deep")
def deeply_nested_front_matter(at: Path) -> None:
    """README.md with 10,000 nested lists"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\ntags: " + "[" * 10_000 + "\n---\n")


@on("model card", "CheckpointError", "front matter is not YAML")
def front_matter_that_runs_code(at: Path) -> None:
    """README.md with a tag !!python/object/apply:os.system"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\ntags: !!python/object/apply:os.system [touch owned]\n---\n")


@on("model card", "CheckpointError", "front matter is not YAML")
def an_invalid_date(at: Path) -> None:
    """README.md with 2024-99-99, which YAML parses as a date"""
    reference(at, "llama-3.1")
    (at / "README.md").write_text("---\nversion: 2024-99-99\n---\n")


@on("model card", "CheckpointError", "a link out of the folder")
def a_model_card_outside(at: Path) -> None:
    """README.md is a link to /etc/passwd"""
    reference(at, "llama-3.1")
    (at / "README.md").symlink_to("/etc/passwd")


@on("model card", "ArchitectureError", "is not in this folder")
def modules_outside(at: Path) -> None:
    """modules.json with ../../ as the folder of its pooling"""
    reference(at, "llama-3.1")
    (at / "modules.json").write_text('[{"type": "m.Pooling", "path": "../../"}]')


@on("model card", "ArchitectureError", "pooling by")
def a_pooling_mode_that_is_a_list(at: Path) -> None:
    """1_Pooling/config.json with a list as pooling_mode"""
    reference(at, "llama-3.1")
    (at / "p").mkdir()
    (at / "modules.json").write_text('[{"type": "m.Pooling", "path": "p"}]')
    (at / "p" / "config.json").write_text('{"pooling_mode": ["mean"]}')


# Recipes and lists of types


def recipe(at: Path, rule: str) -> None:
    """Write a recipe of one optional rule."""
    (at / "r.yaml").write_text(f"default: F16\nrules: [{{{rule}, type: F16, optional: true}}]\n")


@on("recipe")
def a_pattern_with_two_to_the_63_ways(at: Path) -> None:
    """name: /^([a-z0-9_.]+)+!$/, and similar patterns"""
    patterns = [r"^([a-z0-9_.]+)+!$", r"(\w|\w)*!", r"(.*)*(.*)*!", r".*.*.*.*.*.*.*!"]
    recipe(at, "name: [" + ", ".join(f"'/{p}/'" for p in (*patterns, "(.|.)" * 50 + "!")) + "]")


@on("recipe", "RecipeError", "back references are not supported")
def a_pattern_with_a_back_reference(at: Path) -> None:
    r"""name: /(\w+)+\1!/"""
    recipe(at, r"name: '/(\w+)+\1!/'")


@on("recipe", "RecipeError", "at most 4096")
def a_pattern_of_brackets(at: Path) -> None:
    """name: / and 5000 brackets"""
    recipe(at, f"name: '/{'(' * 5000}a{')' * 5000}/'")


@on("recipe", "RecipeError", "repeats of more than 1000")
def a_pattern_that_repeats_too_often(at: Path) -> None:
    """name: /a{999999999}/"""
    recipe(at, "name: '/a{999999999}/'")


@on("recipe", "RecipeError", "recipes that extend each other")
def a_chain_of_a_thousand_recipes(at: Path) -> None:
    """a recipe that extends a recipe that extends a recipe ..."""
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
def a_recipe_that_extends_a_very_long_name(at: Path) -> None:
    """extends a name of 5000 letters"""
    (at / "r.yaml").write_text(f"extends: {'x' * 5000}")


@on("list of types", "RecipeError", "the limit is 4096")
def a_pattern_of_a_hundred_thousand_letters(at: Path) -> None:
    """a pattern of 100,000 brackets, parsed again from each of them"""
    (at / "types.txt").write_text("[" * 100_000 + "=q4_k")


@on("list of types", "RecipeError", "applies to no tensor")
def patterns_of_a_list_with_exponential_time(at: Path) -> None:
    """(.|.) fifty times, searched in every tensor name of GGUF"""
    (at / "types.txt").write_text("attn_q=q8_0\na" + "(.|.)" * 50 + "x=q4_k")


# The journal


@on("journal", "ConvertError", "is not a journal")
def a_deeply_nested_journal(at: Path) -> None:
    """an identity of 100,000 nested lists, in the journal of a checkpoint that is converted"""
    (at / "m.journal").write_bytes(b"[" * 100_000 + b"\n")


@on("journal", "ConvertError", "start over")
def a_journal_of_another_conversion(at: Path) -> None:
    """an identity with a text of a megabyte as source, and 60 nested objects"""
    deep: Any = "x"
    for _ in range(60):
        deep = {"a": deep}
    identity = json.dumps({"version": deep, "source": "x" * 1_000_000})
    record = struct.pack("<IQQQ5d", 2**32 - 2, 2**64 - 1, 0, 0, *[float("nan")] * 5)
    record += struct.pack("<I", zlib.crc32(record))
    (at / "m.journal").write_bytes(identity.encode() + b"\n" + record)


@on("journal", "ConvertError", "Too many levels of symbolic links")
def a_journal_that_is_a_link(at: Path) -> None:
    """m.journal is a link to a file outside, which would be emptied"""
    (at.parent / "precious").write_text("precious")
    (at / "m.journal").symlink_to("../precious")


@on("journal", "ConvertError", "cannot be read")
def a_journal_that_is_a_pipe(at: Path) -> None:
    """m.journal is a FIFO"""
    os.mkfifo(at / "m.journal")
