"""Prompts as a model reads them: rendered by its chat template, if it has one."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Any, cast

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from dynquant.errors import EvalError


def rendered(template: str, prompt: str, *, bos: str, eos: str) -> str:
    """Return a prompt as the user's message of a chat, with the begin of the answer.

    template: Jinja, as Hugging Face and llama.cpp read it; it runs in a sandbox

    Raises EvalError if the template fails.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    known = cast(dict[str, Any], environment.globals)
    known |= {"raise_exception": _refuse, "strftime_now": _first_of_2026}
    messages = [{"role": "user", "content": prompt}]
    try:
        text = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, bos_token=bos, eos_token=eos
        )
        text.encode()
    except Exception as e:  # a template is a program of the file's author: it may raise anything
        why = " ".join(str(e).split()) or type(e).__name__
        raise EvalError(
            f"the chat template fails: {why}; use --no-chat to continue the prompts as plain text"
        ) from e
    return text


def _refuse(message: str) -> Any:
    raise TemplateError(message)


def _first_of_2026(pattern: str) -> str:
    """Return the date that templates show, always the same so that results can be repeated."""
    return date(2026, 1, 1).strftime(pattern)


def without_repeated_bos(tokens: Sequence[int], bos: int | None) -> list[int]:
    """Return tokens with one BOS at the begin where the template and llama.cpp both add it."""
    found = list(tokens)
    if bos is not None and found[:2] == [bos, bos]:
        del found[0]
    return found
