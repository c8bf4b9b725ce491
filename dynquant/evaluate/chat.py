"""Conversations and prompts as a model reads them: rendered by its chat template."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from functools import cached_property
from typing import Any, cast

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dynquant.errors import EvalError, first_of

Message = Mapping[str, Any]
"""A message with its "role" and its "content", in the form that templates of transformers read."""


class ChatTemplate:
    """A chat template: Jinja, as Hugging Face and llama.cpp read it; it runs in a sandbox."""

    def __init__(self, text: str, *, bos: str, eos: str) -> None:
        self._text = text
        self._more = {"bos_token": bos, "eos_token": eos}

    def rendered(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Any] = (),
        opens_answer: bool = False,
    ) -> str:
        """Return the text of a conversation.

        tools:        what the model may call, as JSON schemas
        opens_answer: whether the begin of the next answer is added

        Raises EvalError if the template fails.
        """
        try:
            if self._reads_parts:
                messages = in_parts(messages)
            text = self._render(messages, tools, opens_answer)
            text.encode()
        except (
            Exception
        ) as e:  # a template is a program of the file's author: it may raise anything
            raise EvalError(f"the chat template fails: {reason(e)}") from e
        return text

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Any] = (), opens_answer: bool = False
    ) -> str:
        return self._compiled.render(
            messages=messages,
            tools=list(tools) or None,
            add_generation_prompt=opens_answer,
            **self._more,
        )

    @cached_property
    def _reads_parts(self) -> bool:
        return reads_parts(self._render)

    @cached_property
    def _compiled(self) -> Any:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_AnswerMarks, loopcontrols]
        )
        known = cast(dict[str, Any], environment.globals)
        known |= {"raise_exception": _refuse, "strftime_now": first_of_2026}
        # Jinja's own filter writes < and & as in a web page.
        environment.filters["tojson"] = _to_json
        return environment.from_string(self._text)


class _AnswerMarks(Extension):
    """The marks of a model's answers, which are for training: `{% generation %}`."""

    tags = {"generation"}  # noqa: RUF012 as jinja declares it

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        """Return what is between the marks."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def rendered(template: str, prompt: str, *, bos: str, eos: str) -> str:
    """Return a prompt as the user's message of a chat, with the begin of the answer.

    Raises EvalError if the template fails.
    """
    messages = [{"role": "user", "content": prompt}]
    try:
        return ChatTemplate(template, bos=bos, eos=eos).rendered(messages, opens_answer=True)
    except EvalError as e:
        raise EvalError(f"{e}; use --no-chat to continue the prompts as plain text") from e


_PROBE = "a probe of the content"


def reads_parts(render: Callable[[Sequence[Message]], str]) -> bool:
    """Return whether a template reads a content as a list of parts only.

    Templates of models that also see leave out a content that is a text, without an error.
    """
    probe: list[Message] = [{"role": "user", "content": _PROBE}]
    try:
        return _PROBE not in render(probe) and _PROBE in render(in_parts(probe))
    except Exception:  # whatever a template raises; it fails for the messages, too
        return False


def in_parts(messages: Sequence[Message]) -> list[Message]:
    """Return messages whose content is a list with one part, a text."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        if isinstance(message.get("content"), str)
        else message
        for message in messages
    ]


def reason(error: Exception) -> str:
    """Return why a template fails, as one line."""
    return " ".join(str(error).split()) or type(error).__name__


_LINES = 10


def refusals(where: str, reasons: Mapping[int, str]) -> list[str]:
    """Return a message for each reason why a template fails, with the lines of conversations.

    where:   the file of the conversations
    reasons: by line
    """
    lines: dict[str, list[int]] = {}
    for line, why in reasons.items():
        lines.setdefault(why, []).append(line)
    found: list[str] = []
    for why, its in lines.items():
        more = f" and {len(its) - _LINES:,} more" if len(its) > _LINES else ""
        listed = ",".join(map(str, its[:_LINES])) + more
        found.append(f"{where}:{listed}: {why}; correct the conversation or remove it")
    return first_of(found, "conversations")


def _refuse(message: str) -> Any:
    raise TemplateError(message)


def first_of_2026(pattern: str) -> str:
    """Return the date that templates show, always the same so that results can be repeated."""
    return date(2026, 1, 1).strftime(pattern)


def without_repeated_bos(tokens: Sequence[int], bos: int | None) -> list[int]:
    """Return tokens with one BOS at the begin where the template and llama.cpp both add it."""
    found = list(tokens)
    if bos is not None and found[:2] == [bos, bos]:
        del found[0]
    return found
