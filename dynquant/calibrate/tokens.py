"""The tokens of texts and conversations: by a checkpoint's tokenizer, or by llama.cpp."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer
from transformers.utils.chat_template_utils import _compile_jinja_template

from dynquant.arrays import I32
from dynquant.calibrate.chats import Chat, Conversation
from dynquant.calibrate.skeleton import INSTEAD
from dynquant.errors import CalibrationError, Problems
from dynquant.evaluate.chat import (
    Message,
    first_of_2026,
    in_parts,
    reads_parts,
    reason,
    refusals,
)
from dynquant.evaluate.extra import check_extra as check_eval
from dynquant.evaluate.vocabulary import read_vocabulary
from dynquant.keys import Keys
from dynquant.texts import MAX_BYTES, Text

MAX_TOKENS = MAX_BYTES
"""A text has a token for each byte at most."""


def bos_of(keys: Keys) -> int | None:
    """Return the token that runtimes put before a text, or None."""
    adds = keys.get("tokenizer.ggml.add_bos_token")
    token = keys.get("tokenizer.ggml.bos_token_id")
    if adds is None or token is None or not adds.value:
        return None
    assert isinstance(token.value, int), "the key of a token"
    return token.value


def template_of(keys: Keys, *, has_tools: bool) -> str | None:
    """Return the chat template of a model, or None; some models have another for tools."""
    names = ["tokenizer.chat_template.tool_use"] if has_tools else []
    for name in (*names, "tokenizer.chat_template"):
        if found := keys.get(name):
            return str(found.value)
    return None


def template_hashes(keys: Keys, texts: Sequence[Text | Chat]) -> list[str]:
    """Return the SHA-256 of each chat template by which texts are rendered."""
    uses = {bool(c.tools) for chat in texts if isinstance(chat, Chat) for c in chat.conversations}
    found = [template_of(keys, has_tools=has_tools) for has_tools in sorted(uses)]
    distinct = dict.fromkeys(template for template in found if template is not None)
    return [hashlib.sha256(template.encode()).hexdigest() for template in distinct]


def by_transformers(folder: Path, keys: Keys, texts: Sequence[Text | Chat]) -> list[I32]:
    """Return the tokens of each text by the checkpoint's tokenizer, chats by its template.

    keys: of the GGUF that the checkpoint becomes

    Raises CalibrationError if there is no tokenizer or template, or with all conversations for
    which the template fails.
    """
    _check_template(folder, keys, texts)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, OSError, ImportError) as e:
        raise CalibrationError(
            f"{folder}: transformers cannot read its tokenizer: {str(e).splitlines()[0]}; {INSTEAD}"
        ) from e
    problems = Problems()
    chats = _Chats(tokenizer, keys)
    found: list[I32] = []
    for text in texts:
        if isinstance(text, Text):
            tokens = tokenizer(text.content.decode(), verbose=False)["input_ids"]
            found.append(np.array(tokens, np.int32))
        elif (tokens := problems.attempt(lambda chat=text: chats.tokens(chat))) is not None:
            found.append(tokens)
    problems.raise_any(CalibrationError)
    return found


class _Chats:
    """Renders conversations by transformers, which has the sandbox for templates."""

    def __init__(self, tokenizer: Any, keys: Keys) -> None:
        self._tokenizer, self._keys, self._bos = tokenizer, keys, bos_of(keys)
        self._in_parts: dict[str, bool] = {}

    def tokens(self, chat: Chat) -> I32:
        """Return the tokens of all conversations, one after another."""
        reasons: dict[int, str] = {}
        found: list[int] = []
        for conversation in chat.conversations:
            try:
                found += self._of_conversation(conversation)
            except Exception as e:  # a template is a program of the file's author
                reasons[conversation.line] = f"the chat template fails: {reason(e)}"
        CalibrationError.raise_any(refusals(chat.where, reasons))
        return np.array(found, np.int32)

    def _of_conversation(self, conversation: Conversation) -> list[int]:
        """Return the tokens of a conversation; those that runtimes put before it are added."""
        template = template_of(self._keys, has_tools=bool(conversation.tools))
        assert template is not None, "it is checked before"
        if template not in self._in_parts:
            # Transformers compiles a template once, with today's date.
            known = _compile_jinja_template(template).environment.globals
            known["strftime_now"] = first_of_2026
            self._in_parts[template] = reads_parts(
                lambda messages: self._applied(messages, template, tokenize=False)
            )
        messages = conversation.messages
        if self._in_parts[template]:
            messages = in_parts(messages)
        tools = list(conversation.tools) or None
        tokens = self._applied(messages, template, tokenize=True, tools=tools)
        if self._bos is not None and tokens[:1] != [self._bos]:
            tokens = [self._bos, *tokens]
        return tokens

    def _applied(self, messages: Sequence[Message], template: str, **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(
            list(messages),
            chat_template=template,
            return_dict=False,
            tokenizer_kwargs={"verbose": False},
            **options,
        )


def by_llama_cpp(path: Path, keys: Keys, texts: Sequence[Text | Chat]) -> list[I32]:
    """Return the tokens of each text by llama.cpp.

    The words that transformers makes of a GGUF's vocabulary are not always the model's.

    Raises as `by_transformers`, and if the extra `eval` is not installed.
    """
    check_eval()
    _check_template(path, keys, texts)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(i)) for i in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text.content if isinstance(text, Text) else _document(text))
        of = list(zip(files, texts, strict=True))
        plain = [file for file, text in of if isinstance(text, Text)]
        chats = [file for file, text in of if isinstance(text, Chat)]
        read = read_vocabulary(path, plain, (), tokens=MAX_TOKENS, chat=False, chats=chats)
    of_texts, of_chats = iter(read.texts), iter(read.chats)
    return [next(of_texts if isinstance(text, Text) else of_chats) for text in texts]


def _document(chat: Chat) -> bytes:
    """Return a chat as the worker of `eval` reads it."""
    conversations = [
        {"line": c.line, "messages": c.messages, "tools": c.tools} for c in chat.conversations
    ]
    return json.dumps({"where": chat.where, "conversations": conversations}).encode()


def _check_template(path: Path, keys: Keys, texts: Sequence[Text | Chat]) -> None:
    if template_of(keys, has_tools=False) is None and any(isinstance(t, Chat) for t in texts):
        how = (
            "put the model's into the folder as chat_template.jinja"
            if path.is_dir()
            else "make the GGUF again from a checkpoint that has one"
        )
        raise CalibrationError(
            f"{path}: has no chat template, which --chat needs; {how}, or use --text"
        )
