"""The tokenizer files of a model folder, each read once, with their structure checked."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from dynquant.errors import VocabError
from dynquant.text_settings import text_settings
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
    """A token that the tokenizer finds in the text before it splits the rest."""

    text: str
    special: bool
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class TokenizerFiles:
    """The contents of the tokenizer's files; an absent file is an empty dict.

    config:   the contents of config.json
    warnings: where llama.cpp's results will differ from the tokenizer's; readers add to it
    """

    folder: Path
    config: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list[str])

    def warn(self, *messages: str) -> None:
        """Add warnings, each of them once."""
        self.warnings.extend(m for m in dict.fromkeys(messages) if m not in self.warnings)

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
        """config.json and, for a multimodal model, the configuration of its text model."""
        inner = text_settings(self.config)
        return (self.config,) if inner is None else (self.config, inner)

    def has(self, name: str) -> bool:
        """Return whether the folder has a file of this name."""
        return (self.folder / name).is_file()

    @cached_property
    def sentencepiece(self) -> Path | None:
        """The SentencePiece model, by the names that families use; the newest of several.

        Mistral appends a version (tokenizer.model.v3); T5 and XLM-R have other names.
        """
        names = ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model"]
        versions = sorted(self.folder.glob("tokenizer.model.v[0-9]*"), key=lambda p: p.name)
        found = [self.folder / name for name in names if self.has(name)]
        return next(iter([*found, *reversed(versions)]), None)

    def read(self, name: str) -> Json:
        """Return the object in a JSON file; {} if there is no such file."""
        if not self.has(name):
            return {}
        return as_object(json_value(self.folder / name), f"{self.folder / name}")

    def part(self, of: Json, name: str, file: str = "tokenizer.json") -> Json:
        """Return a member of a file's object, itself an object; {} if it is absent or null."""
        value = of.get(name)
        return {} if value is None else as_object(value, f"{self.folder / file}: {name!r}")

    @cached_property
    def vocab_size(self) -> int | None:
        """The number of rows of the embedding, from config.json."""
        for config in self.configs:
            size = config.get("padded_vocab_size") or config.get("vocab_size")  # ChatGLM has both
            if type(size) is int and size > 0:
                return size
        return None

    @property
    def token_type_count(self) -> int:
        """The number of rows of the token-type embedding; by default 1."""
        counts = (config.get("type_vocab_size") for config in self.configs)
        return next((n for n in counts if type(n) is int and 0 < n < 2**31), 1)

    @cached_property
    def added_tokens(self) -> dict[int, AddedToken]:
        """Added tokens by id: tokenizer.json, then tokenizer_config.json, then added_tokens.json.

        Of several entries for an id the first applies. Tokens beyond the embedding's rows are left
        out with a warning. Raises VocabError if one id has two texts, or one text two ids.
        """
        found: dict[int, AddedToken] = {}
        ids: dict[str, int] = {}
        wrong: list[str] = []
        for file, token_id, token in self._added():
            known = found.setdefault(token_id, token)
            if known.text != token.text:
                wrong.append(
                    f"{self.folder / file}: id {token_id} is {shown(token.text)}, but"
                    f" {shown(known.text)} in another file or entry; remove the wrong one"
                )
            elif ids.setdefault(token.text, token_id) != token_id:
                wrong.append(
                    f"{self.folder / file}: {shown(token.text)} has id {token_id}, but"
                    f" {ids[token.text]} in another file or entry; remove the wrong one"
                )
        VocabError.raise_any(wrong)
        size = self.vocab_size
        if size is None:
            return dict(sorted(found.items()))
        if beyond := sorted(i for i in found if i >= size):
            self.warn(
                f"{self.folder}: {len(beyond)} added tokens have ids beyond the {size} rows of the"
                f" embedding and are left out: {some(found[i].text for i in beyond)}; llama.cpp"
                " splits their text into other tokens; to keep them, extend the embedding"
                " (resize_token_embeddings of transformers)"
            )
        return {i: t for i, t in sorted(found.items()) if i < size}

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
        raise VocabError(f"{where}: 'content' is {shown(text)}, not a string; fix the file")
    flags = ("special", "single_word", "lstrip", "rstrip", "normalized")
    return AddedToken(text, **{flag: entry.get(flag) is True for flag in flags})


def json_value(path: Path) -> Any:
    """Read a JSON file; raise VocabError if it cannot be read or an object repeats a key."""

    def once(pairs: list[tuple[str, Any]]) -> Json:
        found = dict(pairs)
        if len(found) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = sorted(key for key, n in counts.items() if n > 1)
            raise RepeatedKeyError(f"{some(twice)} twice in one object; fix the file")
        return found

    text = read_text(path)
    try:
        return parse_json(text, once)
    except RepeatedKeyError as e:
        raise VocabError(f"{path}: {e}") from e
    except ValueError as e:
        raise VocabError(f"{path}: not JSON: {e}; download the file again") from e


def read_bytes(path: Path, folder: Path | None = None) -> bytes:
    """Read a file of a model folder; without `folder`, of the file's own.

    Links out of the folder are rejected: the contents become part of the output, which would then
    publish a file that does not belong to the model. Raises VocabError if it cannot be read.
    """
    try:
        if not is_inside(folder or path.parent, path):
            raise VocabError(
                f"{path}: is a link to {os.path.realpath(path)}, outside of the folder; copy the"
                " file into the folder"
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
        raise VocabError(f"{where}: {shown(value)} where an object is expected; fix the file")
    return cast("Json", value)


def as_list(value: Any, where: str) -> list[Any]:
    """Return a JSON list, or raise VocabError."""
    if not isinstance(value, list):
        raise VocabError(f"{where}: {shown(value)} where a list is expected; fix the file")
    return cast("list[Any]", value)


def as_id(value: Any, where: str) -> int:
    """Return a token id, or raise VocabError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise VocabError(f"{where}: {shown(value)} is not a token id; fix the file")
    return value


def some(values: Iterable[object], n: int = 5) -> str:
    """Quote the first few values and count the rest."""
    every = list(values)
    quoted = ", ".join(map(shown, every[:n]))
    return quoted + (f" and {len(every) - n} more" if len(every) > n else "")
