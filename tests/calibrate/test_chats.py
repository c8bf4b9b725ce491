"""Files of conversations are read in the usual forms, and each other line is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dynquant.calibrate.chats import Chat, read_chats
from dynquant.errors import CalibrationError

MESSAGES: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": "Because."},
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def read(content: str | bytes) -> Chat:
    Path("t.jsonl").write_bytes(content.encode() if isinstance(content, str) else content)
    (chat,) = read_chats([Path("t.jsonl")])
    return chat


def messages_of(value: Any) -> list[Any]:
    (conversation,) = read(json.dumps(value)).conversations
    return list(conversation.messages)


def refusal(*lines: Any) -> list[str]:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    with pytest.raises(CalibrationError) as e:
        read(text)
    return list(e.value.messages)


@pytest.mark.parametrize(
    "value",
    [
        {"messages": MESSAGES, "source": "x"},
        MESSAGES,
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Because."},
            ]
        },
        {
            "system": "Be brief.",
            "conversations": [
                {"from": "human", "value": "Why?"},
                {"from": "gpt", "value": "Because."},
            ],
        },
        {"conversations": MESSAGES},
        {"prompt": MESSAGES[:2], "completion": MESSAGES[2:]},
    ],
)
def test_all_forms_give_the_same_messages(value: Any) -> None:
    assert messages_of(value) == MESSAGES


def test_a_prompt_and_its_completion_are_two_messages() -> None:
    assert messages_of({"prompt": "Why?", "completion": "Because."}) == MESSAGES[1:]


def test_parts_that_are_text_become_one_text() -> None:
    parts = [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]
    assert messages_of([{"role": "user", "content": parts}]) == MESSAGES[1:2]


def test_what_templates_read_besides_is_kept_and_null_is_not() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    given = {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None}
    assert messages_of([given]) == [{"role": "assistant", "tool_calls": [call]}]


def test_reasoning_has_the_names_that_templates_read() -> None:
    (found,) = messages_of([{"role": "assistant", "content": "Yes.", "reasoning": "It is."}])
    assert (found["reasoning_content"], found["thinking"]) == ("It is.", "It is.")


def test_tools_belong_to_their_conversation() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    first, second = read(
        f"{json.dumps({'messages': MESSAGES, 'tools': [tool]})}\n{json.dumps(MESSAGES)}"
    ).conversations
    assert (first.tools, second.tools) == ((tool,), ())


def test_blank_lines_and_a_mark_of_utf8_are_skipped() -> None:
    line = json.dumps(MESSAGES).encode()
    found = read(b"\xef\xbb\xbf" + line + b"\r\n\n  \n" + line + b"\n").conversations
    assert [c.line for c in found] == [1, 4]


def test_a_character_that_ends_lines_elsewhere_ends_none() -> None:
    (found,) = read('[{"role": "user", "content": "a\u2028b\x85c"}]').conversations
    assert found.messages[0]["content"] == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON: "),
        ("[" * 100 + "]" * 100, "is not JSON: nested more than 64 deep"),
        ('{"messages": [], "messages": []}', "is not JSON: 'messages' appears twice"),
        ('[{"role": "user", "content": "\\ud800"}]', "is not JSON: half a character"),
        ("7", "is 7, not a conversation; write an object with 'messages', "),
        ('{"text": "x"}', "has none of 'messages', 'conversations', or 'prompt' and 'completion'"),
        ('{"prompt": "x"}', "has none of 'messages', "),
        ("[]", "has no messages; remove the line"),
        ('{"messages": "x"}', "'messages' is 'x'; write a list of messages"),
        ('{"prompt": 3, "completion": ""}', "'prompt' is 3; write a list of messages"),
        ('["x"]', "message 1 is 'x'; write an object with 'role' and 'content'"),
        ('[{"content": "x"}]', "message 1: 'role' is None; use one of system, developer, user, "),
        ('[{"role": "usr", "content": "x"}]', "message 1: 'role' is 'usr'; use one of system, "),
        ('[{"role": ["user"], "content": "x"}]', "message 1: 'role' is ['user']; use one of "),
        ('[{"role": "user"}]', "message 1 has no content; write its text, or remove the message"),
        ('[{"role": "user", "content": 3}]', "message 1: the content has 3; remove all that is "),
        (
            '[{"role": "user", "content": [{"type": "image", "url": "x"}]}]',
            "message 1: the content has {'type': 'image', 'url': 'x'}; remove all that is not text",
        ),
        (
            '{"conversations": [{"from": "human", "value": "x"}, {"from": "bot", "value": "x"}]}',
            "message 2: 'from' is 'bot'; use one of system, human, user, gpt, assistant, tool",
        ),
        ('{"conversations": [{"from": {}, "value": "x"}]}', "message 1: 'from' is {}; use one of "),
        ('{"messages": [{"role": "user", "content": "x"}], "tools": "[]"}', "'tools' is '[]'; "),
    ],
)
def test_a_line_that_is_no_conversation_is_named(line: str, message: str) -> None:
    (found,) = refusal(MESSAGES, line)
    assert found.startswith(f"t.jsonl:2: {message}")


def test_all_lines_of_all_files_are_reported_together() -> None:
    Path("a.jsonl").write_text("{\n[]\n")
    Path("b.jsonl").write_text("3\n")
    with pytest.raises(CalibrationError) as e:
        read_chats([Path("a.jsonl"), Path("b.jsonl")])
    assert [m.split(": ")[0] for m in e.value.messages] == ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1"]


def test_messages_about_a_file_of_another_kind_are_few() -> None:
    *first, last = refusal(*["no conversation"] * 1000)
    assert (len(first), last) == (20, "and 980 more lines with such problems")


@pytest.mark.parametrize(("content", "what"), [(b"", "is empty"), (b"\xff", "is not UTF-8")])
def test_a_file_that_is_no_text_is_named(content: bytes, what: str) -> None:
    with pytest.raises(CalibrationError, match=f"^t.jsonl: {what}"):
        read(content)
