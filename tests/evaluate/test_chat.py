"""Chat templates of untrusted files: rendered in a sandbox; whatever they raise is one error."""

from __future__ import annotations

from typing import Any

import pytest

from dynquant.errors import EvalError
from dynquant.evaluate.chat import ChatTemplate, refusals, rendered, without_repeated_bos


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


# ---- conversations ----

ASKED = {"role": "user", "content": "Is 3 < 4 & true?"}
ANSWERED = {"role": "assistant", "content": "Yes."}
LINES = "{% for m in messages %}{{ m.role }}: {{ m.content }};{% endfor %}"


def conversation(template: str, **options: Any) -> str:
    return ChatTemplate(template, bos="<s>", eos="</s>").rendered([ASKED, ANSWERED], **options)


def test_a_conversation_does_not_open_another_answer() -> None:
    template = LINES + "{% if add_generation_prompt %}assistant: {% endif %}"
    assert conversation(template) == "user: Is 3 < 4 & true?;assistant: Yes.;"


def test_marks_of_answers_change_no_text() -> None:
    marked = LINES.replace("{{ m.content }}", "{% generation %}{{ m.content }}{% endgeneration %}")
    assert conversation(marked) == conversation(LINES)


def test_json_in_a_template_is_not_written_as_in_a_web_page() -> None:
    assert conversation("{{ messages[0].content | tojson }}") == '"Is 3 < 4 & true?"'
    assert conversation("{{ tools | tojson }}", tools=[{"é": 1}]) == '[{"é": 1}]'


def test_a_template_without_tools_sees_null() -> None:
    assert conversation("{{ tools == None }}") == "True"


def test_a_template_that_reads_parts_only_gets_parts() -> None:
    template = (
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
        "{% endif %}{% endfor %}{% endfor %}"
    )
    assert conversation(template) == "Is 3 < 4 & true?Yes."
    assert render(template) == "Hello"


def test_a_template_that_reads_texts_gets_texts() -> None:
    either = (
        "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}part"
        "{% endif %}{% endfor %}"
    )
    assert conversation(either) == "Is 3 < 4 & true?Yes."


def test_lines_with_the_same_reason_are_one_message() -> None:
    reasons = {2: "no system", 5: "roles", 7: "no system"}
    assert refusals("t.jsonl", reasons) == [
        "t.jsonl:2,7: no system; correct the conversation or remove it",
        "t.jsonl:5: roles; correct the conversation or remove it",
    ]


def test_messages_about_many_lines_are_short() -> None:
    (same,) = refusals("t.jsonl", dict.fromkeys(range(1, 5001), "no system"))
    assert same.startswith("t.jsonl:1,2,3,4,5,6,7,8,9,10 and 4,990 more: no system;")
    *first, last = refusals("t.jsonl", {n: f"no {n}" for n in range(1, 5001)})
    assert len(first) == 20
    assert last == "and 4,980 more conversations with such problems"
