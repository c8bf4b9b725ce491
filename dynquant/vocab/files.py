"""The tokenizer's files in a model folder, read once and checked for their outer form."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from dynquant.errors import VocabError
from dynquant.untrusted import (
    MAX_TOKENIZER,
    RepeatedKeyError,
    is_inside,
    parse_json,
    read_regular,
    shown,
)

Json = dict[str, Any]


@dataclass(frozen=True)
class AddedToken:
    """A token that the tokenizer takes out of the text before it splits the rest."""

    text: str
    special: bool


@dataclass(frozen=True)
class TokenizerFiles:
    """What the tokenizer's files say; an absent file is an empty dict.

    config: config.json, as the checkpoint read it
    """

    folder: Path
    config: Mapping[str, Any]

    @cached_property
    def tokenizer(self) -> Json:
        """tokenizer.json."""
        return self.read("tokenizer.json")

    @cached_property
    def model(self) -> Json:
        """The `model` of tokenizer.json."""
        return self.part(self.tokenizer, "model")

    @cached_property
    def tokenizer_config(self) -> Json:
        """tokenizer_config.json."""
        return self.read("tokenizer_config.json")

    @cached_property
    def configs(self) -> tuple[Mapping[str, Any], ...]:
        """config.json and, in it, the configuration of the text part of a larger model."""
        inner = self.config.get("text_config") or self.config.get("language_config")
        if isinstance(inner, Mapping):
            return self.config, cast("Mapping[str, Any]", inner)
        return (self.config,)

    def has(self, name: str) -> bool:
        """Whether the folder has a file of this name."""
        return (self.folder / name).is_file()

    @cached_property
    def sentencepiece(self) -> Path | None:
        """The SentencePiece model, by the names that families have for it; the newest of several.

        Mistral appends a version (tokenizer.model.v3), T5 and XLM-R have names of their own.
        """
        names = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"]
        versions = sorted(self.folder.glob("tokenizer.model.v[0-9]*"), key=lambda p: p.name)
        found = [self.folder / name for name in names if self.has(name)]
        return next(iter([*found, *reversed(versions)]), None)

    def read(self, name: str) -> Json:
        """Read a JSON file that holds one object; {} if there is no such file."""
        if not self.has(name):
            return {}
        return as_object(json_value(self.folder / name), f"{self.folder / name}")

    def part(self, of: Json, name: str, file: str = "tokenizer.json") -> Json:
        """Return an object inside a file's object; {} if it is absent or null."""
        value = of.get(name)
        return {} if value is None else as_object(value, f"{self.folder / file}: {name!r}")

    @cached_property
    def vocab_size(self) -> int | None:
        """The rows of the model's embedding, from config.json."""
        for config in self.configs:
            size = config.get("vocab_size")
            if type(size) is int and size > 0:
                return size
        return None

    @property
    def token_type_count(self) -> int:
        """The rows of the token-type embedding, 1 where config.json does not say."""
        counts = (config.get("type_vocab_size") for config in self.configs)
        return next((n for n in counts if type(n) is int and 0 < n < 2**31), 1)

    @cached_property
    def added_tokens(self) -> dict[int, AddedToken]:
        """Added tokens by id: tokenizer.json, then tokenizer_config.json, then added_tokens.json.

        The first file that has an id decides how it is treated. A token beyond the embedding that
        config.json declares cannot occur and is left out. Raises VocabError where two files give
        one id to two texts, or one text two ids.
        """
        found: dict[int, AddedToken] = {}
        ids: dict[str, int] = {}
        wrong: list[str] = []
        for file, token_id, token in self._added():
            known = found.setdefault(token_id, token)
            if known.text != token.text:
                wrong.append(
                    f"{self.folder / file}: id {token_id} is {shown(token.text)}, but another file"
                    f" (or entry) says {shown(known.text)}; remove the wrong one"
                )
            elif ids.setdefault(token.text, token_id) != token_id:
                wrong.append(
                    f"{self.folder / file}: {shown(token.text)} has id {token_id}, but another file"
                    f" (or entry) says {ids[token.text]}; remove the wrong one"
                )
        VocabError.raise_any(wrong)
        size = self.vocab_size
        return {i: t for i, t in sorted(found.items()) if size is None or i < size}

    def _added(self) -> Iterable[tuple[str, int, AddedToken]]:
        file = "tokenizer.json"
        where = f"{self.folder / file}: 'added_tokens'"
        for item in as_list(self.tokenizer.get("added_tokens") or [], where):
            entry = as_object(item, where)
            yield file, as_id(entry.get("id"), where), _added_token(entry, where)
        file = "tokenizer_config.json"
        where = f"{self.folder / file}: 'added_tokens_decoder'"
        for key, item in self.part(self.tokenizer_config, "added_tokens_decoder", file).items():
            entry = as_object(item, where)
            token_id = int(key) if key.isdecimal() and len(key) <= 10 else -1
            yield file, as_id(token_id, f"{where}, key {shown(key)}"), _added_token(entry, where)
        file = "added_tokens.json"
        for text, token_id in self.read(file).items():
            where = f"{self.folder / file}: {shown(text)}"
            yield file, as_id(token_id, where), AddedToken(text, special=False)


def _added_token(entry: Json, where: str) -> AddedToken:
    text = entry.get("content")
    if not isinstance(text, str):
        raise VocabError(f"{where}: 'content' is {shown(text)}, not a text; mend the file")
    return AddedToken(text, special=entry.get("special") is True)


def json_value(path: Path) -> Any:
    """Read a JSON file; raise VocabError if it cannot be read, or an object has a key twice."""

    def once(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = sorted(key for key, n in counts.items() if n > 1)
            raise RepeatedKeyError(f"{some(twice)} twice in one object; mend the file")
        return found

    text = read_text(path)
    try:
        return parse_json(text, once)
    except RepeatedKeyError as e:
        raise VocabError(f"{path}: {e}") from e
    except ValueError as e:
        raise VocabError(f"{path}: not JSON: {e}; download the file again") from e


def read_bytes(path: Path, folder: Path | None = None) -> bytes:
    """Read a file of a model folder, its own if none is given; links stay in it.

    What is read is written into the output: a link out of the folder would publish a file that is
    none of the model. Raises VocabError if it cannot be read.
    """
    try:
        if not is_inside(folder or path.parent, path):
            raise VocabError(
                f"{path}: is a link to {os.path.realpath(path)}, outside of the folder; put the"
                " file itself there"
            )
        return read_regular(path, MAX_TOKENIZER)
    except OSError as e:
        raise VocabError(f"{path}: {e.strerror}") from e


def read_text(path: Path, folder: Path | None = None) -> str:
    """Read a UTF-8 file as `read_bytes` does."""
    try:
        return read_bytes(path, folder).decode("utf-8")
    except UnicodeDecodeError as e:
        raise VocabError(f"{path}: not UTF-8 at byte {e.start}; download the file again") from e


def as_object(value: Any, where: str) -> Json:
    """Return a JSON object, or raise VocabError."""
    if not isinstance(value, dict):
        raise VocabError(f"{where}: {shown(value)} where an object is expected; mend the file")
    return cast("Json", value)


def as_list(value: Any, where: str) -> list[Any]:
    """Return a JSON list, or raise VocabError."""
    if not isinstance(value, list):
        raise VocabError(f"{where}: {shown(value)} where a list is expected; mend the file")
    return cast("list[Any]", value)


def as_id(value: Any, where: str) -> int:
    """Return a token id, or raise VocabError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise VocabError(f"{where}: {shown(value)} is not a token id; mend the file")
    return value


def some(values: Iterable[object], n: int = 5) -> str:
    """Quote the first few values and count the rest."""
    every = list(values)
    quoted = ", ".join(map(shown, every[:n]))
    return quoted + (f" and {len(every) - n} more" if len(every) > n else "")
