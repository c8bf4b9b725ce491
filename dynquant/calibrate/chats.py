"""Conversations that a model reads through its chat template: files with one on each line.

A line is JSON, in one of the forms in which data sets of conversations are published:

    {"messages": [{"role": "user", "content": "..."}, ...], "tools": [...]}
    [{"role": "user", "content": "..."}, ...]
    {"conversations": [{"from": "human", "value": "..."}, ...], "system": "..."}
    {"prompt": "...", "completion": "..."}; both may be lists of messages
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dynquant.errors import CalibrationError, first_of
from dynquant.evaluate.chat import Message
from dynquant.texts import Text, read_texts
from dynquant.untrusted import parse_json, shown, unique

_ROLES = (
    *("system", "developer", "user", "assistant"),
    *("tool", "function", "ipython", "observation"),
)
"""Roles that templates know. A template writes any other as it is, so that an error in writing
would be read by the model."""

_SHAREGPT = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
_REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys of a message's reasoning; transformers reads them in this order."""


@dataclass(frozen=True)
class Conversation:
    """A conversation.

    line:  its line in the file, from 1
    tools: what the model may call, as JSON schemas
    """

    line: int
    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Chat:
    """A file of conversations.

    name:  in reports
    where: in messages
    """

    name: str
    where: str
    sha256: str
    conversations: tuple[Conversation, ...]


def read_chats(paths: Sequence[Path]) -> list[Chat]:
    """Read files of conversations.

    Raises CalibrationError with the files that are no texts, and the lines that are no
    conversations.
    """
    problems: list[str] = []
    found: list[Chat] = []
    for path, text in zip(paths, read_texts(paths, CalibrationError), strict=True):
        try:
            found.append(_chat(str(path), text))
        except CalibrationError as e:
            problems += e.messages
    CalibrationError.raise_any(problems)
    return found


def _chat(where: str, text: Text) -> Chat:
    problems: list[str] = []
    found: list[Conversation] = []
    # Not splitlines: JSON may have characters that end a line in Unicode.
    for number, line in enumerate(text.content.decode("utf-8-sig").split("\n"), 1):
        if not line.strip():
            continue
        try:
            found.append(_conversation(number, line))
        except ValueError as e:
            problems.append(f"{where}:{number}: {e}")
    CalibrationError.raise_any(first_of(problems, "lines"))
    return Chat(text.name, where, text.sha256, tuple(found))


def _conversation(number: int, line: str) -> Conversation:
    """Return the conversation of a line.

    Raises ValueError with what is wrong with it and what to do.
    """
    try:
        value = parse_json(line, unique)
    except ValueError as e:
        raise ValueError(f"is not JSON: {e}; write one conversation on each line") from e
    messages = tuple(_message(i, m) for i, m in enumerate(_messages(value), 1))
    if not messages:
        raise ValueError("has no messages; remove the line")
    return Conversation(number, messages, _tools(value))


def _tools(value: Any) -> tuple[Any, ...]:
    tools: object = cast(dict[str, Any], value).get("tools") if isinstance(value, dict) else None
    if tools is None:
        return ()
    if not isinstance(tools, list):
        raise ValueError(f"'tools' is {shown(tools)}; write a list of JSON schemas")
    return tuple(cast(list[Any], tools))


_FORMS = "'messages', 'conversations', or 'prompt' and 'completion'"


def _messages(value: Any) -> list[Any]:
    """Return the messages of a line, with roles and contents."""
    if isinstance(value, list):
        return cast(list[Any], value)
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value)}, not a conversation; write an object with {_FORMS}")
    given = cast(dict[str, Any], value)
    if "messages" in given:
        return _list(given, "messages")
    if "conversations" in given:
        return list(_of_sharegpt(given))
    if "prompt" in given and "completion" in given:
        return [*_said(given, "prompt", "user"), *_said(given, "completion", "assistant")]
    raise ValueError(f"has none of {_FORMS}; write one of these forms")


def _list(given: dict[str, Any], key: str) -> list[Any]:
    found: object = given[key]
    if not isinstance(found, list):
        raise ValueError(f"{key!r} is {shown(found)}; write a list of messages")
    return cast(list[Any], found)


def _said(given: dict[str, Any], key: str, role: str) -> list[Any]:
    if isinstance(text := given[key], str):
        return [{"role": role, "content": text}]
    return _list(given, key)


def _of_sharegpt(given: dict[str, Any]) -> Iterator[Any]:
    """Yield the messages of ShareGPT's form; some data sets have its key and the usual messages."""
    if system := given.get("system"):
        yield {"role": "system", "content": system}
    for i, message in enumerate(_list(given, "conversations"), 1):
        if not isinstance(message, dict) or "from" not in message:
            yield message
            continue
        known = cast(dict[str, Any], message)
        name = _known(i, "from", known["from"], _SHAREGPT)
        yield {"role": _SHAREGPT[name], "content": known.get("value")}


def _known(number: int, key: str, value: object, known: Collection[str]) -> str:
    if not isinstance(value, str) or value not in known:
        raise ValueError(
            f"message {number}: {key!r} is {shown(value)}; use one of {', '.join(known)}"
        )
    return value


def _message(number: int, value: Any) -> Message:
    """Return a message as templates read it: its content is a text, and no value is null."""
    if not isinstance(value, dict):
        raise ValueError(
            f"message {number} is {shown(cast(object, value))}; write an object with 'role' and"
            " 'content'"
        )
    found = {k: v for k, v in cast(dict[str, Any], value).items() if v is not None}
    _known(number, "role", found.get("role"), _ROLES)
    if "content" in found:
        found["content"] = _content(number, found["content"])
    elif "tool_calls" not in found:
        raise ValueError(f"message {number} has no content; write its text, or remove the message")
    if (reasoning := next((found[k] for k in _REASONING if k in found), None)) is not None:
        found = {"thinking": reasoning} | found | {"reasoning_content": reasoning}
    return found


def _content(number: int, value: Any) -> str:
    """Return a content as one text; it may be a list of parts."""
    if isinstance(value, str):
        return value
    parts: list[Any] = cast(list[Any], value) if isinstance(value, list) else [value]
    return "".join(_text(number, part) for part in parts)


def _text(number: int, part: Any) -> str:
    known = cast(dict[str, Any], part) if isinstance(part, dict) else {"text": part}
    text = known.get("text")
    if known.get("type", "text") != "text" or not isinstance(text, str):
        raise ValueError(
            f"message {number}: the content has {shown(cast(object, part))}; remove all that is"
            " not text"
        )
    return text
