"""The vocabulary of a file, and the tokens of texts and prompts."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from dynquant.arrays import I32
from dynquant.errors import EvalError
from dynquant.evaluate import chat
from dynquant.evaluate.runtime.binding import engine, has_gpu
from dynquant.evaluate.runtime.model import LoadedModel
from dynquant.evaluate.tasks import Describe, Described
from dynquant.texts import read_texts


def describe(task: Describe) -> Described:
    """Read a vocabulary, and write the tokens of texts and prompts to a file."""
    with LoadedModel(Path(task.path), vocab_only=True) as model:
        digest = hashlib.sha256()
        for text in model.vocabulary():
            digest.update(len(text).to_bytes(4, "little") + text)
        arrays: dict[str, Any] = {
            f"text{i}": beginning(text.content, task.tokens, model)
            for i, text in enumerate(read_texts([Path(name) for name in task.texts], EvalError))
        }
        for i, name in enumerate(task.chats):
            arrays[f"chat{i}"] = _tokens_of_chat(Path(name), model)
        template = model.chat_template() if task.chat else None
        for i, prompt in enumerate(task.prompts):
            arrays[f"prompt{i}"] = _tokens_of(prompt, model, template)
        if task.prompts:
            pieces = [model.piece(token) for token in range(model.n_tokens)]
            arrays["pieces"] = np.frombuffer(b"".join(pieces), np.uint8)
            arrays["piece_lengths"] = np.array([len(piece) for piece in pieces], np.int32)
        np.savez(task.out, allow_pickle=False, **arrays)
        return Described(
            architecture=model.architecture,
            n_tokens=model.n_tokens,
            vocabulary_sha256=digest.hexdigest(),
            bos=model.bos,
            has_chat_template=model.chat_template() is not None,
            refusal=model.refusal(),
            has_gpu=has_gpu(),
            engine=engine(),
        )


_BYTES = 24
"""Bytes of text for each token that is wanted: five times what English has, so that whatever
the end of the cut text changes is far behind the tokens that are used."""


def beginning(content: bytes, wanted: int, model: LoadedModel) -> I32:
    """Return the tokens of a text, or of its beginning if that has more than enough."""
    end = content.rfind(b"\n", 0, wanted * _BYTES)
    if end > 0 and len(content) > wanted * _BYTES:
        tokens = model.tokenize(content[:end], special=False)
        if len(tokens) > 2 * wanted:
            return tokens
    return model.tokenize(content, special=False)


def _tokens_of(prompt: str, model: LoadedModel, template: str | None) -> I32:
    if template is None:
        return model.tokenize(prompt.encode(), special=False)
    try:
        text = chat.rendered(template, prompt, bos=model.text_of_bos(), eos=model.text_of_eos())
    except EvalError as e:
        raise EvalError(f"{model.path}: {e}") from e
    return _tokens_of_rendered(text, model)


def _tokens_of_chat(path: Path, model: LoadedModel) -> I32:
    """Return the tokens of all conversations of a file, one after another.

    Raises EvalError with the conversations for which the file's chat template fails.
    """
    default = model.chat_template()
    with_tools = model.chat_template("tool_use") or default
    assert default is not None and with_tools is not None, "who asks has seen it"
    marks = {"bos": model.text_of_bos(), "eos": model.text_of_eos()}
    plain, calling = (chat.ChatTemplate(text, **marks) for text in (default, with_tools))
    given = json.loads(path.read_bytes())
    reasons: dict[int, str] = {}
    found: list[I32] = []
    for conversation in given["conversations"]:
        template = calling if conversation["tools"] else plain
        try:
            text = template.rendered(conversation["messages"], tools=conversation["tools"])
            found.append(_tokens_of_rendered(text, model))
        except EvalError as e:
            reasons[conversation["line"]] = str(e)
    EvalError.raise_any(chat.refusals(given["where"], reasons))
    return np.concatenate(found)


def _tokens_of_rendered(text: str, model: LoadedModel) -> I32:
    tokens = model.tokenize(text.encode(), special=True)
    return np.array(chat.without_repeated_bos(tokens.tolist(), model.bos), np.int32)
