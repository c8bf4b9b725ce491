"""Recognise which of llama.cpp's pre-tokenizers has the rules of a byte-level tokenizer."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynquant.errors import VocabError
from dynquant.vocab.files import Json, TokenizerFiles
from dynquant.vocab.pretypes import (
    CLASS_SPLITS,
    CORRECTED_CLASSES,
    DIGITS,
    EACH_DIGIT,
    GPT_2,
    MODEL_CLASSES,
    NAMES,
    PRE_TYPES,
    PUNCTUATION_RUNS,
    PreType,
)
from dynquant.vocab.rules import steps


@dataclass(frozen=True)
class Traits:
    """A tokenizer's settings besides its splits; None if its files do not state one."""

    ignore_merges: bool
    clean_spaces: bool | None
    has_bos: bool

    def disagreements(self, pre: PreType) -> tuple[bool, bool, bool]:
        """Return whether a pre-tokenizer differs in each setting, the most important first."""
        return (
            pre.ignore_merges != self.ignore_merges,
            pre.expects_bos and not self.has_bos,
            self.clean_spaces is not None and pre.clean_spaces != self.clean_spaces,
        )


_MAX_RULES = 4000
"""Limit on the characters of rules that a message quotes; the longest in use have 900."""


class _UnknownRuleError(Exception):
    """A rule that cannot be expressed as a sequence of regexes."""


def check_name(pre: str) -> None:
    """Raise VocabError if llama.cpp has no pre-tokenizer of this name."""
    if pre not in NAMES:
        near = difflib.get_close_matches(pre, NAMES, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise VocabError(f"--pre: {pre!r} is not a pre-tokenizer{hint} (one of {', '.join(NAMES)})")


def is_byte_level(tokenizer: Json) -> bool:
    """Return whether the pre-tokenizer of a tokenizer.json spells text in byte letters."""
    return any(rule.get("type") == "ByteLevel" for rule in _rules(tokenizer))


def recognise(files: TokenizerFiles, has_bos: bool) -> PreType:
    """Return the pre-tokenizer with the rules in the files.

    has_bos: whether the tokenizer has a BOS token

    Of several names with the same rules, the one whose other settings fit best is returned. Raises
    VocabError, with the rules, if no pre-tokenizer of llama.cpp is known to have them.
    """
    path, rules, splits = _read_rules(files)
    clean = files.tokenizer_config.get("clean_up_tokenization_spaces")
    traits = Traits(
        ignore_merges=files.model.get("ignore_merges") is True,
        clean_spaces=clean if isinstance(clean, bool) else None,
        has_bos=has_bos,
    )
    return recognise_splits(path, rules, splits, traits)


def named(name: str) -> PreType:
    """Return the pre-tokenizer of this name, which must be in PRE_TYPES."""
    return next(pre for pre in PRE_TYPES if pre.name == name)


def recognise_splits(
    path: Path, rules: str, splits: tuple[str, ...] | None, traits: Traits
) -> PreType:
    """Return the pre-tokenizer that splits by these regexes, or raise VocabError with the rules.

    path, rules: the file with the rules, and the rules as written there
    splits:      the rules as regexes; None if they cannot be expressed so
    """
    candidates = [pre for pre in PRE_TYPES if pre.splits == splits]
    if not candidates:
        raise VocabError(
            f"{path}: no known pre-tokenizer of llama.cpp has these rules: {rules[:_MAX_RULES]}; if"
            f" you know the right name, give --pre NAME (one of {', '.join(NAMES)})"
        )
    return min(candidates, key=traits.disagreements)


def _read_rules(files: TokenizerFiles) -> tuple[Path, str, tuple[str, ...] | None]:
    """Return the file with the rules, the rules as text, and as regexes if possible."""
    if files.tokenizer:
        try:
            splits = _splits(files.tokenizer)
        except _UnknownRuleError:
            splits = None
        parts = {"pre_tokenizer": files.tokenizer.get("pre_tokenizer")}
        if files.tokenizer.get("normalizer"):
            parts["normalizer"] = files.tokenizer["normalizer"]
        return files.folder / "tokenizer.json", json.dumps(parts, ensure_ascii=False), splits

    stated: Any = files.tokenizer_config.get("tokenizer_class")
    model_type: Any = files.config.get("model_type")
    name = stated if isinstance(stated, str) else MODEL_CLASSES.get(str(model_type), "")
    name = CORRECTED_CLASSES.get(str(model_type), name)
    rules = f"tokenizer_class {stated!r} of model_type {model_type!r} without a tokenizer.json"
    splits = CLASS_SPLITS.get(name.removesuffix("Fast"))
    if files.tokenizer_config.get("add_prefix_space") is True:
        rules, splits = f"{rules}, with add_prefix_space", None
    return files.folder / "tokenizer_config.json", rules, splits


def _splits(tokenizer: Json) -> tuple[str, ...]:
    """Express a tokenizer.json's pre-tokenizer as a sequence of regexes.

    The normalizer NFC is ignored, as in llama.cpp, which expects composed input.
    """
    for rule in steps(tokenizer.get("normalizer"), "normalizers"):
        if rule.get("type") != "NFC":
            raise _UnknownRuleError
    splits: list[str] = []
    rules = _rules(tokenizer)
    kinds = [rule.get("type") for rule in rules]
    if kinds.count("ByteLevel") != 1:
        raise _UnknownRuleError
    for rule in rules:
        match rule:
            case {"type": "ByteLevel", "add_prefix_space": False, **rest}:
                if rest.get("use_regex", True):
                    splits.append(GPT_2)
            case {"type": "Digits", "individual_digits": individual}:
                splits.append(EACH_DIGIT if individual else DIGITS)
            case {"type": "Punctuation", "behavior": "Contiguous"}:
                splits.append(PUNCTUATION_RUNS)
            case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": behavior}:
                regex = regex.replace("\r", r"\r").replace("\n", r"\n").replace("\t", r"\t")
                # If a regex matches everything, removing the text between its matches changes
                # nothing. Tokenizers converted from tiktoken are written so.
                removed = behavior == "Removed" and rule.get("invert") is True
                if behavior != "Isolated" and not (removed and regex.endswith(r"|\s+")):
                    raise _UnknownRuleError
                splits.append(regex)
            case _:
                raise _UnknownRuleError
    # Steps after ByteLevel see letters for bytes instead of characters; Falcon's are equivalent.
    if kinds[-1] != "ByteLevel" and tuple(splits) != named("falcon").splits:
        raise _UnknownRuleError
    return tuple(splits)


def _rules(tokenizer: Json) -> list[Json]:
    return steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
