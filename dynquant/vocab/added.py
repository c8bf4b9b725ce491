"""Settings of added tokens and templates that a GGUF cannot hold, reported in groups."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.keys import Keys
from dynquant.vocab.files import TokenizerFiles, as_object, some
from dynquant.vocab.loading import SPECIAL_BY_TEXT, Trims
from dynquant.vocab.rules import normalized, steps_of
from dynquant.vocab.special import around

_WORD = re.compile(r"\s*[^\W\d_][\w '-]*")
"""Letters and digits without the brackets and signs that special tokens have."""

_FOUND = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
"""Types of tokens that llama.cpp finds in a text before it splits the rest."""


def report_added(files: TokenizerFiles, keys: Keys) -> Trims:
    """Warn of what a GGUF cannot hold; return which tokens remove spaces around them.

    Whether llama.cpp removes these spaces depends on the model's name, see `loading`.
    """
    types = _types(keys)
    added = [token for token in files.added_tokens.values() if types.get(token.text) in _FOUND]
    if words := [token.text for token in added if token.single_word]:
        files.warn(
            f"{files.folder}: added tokens with single_word ({some(words)}) are found only as whole"
            " words, but llama.cpp finds them inside words too"
        )
    if changed := [t.text for t in added if t.normalized and normalized(files, t.text)]:
        files.warn(
            f"{files.folder}: added tokens with normalized ({some(changed)}) are found in the text"
            " as the normalizer leaves it, but llama.cpp finds them in the text as it is given"
        )
    ids = {key.value for name, key in keys.items() if name.endswith("_token_id")}
    plain = [
        token.text
        for i, token in files.added_tokens.items()
        if token.special and i not in ids and _WORD.fullmatch(token.text)
    ]
    if plain:
        files.warn(
            f"{files.folder}: added tokens with special ({some(plain)}) look like text, but"
            " runtimes leave special tokens out of answers; if they are text, set special to false"
        )
    # llama.cpp itself makes some tokens special by their texts.
    named = [
        text
        for text in dict.fromkeys(_named(files))
        if types.get(text) == TokenType.NORMAL and text not in SPECIAL_BY_TEXT
    ]
    if named:
        files.warn(
            f"{files.folder / 'tokenizer_config.json'}: names {some(named)} as special tokens, but"
            " no file lists them among the added tokens; llama.cpp splits their text like any other"
        )
    _report_template(files, keys)
    return Trims(
        frozenset(token.text for token in added if token.lstrip),
        frozenset(token.text for token in added if token.rstrip),
    )


def _report_template(files: TokenizerFiles, keys: Keys) -> None:
    """Warn if the post-processor puts other tokens around a text than llama.cpp will."""
    if not files.tokenizer:
        return
    wanted: tuple[list[str], list[str]] = ([], [])
    for step in steps_of(files, "post_processor"):
        match step:
            case {"type": "TemplateProcessing"}:
                before, _, after = around(step, "single")
                wanted = (before, after)
            case {"type": "BertProcessing" | "RobertaProcessing", "cls": cls, "sep": sep}:
                wanted = (_first(cls), _first(sep))
            case _:
                pass
    always = keys[Gguf.Tokenizer.MODEL].value == "bert"
    last = Gguf.Tokenizer.SEP_ID if always else Gguf.Tokenizer.EOS_ID
    sides = (
        ("before", "bos", Gguf.Tokenizer.ADD_BOS, Gguf.Tokenizer.BOS_ID),
        ("after", "eos", Gguf.Tokenizer.ADD_EOS, last),
    )
    texts = cast("tuple[str, ...]", keys[Gguf.Tokenizer.LIST].value)
    for (place, name, flag, key), tokens in zip(sides, wanted, strict=True):
        stated = isinstance(files.tokenizer_config.get(f"add_{name}_token"), bool)
        if stated and not always:
            continue
        is_added = always or (flag in keys and keys[flag].value is True)
        found = [texts[cast("int", keys[key].value)]] if is_added and key in keys else []
        if found != tokens:
            files.warn(
                f"{files.folder / 'tokenizer.json'}: the post-processor puts {_listed(tokens)}"
                f" {place} a text, but llama.cpp {_listed(found)}"
            )


def _listed(tokens: list[str]) -> str:
    return some(tokens) or "no token"


def _first(pair: Any) -> list[str]:
    """Return the token of a pair of token and id."""
    match pair:
        case [str(text), *_]:
            return [text]
        case _:
            return []


def _types(keys: Keys) -> dict[str, int]:
    texts = keys[Gguf.Tokenizer.LIST].value
    types = keys[Gguf.Tokenizer.TOKEN_TYPE].value
    return dict(zip(cast("tuple[str]", texts), cast("tuple[int]", types), strict=True))


def _named(files: TokenizerFiles) -> Iterator[str]:
    """Yield the texts of the special tokens that tokenizer_config.json names."""
    config = files.tokenizer_config
    entries: list[Any] = [
        value
        for name, value in config.items()
        if name.endswith("_token") and not name.startswith("add_")
    ]
    for name in ("additional_special_tokens", "extra_special_tokens"):
        more: Any = config.get(name)
        if isinstance(more, dict):
            entries += cast("dict[str, Any]", more).values()
        elif isinstance(more, list):
            entries += cast("list[Any]", more)
    for entry in entries:
        text: Any = entry
        if isinstance(entry, dict):
            text = as_object(entry, "tokenizer_config.json").get("content")
        if isinstance(text, str):
            yield text
