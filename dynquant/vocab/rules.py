"""The rules of a tokenizer.json that llama.cpp's tokenizers reproduce; others are named.

A tokenizer.json states what happens to a text in four parts: normalizer, pre-tokenizer,
post-processor and decoder. llama.cpp's tokenizers have fixed rules with a few settings. `PATHS`
lists for each of them the steps that give the same tokens; every other step is refused by its
name, or a warning if only the decoding of tokens differs. Sources: the tokenizers package; for
llama.cpp the sessions of llm_tokenizer_spm, _ugm, _wpm and _bpe in src/llama-vocab.cpp.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynquant.errors import VocabError
from dynquant.untrusted import shown
from dynquant.vocab.files import Json, TokenizerFiles, as_list, as_object
from dynquant.vocab.tokens import SPACE

_MAX_SETTINGS = 120
"""Limit on the characters of a step's settings in a message."""

_MAX_FAULTS = 20
"""Limit on the steps of a file that are refused by name; real tokenizers have ten steps at most."""

ANY: Any = object()
"""A setting that may have any value."""


@dataclass(frozen=True)
class Step:
    """A step that llama.cpp reproduces.

    type:     its name in the tokenizers package
    settings: values that the step must have; further settings do not change the tokens
    unless:   facts about the tokenizer with which the tokens would differ
    differs:  the texts whose tokens differ nevertheless, for a warning; None for none
    """

    type: str
    settings: Mapping[str, object] = field(default_factory=dict[str, object])
    unless: tuple[str, ...] = ()
    differs: str | None = None

    def is_like(self, step: Json) -> bool:
        """Return whether a step has this type and these settings."""
        defaults = _DEFAULTS.get(self.type, {})
        return step.get("type") == self.type and all(
            wanted is ANY or step.get(name, defaults.get(name)) == wanted
            for name, wanted in self.settings.items()
        )


@dataclass(frozen=True)
class PathRules:
    """The steps that one of llama.cpp's tokenizers reproduces.

    name:            what messages call it
    pre_tokenizers:  None if they are recognised by their rules, as in byte-level BPE
    post_processors: types of steps; the tokens that they add are read by `special`
    decoders:        types of steps that llama.cpp's decoding is equivalent to
    """

    name: str
    normalizers: tuple[Step, ...]
    pre_tokenizers: tuple[Step, ...] | None
    post_processors: tuple[str, ...]
    decoders: tuple[str, ...]


# Settings that older files leave out, with the value that the tokenizers package assumes.
_DEFAULTS: dict[str, dict[str, object]] = {
    "Metaspace": {"split": True, "prepend_scheme": "always"},
    "Split": {"invert": False},
    "BertNormalizer": {"clean_text": True, "handle_chinese_chars": True},
}

# Facts about a tokenizer with which a step is not reproduced.
SPANNING = "some tokens span the space between two words"
SPACES = "the normalizer does not replace spaces"
BLANKS = "the normalizer does not replace tabs and line ends"
SPLIT = "words are split at spaces"
UNMERGED = "runs of spaces are not merged"
BARE = "the words of a text do not all begin with a space"
TWICE = "there are two steps of this type"
UNORDERED = "the steps are in another order"

NO_SECOND_SPACE = (
    "the tokenizer adds no space before a text that begins with one, but llama.cpp does"
)
"""How a Metaspace differs, for a warning."""

_POST = ("TemplateProcessing", "BertProcessing", "RobertaProcessing", "ByteLevel")

_COMPOSED = "text with letters that are not in composed form (NFC)"

SPM = PathRules(
    "SentencePiece",
    normalizers=(
        Step("Prepend", {"prepend": SPACE}, unless=(TWICE,)),
        Step("Replace", {"pattern": {"String": " "}, "content": SPACE}),
        Step("NFC", differs=_COMPOSED),
    ),
    pre_tokenizers=(
        Step("Metaspace", {"replacement": SPACE, "split": False}),
        Step("Metaspace", {"replacement": SPACE, "split": True}, unless=(SPANNING,)),
        # Gemma's never matches, because the normalizer has replaced the spaces.
        Step("Split", {"pattern": {"String": " "}}, unless=(SPACES,)),
        Step(
            "Split",
            {"pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False},
            unless=(SPANNING,),
        ),
    ),
    post_processors=_POST,
    decoders=("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"),
)

GEMMA4 = PathRules(
    "Gemma 4",
    normalizers=(Step("Replace", {"pattern": {"String": " "}, "content": SPACE}),),
    pre_tokenizers=(
        # Gemma's never matches, because the normalizer has replaced the spaces.
        Step("Split", {"pattern": {"String": " "}}, unless=(SPACES,)),
        Step(
            "Split",
            {"pattern": {"String": SPACE}, "behavior": "MergedWithNext", "invert": False},
            unless=(SPANNING,),
        ),
    ),
    post_processors=_POST,
    decoders=("Replace", "ByteFallback", "Fuse"),
)

UNIGRAM = PathRules(
    "unigram",
    normalizers=(
        Step("Precompiled", {"precompiled_charsmap": ANY}, unless=(TWICE, UNORDERED)),
        Step("Strip", unless=(UNMERGED, TWICE, UNORDERED)),
        Step("Replace", {"pattern": {"Regex": " {2,}"}, "content": " "}, unless=(TWICE, UNORDERED)),
        Step(
            "Replace",
            {"pattern": {"Regex": " {2,}"}, "content": SPACE},
            unless=(SPLIT, TWICE, UNORDERED),
        ),
    ),
    pre_tokenizers=(
        Step("WhitespaceSplit", unless=(BLANKS, UNORDERED)),
        Step("Metaspace", {"replacement": SPACE, "split": False}, unless=(BARE, TWICE)),
        Step("Metaspace", {"replacement": SPACE, "split": True}, unless=(BARE, TWICE, SPANNING)),
    ),
    post_processors=_POST,
    decoders=("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace"),
)

WORDPIECE = PathRules(
    "WordPiece",
    normalizers=(Step("BertNormalizer", {"clean_text": True, "handle_chinese_chars": True}),),
    pre_tokenizers=(Step("BertPreTokenizer"),),
    post_processors=_POST,
    decoders=("WordPiece",),
)

BYTE_LEVEL = PathRules(
    "byte-level BPE",
    normalizers=(Step("NFC"),),
    pre_tokenizers=None,
    post_processors=_POST,
    decoders=("ByteLevel", "Fuse"),
)

PATHS = (SPM, GEMMA4, UNIGRAM, WORDPIECE, BYTE_LEVEL)


def check_rules(
    path: Path, files: TokenizerFiles, rules: PathRules, facts: frozenset[str], *, kept: str = ""
) -> None:
    """Refuse steps of a tokenizer.json that llama.cpp does not reproduce, or warn.

    facts: those of the facts above that hold; TWICE and UNORDERED are found here
    kept:  why a tokenizer with other normalizers or pre-tokenizers is converted nevertheless, with
           warnings that end so; empty to refuse it

    Raises VocabError with a message for each step.
    """
    found = [*_unlike(files, "normalizer", rules.normalizers, facts)]
    if rules.pre_tokenizers is not None:
        found += _unlike(files, "pre_tokenizer", rules.pre_tokenizers, facts)
    wrong = list(dict.fromkeys(found))[:_MAX_FAULTS]
    start = f"{path}: llama.cpp's {rules.name} does not have"
    if kept:
        files.warn(*(f"{start} {what}; {kept}" for what in wrong))
        wrong = []
    wrong += [
        f"the post-processor {spelled(step)}"
        for step in steps_of(files, "post_processor")
        if step.get("type") not in rules.post_processors
    ]
    wrong = wrong[:_MAX_FAULTS]
    VocabError.raise_any(
        f"{start} {what}; to accept other tokens, remove it from the file" for what in wrong
    )
    for step in steps_of(files, "normalizer"):
        differs = next(
            (s.differs for s in rules.normalizers if s.is_like(step) and s.differs), None
        )
        if differs:
            files.warn(f"{start} the normalizer {spelled(step)}; {differs} gets other tokens")
    odd = [spelled(s) for s in steps_of(files, "decoder") if s.get("type") not in rules.decoders]
    odd = odd[:_MAX_FAULTS]
    if odd:
        files.warn(f"{start} the decoder {', '.join(odd)}; the text of answers differs")


def _unlike(
    files: TokenizerFiles, part: str, known: tuple[Step, ...], facts: frozenset[str]
) -> Iterator[str]:
    """Yield the fault of each step that is not among the known ones."""
    label = part.replace("_", "-")
    present = steps_of(files, part)
    types = [str(step.get("type")) for step in present]
    counts = Counter(types)
    order = list(dict.fromkeys(step.type for step in known))
    places = [order.index(kind) for kind in types if kind in order]
    unordered = {UNORDERED} if places != sorted(places) else set[str]()
    for step, kind in zip(present, types, strict=True):
        facts = facts - {TWICE} | unordered | ({TWICE} if counts[kind] > 1 else set[str]())
        alike = [s for s in known if s.is_like(step)]
        if not alike:
            yield f"the {label} {spelled(step)}"
        elif held := [fact for fact in alike[0].unless if fact in facts]:
            yield f"the {label} {spelled(step)} where {held[0]}"


def steps_of(files: TokenizerFiles, part: str) -> list[Json]:
    """Return the steps of a part of tokenizer.json."""
    return steps(files.tokenizer.get(part), _LISTS[part])


_LISTS = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def steps(value: Any, name: str) -> list[Json]:
    """Return a normalizer, pre-tokenizer, post-processor or decoder as a flat list of its steps."""
    if value is None:
        return []
    where = f"tokenizer.json: {name!r}"
    step = as_object(value, where)
    if step.get("type") != "Sequence":
        return [step]
    return [s for part in as_list(step.get(name), where) for s in steps(part, name)]


def spelled(step: Json) -> str:
    """Return a step's type, and the settings that distinguish it."""
    rest = {k: v for k, v in step.items() if k not in ("type", "precompiled_charsmap")}
    kind = step.get("type")
    name = kind if isinstance(kind, str) and kind.isidentifier() else shown(kind)
    if not rest:
        return name
    text = json.dumps(rest, ensure_ascii=False)
    if len(text) > _MAX_SETTINGS:
        text = text[:_MAX_SETTINGS] + "…"
    return f"{name} {text}"


def normalized(files: TokenizerFiles, text: str) -> bool:
    """Return whether a normalizer of a supported kind changes a text."""
    for step in steps_of(files, "normalizer"):
        match step:
            case {"type": "Prepend", "prepend": str(prefix)} if prefix:
                return True
            case {"type": "Replace", "pattern": {"String": str(part)}} if part and part in text:
                return True
            case {"type": "BertNormalizer", **rest}:
                if rest.get("lowercase") is not False and text != text.lower():
                    return True
            case _:
                pass
    return False
