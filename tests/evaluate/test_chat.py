"""Chat templates of untrusted files: rendered in a sandbox; whatever they raise is one error."""

from __future__ import annotations

import pytest

from dynquant.errors import EvalError
from dynquant.evaluate.chat import rendered, without_repeated_bos


def render(template: str, prompt: str = "Hello") -> str:
    return rendered(template, prompt, bos="<s>", eos="</s>")


def test_a_prompt_is_the_message_of_a_user_and_the_answer_begins() -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m['content'] }}{{ eos_token }}"
        "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    assert render(template) == "<s>[user] Hello</s>[assistant]"


def test_a_prompt_is_no_template() -> None:
    assert render("{{ messages[0].content }}", "{{ 7 * 7 }}") == "{{ 7 * 7 }}"


def test_lines_of_blocks_are_trimmed_as_in_transformers() -> None:
    assert render("{% if true %}\n  {% set x = 1 %}\na\n{% endif %}\n") == "a\n"


def test_a_template_shows_the_same_date_every_day() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "01 Jan 2026"


@pytest.mark.parametrize(
    "template",
    [
        "{% if %}",
        "{{ raise_exception('no system message') }}",
        "{{ nothing.at.all }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ messages[7].content }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 10 ** 15 }}",
        "{{ '\\ud800' }}",
        "{{ strftime_now(3) }}",
        "{% include 'x' %}",
    ],
)
def test_a_template_that_fails_is_one_error_with_what_to_do(template: str) -> None:
    with pytest.raises(EvalError, match=r"^the chat template fails: .+; use --no-chat to continue"):
        render(template)


@pytest.mark.parametrize(
    ("tokens", "bos", "expected"),
    [
        ([1, 1, 5], 1, [1, 5]),
        ([1, 5, 1], 1, [1, 5, 1]),
        ([1, 1, 1, 5], 1, [1, 1, 5]),
        ([1, 1, 5], None, [1, 1, 5]),
        ([], 1, []),
    ],
)
def test_bos_of_template_and_llama_cpp_is_one(
    tokens: list[int], bos: int | None, expected: list[int]
) -> None:
    assert without_repeated_bos(tokens, bos) == expected
