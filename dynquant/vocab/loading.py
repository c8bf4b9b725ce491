"""Where llama.cpp loads a vocabulary differently from its keys, because of a name or a text.

llama.cpp's loader knows some models by general.name, by the pre-tokenizer or by the architecture,
and some tokens by their text. The tables below list all such cases; the output's keys are checked
against them when a plan is made. Source: llama_vocab::impl::load and ::tokenize in llama.cpp's
src/llama-vocab.cpp, llama_model_chat_template in src/llama-model.cpp. Cases that depend on sizes,
such as DeepSeek-V2-Lite's, are the families' own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import cast

from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.keys import Keys
from dynquant.vocab.files import some


@dataclass(frozen=True)
class Trims:
    """Texts of tokens that remove the spaces before (left) or after (right) them in a text."""

    left: frozenset[str] = frozenset()
    right: frozenset[str] = frozenset()


@dataclass(frozen=True)
class NamedCase:
    """A model that llama.cpp knows by a part of a key's value.

    side:   on which side of `tokens` llama.cpp removes spaces
    tokens: None for all special tokens
    spared: special tokens that are exceptions
    needs:  tokens without which llama.cpp does not load the file
    """

    key: str
    parts: tuple[str, ...]
    side: str
    tokens: tuple[str, ...] | None
    spared: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


# The first that applies is taken.
NAMED_CASES = (
    NamedCase(
        Gguf.Tokenizer.PRE, ("jina-v2-de", "jina-v2-es", "jina-v2-code"), "left", ("<mask>",)
    ),
    NamedCase(Gguf.General.ARCHITECTURE, ("nomic-bert-moe", "jina-bert-v3"), "left", ("<mask>",)),
    NamedCase(
        Gguf.General.NAME,
        ("phi-3", "phi3"),
        "right",
        None,
        spared=("<unk>", "<s>", "<|endoftext|>"),
        needs=("</s>", "<unk>", "<s>", "<|endoftext|>"),
    ),
    NamedCase(Gguf.General.NAME, ("modern-bert",), "left", ("[MASK]",)),
)

_KNOWN_ENDS = """
    <|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn>
    <|endoftext|> </s> <|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance>
    <eos> <turn|> <|tool_response> <｜end▁of▁sentence｜> [e~[
"""
KNOWN_ENDS = frozenset(_KNOWN_ENDS.split())
"""Texts of tokens at which llama.cpp always stops, and which it makes control tokens."""

_INFILL = """
    <|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>
    <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>
    <|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>
"""
INFILL = frozenset(_INFILL.split())
"""Texts of tokens that llama.cpp makes control tokens, for filling in."""

_INFILL_ENDS = """
    <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
    <|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
INFILL_ENDS = frozenset(_INFILL_ENDS.split())
"""Texts of further control tokens for filling in, at which llama.cpp also stops."""

SHOWN = frozenset(("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"))
"""Texts of tokens of gpt-oss that llama.cpp finds in every text and shows in answers."""

_GEMMA4_SHOWN = """
    <|channel> <channel|> <|tool_call> <tool_call|> <|tool_response> <tool_response|> <|"|>
"""
GEMMA4_SHOWN = frozenset(_GEMMA4_SHOWN.split())
"""Texts of tokens of Gemma 4 that are shown in answers, so that runtimes can read tool calls and
thoughts there. llama.cpp stops at one of them nevertheless."""

SPECIAL_BY_TEXT = KNOWN_ENDS | INFILL | INFILL_ENDS | SHOWN

# Texts at which llama.cpp does not stop if the vocabulary has all tokens of one of the lists.
NO_ENDS: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "<|end|>": (
        ("<|return|>", "<|call|>"),
        ("<|return|>", "<|calls|>"),
        ("<|call|>", "<|flush|>"),
        ("<|calls|>", "<|flush|>"),
    ),
    "</s>": (("<|tool_response>",), ("<|plamo:eos|>",)),
}

_ENDS = {"eos": Gguf.Tokenizer.EOS_ID, "eot": Gguf.Tokenizer.EOT_ID, "eom": Gguf.Tokenizer.EOM_ID}
_IDS = _ENDS | {"bos": Gguf.Tokenizer.BOS_ID, "sep": Gguf.Tokenizer.SEP_ID}

# The ids that llama.cpp assumes if the keys name none, by tokenizer.ggml.model. An end is always
# used; a first token only if one is added.
DEFAULT_IDS = {
    "gpt2": {"bos": 11, "eos": 11},
    "llama": {"bos": 1, "eos": 2},
    "t5": {"eos": 1},
    "bert": {"bos": 101, "sep": 102},
}

# Pre-tokenizers for which llama.cpp adds a BOS token whatever the file states.
_ALWAYS_BOS = ("gemma4", "granite-embed-multi-311m")


@dataclass(frozen=True)
class _Loaded:
    """The keys of a vocabulary, as llama.cpp loads them."""

    keys: Keys

    def text(self, key: str) -> str:
        found = self.keys.get(key)
        return found.value if found and isinstance(found.value, str) else ""

    @cached_property
    def tokens(self) -> Sequence[str]:
        found = self.keys.get(Gguf.Tokenizer.LIST)
        value = found.value if found else ()
        return cast("tuple[str, ...]", value) if isinstance(value, tuple) else ()

    @cached_property
    def types(self) -> Mapping[str, int]:
        """The stored type of each token; empty without types."""
        found = self.keys.get(Gguf.Tokenizer.TOKEN_TYPE)
        value = found.value if found else ()
        types = cast("tuple[int, ...]", value) if isinstance(value, tuple) else ()
        return dict(zip(self.tokens, types, strict=False))

    def of_types(self, texts: frozenset[str], *types: TokenType) -> list[str]:
        """Return those of the texts that are tokens of these types, and not special by their id."""
        ids = {key.value for name, key in self.keys.items() if name.endswith("_token_id")}
        named = {self.tokens[i] for i in ids if type(i) is int and 0 <= i < len(self.tokens)}
        return [t for t in sorted(texts - named) if self.types.get(t) in types]

    @cached_property
    def no_ends(self) -> frozenset[str]:
        """Texts at which llama.cpp does not stop, because of other tokens."""
        return frozenset(
            text
            for text, lists in NO_ENDS.items()
            if any(all(other in self.types for other in others) for others in lists)
        )

    @cached_property
    def case(self) -> tuple[NamedCase, str] | None:
        """The case that applies, and the part of the name by which it does."""
        for case in NAMED_CASES:
            value = self.text(case.key)
            # Only general.name is compared in lower case.
            value = value.lower() if case.key == Gguf.General.NAME else value
            for part in case.parts:
                if part in value:
                    return case, part
        return None

    @cached_property
    def missing(self) -> list[str]:
        """Tokens without which llama.cpp does not load the file."""
        return [t for t in self.case[0].needs if t not in self.types] if self.case else []

    @cached_property
    def trims(self) -> Trims:
        """Tokens around which llama.cpp removes spaces."""
        if self.case is None:
            return Trims()
        case = self.case[0]
        special = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        if case.tokens is None:
            found = {t for t, kind in self.types.items() if kind in special}
            texts = frozenset(found | (SPECIAL_BY_TEXT & self.types.keys()))
        else:
            texts = frozenset(t for t in case.tokens if t in self.types)
        return replace(Trims(), **{case.side: texts - set(case.spared)})


def loading_problems(keys: Keys) -> list[str]:
    """Return a message if llama.cpp would not load a file with these keys."""
    loaded = _Loaded(keys)
    if not loaded.case or not loaded.types or not loaded.missing:
        return []
    case, part = loaded.case
    return [
        f"{case.key} is {loaded.text(case.key)!r}: llama.cpp takes a model for Phi-3 if its name"
        f" contains {part!r}, and does not load it without the tokens {some(loaded.missing)}; give"
        f" another name (--set {case.key}=NAME)"
    ]


def loading_warnings(keys: Keys, trims: Trims | None, source: Keys) -> list[str]:
    """Return a warning for each way in which llama.cpp loads a file differently from its keys.

    trims:  the tokenizer's; None if they are not known, as in a GGUF
    source: the keys of the model before any is set
    """
    loaded = _Loaded(keys)
    if not loaded.types:
        return []
    if trims is None:
        # A GGUF has no trims; whoever named it knows its case.
        trims = _Loaded(source).trims
    return [
        *_trim_warnings(loaded, trims),
        *_type_warnings(loaded),
        *_end_warnings(loaded),
        *_default_warnings(loaded),
        *_key_warnings(loaded),
    ]


def _trim_warnings(loaded: _Loaded, trims: Trims) -> Iterator[str]:
    theirs = loaded.trims
    for side, place in (("left", "before"), ("right", "after")):
        ours: frozenset[str] = getattr(trims, side)
        done: frozenset[str] = getattr(theirs, side)
        if kept := sorted(t for t in ours - done if t in loaded.types):
            flag = "lstrip" if side == "left" else "rstrip"
            named = next((c for c in NAMED_CASES if c.side == side and c.needs), None)
            advice = ""
            if named and all(t in loaded.types for t in named.needs):
                advice = (
                    f"; llama.cpp does so if {named.key} contains {named.parts[0]!r}"
                    f" (--set {named.key}=NAME)"
                )
            yield (
                f"added tokens with {flag} ({some(kept)}) remove the spaces {place} them, but"
                f" llama.cpp keeps these spaces{advice}"
            )
        if (extra := sorted(done - ours)) and loaded.case:
            case, part = loaded.case
            advice = f"; give another name (--set {case.key}=NAME)"
            yield (
                f"{case.key} contains {part!r}, so llama.cpp removes the spaces {place} the tokens"
                f" {some(extra)}, but the tokenizer keeps them"
                f"{advice if case.key == Gguf.General.NAME else ''}"
            )


def _type_warnings(loaded: _Loaded) -> Iterator[str]:
    ordinary = (TokenType.NORMAL, TokenType.USER_DEFINED)
    visible = GEMMA4_SHOWN if loaded.text(Gguf.Tokenizer.MODEL) == "gemma4" else frozenset[str]()
    stops = (KNOWN_ENDS | INFILL_ENDS) - loaded.no_ends - visible
    if ends := loaded.of_types(stops, *ordinary):
        yield (
            f"llama.cpp stops at {some(ends)} because of the text, but in this vocabulary these are"
            " not special tokens"
        )
    if controls := loaded.of_types(INFILL, *ordinary):
        yield (
            f"llama.cpp makes {some(controls)} control tokens because of the text, but in this"
            " vocabulary they are not special"
        )
    shown = [
        text
        for text in sorted(SHOWN & loaded.types.keys())
        if loaded.types[text] != TokenType.USER_DEFINED
    ]
    if shown and loaded.text(Gguf.General.ARCHITECTURE) != "gpt-oss":
        yield (
            f"llama.cpp shows {some(shown)} in answers and finds them in every text, because"
            " gpt-oss has tokens of this name"
        )


def _end_warnings(loaded: _Loaded) -> Iterator[str]:
    for text, lists in NO_ENDS.items():
        if text not in loaded.no_ends:
            continue
        for name, key in _ENDS.items():
            found = loaded.keys.get(key)
            i = found.value if found else None
            if type(i) is int and 0 <= i < len(loaded.tokens) and loaded.tokens[i] == text:
                yield (
                    f"llama.cpp does not stop at {text!r}, the {name} token, because the vocabulary"
                    f" has {some(sorted(set(sum(lists, ())) & set(loaded.types)))}"
                )


def _default_warnings(loaded: _Loaded) -> Iterator[str]:
    keys = loaded.keys
    model = loaded.text(Gguf.Tokenizer.MODEL)
    add_bos = keys.get(Gguf.Tokenizer.ADD_BOS)
    is_added = add_bos.value is True if add_bos else model in ("llama", "bert")
    for name, i in DEFAULT_IDS.get(model, {}).items():
        if name == "bos" and not is_added:
            continue
        key = _IDS[name]
        if key in keys or i >= len(loaded.tokens):
            continue
        if loaded.types.get(text := loaded.tokens[i]) in (TokenType.NORMAL, TokenType.BYTE):
            effect = "stops at" if name == "eos" else "adds"
            yield (
                f"no file names the {name} token, so llama.cpp {effect} {text!r}, token {i}; name"
                f" it in tokenizer_config.json, or give --set {key}=ID"
            )


def _key_warnings(loaded: _Loaded) -> Iterator[str]:
    add_bos = loaded.keys.get(Gguf.Tokenizer.ADD_BOS)
    is_off = add_bos is not None and add_bos.value is False
    pre, model = loaded.text(Gguf.Tokenizer.PRE), loaded.text(Gguf.Tokenizer.MODEL)
    if is_off and (pre in _ALWAYS_BOS or model in ("bert", "gemma4")):
        yield (
            f"{Gguf.Tokenizer.ADD_BOS} is false, but llama.cpp always adds the first token for"
            f" {f'pre-tokenizer {pre}' if pre in _ALWAYS_BOS else f'tokenizer {model}'}"
        )
    layers = loaded.keys.get(f"{loaded.text(Gguf.General.ARCHITECTURE)}.block_count")
    has_template = Gguf.Tokenizer.CHAT_TEMPLATE in loaded.keys
    if pre == "tekken" and not has_template and layers is not None and layers.value == 40:
        yield (
            "there is no chat template, so llama.cpp uses that of Mistral Small (mistral-v7-tekken)"
            " for a model with 40 layers and pre-tokenizer tekken"
        )
