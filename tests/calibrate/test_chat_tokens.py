"""Conversations become the tokens that transformers makes of them, for checkpoints and GGUFs.

Needs torch: `pytest -m torch` where the extra `calibrate` is installed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agreement import load_reference
from places import TINY_BOOKS

import dynquant
from dynquant.arrays import I32
from dynquant.calibrate.chats import Chat, read_chats
from dynquant.checkpoint.gguf import read_gguf
from dynquant.errors import CalibrationError, DynquantError
from dynquant.texts import Text

torch: Any = pytest.importorskip("torch", reason="needs the extra calibrate")
transformers: Any = pytest.importorskip("transformers", reason="needs the extra calibrate")

from dynquant.calibrate.imatrix import Settings, make_imatrix  # noqa: E402
from dynquant.calibrate.sources import open_source  # noqa: E402
from dynquant.calibrate.tokens import by_llama_cpp  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.slow]

TALKS: list[list[dict[str, Any]]] = [
    [
        {"role": "user", "content": "Is the mill closed?"},
        {"role": "assistant", "content": "It was closed in 1911, when the river was moved."},
    ],
    [
        {"role": "system", "content": "Answer in one line."},
        {"role": "user", "content": "What is 3 < 4?\n"},
        {"role": "assistant", "content": "True, é and 水 <|im_end|> too."},
        {"role": "user", "content": "Good."},
    ],
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(*conversations: Any) -> Chat:
    Path("t.jsonl").write_text("\n".join(map(json.dumps, conversations)))
    (chat,) = read_chats([Path("t.jsonl")])
    return chat


def copied(family: str, template: str | None) -> Path:
    """Copy a reference, with another chat template or without one."""
    shutil.copytree(load_reference(family).folder, "model")
    path = Path("model", "tokenizer_config.json")
    settings = json.loads(path.read_text()) | {"chat_template": template}
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))
    return Path("model")


def gguf_of(folder: Path) -> Path:
    dynquant.convert(folder, "model.gguf", recipe="f32", threads=1)
    return Path("model.gguf")


def of_transformers(folder: Path, conversation: Any, **options: Any) -> list[int]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found: list[int] = tokenizer.apply_chat_template(conversation, return_dict=False, **options)
    return found


def tokens_of(model: Path, *texts: Chat | Text) -> list[I32]:
    if model.is_dir():
        return open_source(model).tokenize(texts)
    return by_llama_cpp(model, dynquant.load_model(model).keys, texts)


@pytest.mark.parametrize("family", ["qwen3", "llama-3.1"])
@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_conversations_have_the_tokens_of_transformers_one_after_another(
    folder: Path, family: str, kind: str
) -> None:
    model = load_reference(family).folder
    expected = [token for talk in TALKS for token in of_transformers(model, talk)]
    (found,) = tokens_of(model if kind == "checkpoint" else gguf_of(model), written(*TALKS))
    assert found.dtype == np.int32
    assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_each_conversation_begins_with_one_bos(folder: Path, kind: str) -> None:
    # The template of this reference writes the BOS token, and llama.cpp adds it.
    model = load_reference("llama-3.1").folder
    bos = transformers.AutoTokenizer.from_pretrained(model).bos_token_id
    (found,) = tokens_of(model if kind == "checkpoint" else gguf_of(model), written(*TALKS))
    assert found.tolist().count(bos) == len(TALKS)
    assert found[0] == bos != found[1]


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_a_template_without_bos_gets_the_one_of_the_runtime(folder: Path, kind: str) -> None:
    model = copied("llama-3.1", "{% for m in messages %}{{ m.content }}{% endfor %}")
    bos = transformers.AutoTokenizer.from_pretrained(model).bos_token_id
    expected = [bos, *of_transformers(model, TALKS[0])]
    (found,) = tokens_of(model if kind == "checkpoint" else gguf_of(model), written(TALKS[0]))
    assert expected.count(bos) == 1
    assert found.tolist() == expected


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_the_tools_of_a_conversation_are_in_its_text(folder: Path, kind: str) -> None:
    model = copied(
        "qwen3", "{{ tools | tojson }}{% for m in messages %}{{ m.content }}{% endfor %}"
    )
    tools = [{"type": "function", "function": {"name": "add", "description": "a < b"}}]
    chat = written({"messages": TALKS[0], "tools": tools}, TALKS[0])
    (found,) = tokens_of(model if kind == "checkpoint" else gguf_of(model), chat)
    expected = of_transformers(model, TALKS[0], tools=tools)
    assert found.tolist() == expected + of_transformers(model, TALKS[0])


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_the_template_for_tools_is_used_with_tools(folder: Path, kind: str) -> None:
    model = copied("qwen3", None)
    path = model / "tokenizer_config.json"
    named = [
        {"name": "default", "template": "{{ messages[0].content }}"},
        {"name": "tool_use", "template": "{{ messages[1].content }}"},
    ]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": named}))
    tools = [{"type": "function", "function": {"name": "add"}}]
    chat = written({"messages": TALKS[0], "tools": tools}, TALKS[0])
    (found,) = tokens_of(model if kind == "checkpoint" else gguf_of(model), chat)
    expected = of_transformers(model, TALKS[0], tools=tools)
    assert found.tolist() == expected + of_transformers(model, TALKS[0])


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_the_date_in_a_template_is_the_same_every_day(folder: Path, kind: str) -> None:
    model = copied("qwen3", "{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}")
    (found,) = tokens_of(model if kind == "checkpoint" else gguf_of(model), written(TALKS[0]))
    text = transformers.AutoTokenizer.from_pretrained(model).decode(found)
    assert text == "01 Jan 2026Is the mill closed?"


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_a_template_that_reads_parts_only_leaves_nothing_out(folder: Path, kind: str) -> None:
    model = copied(
        "qwen3",
        "{% for m in messages %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}"
        "{% endif %}{% endfor %}{% endfor %}",
    )
    (found,) = tokens_of(model if kind == "checkpoint" else gguf_of(model), written(TALKS[0]))
    text = transformers.AutoTokenizer.from_pretrained(model).decode(found)
    assert text == "".join(message["content"] for message in TALKS[0])


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_texts_and_chats_keep_their_order(folder: Path, kind: str) -> None:
    model = load_reference("qwen3").folder
    source = model if kind == "checkpoint" else gguf_of(model)
    text, chat = Text("a.txt", b"The river was dark."), written(TALKS[0])
    first, second, third = tokens_of(source, text, chat, text)
    (alone,) = tokens_of(source, text)
    assert first.tolist() == third.tolist() == alone.tolist()
    assert second.tolist() == of_transformers(model, TALKS[0])


ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}{% endfor %}"
)


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_all_conversations_that_a_template_refuses_are_named(folder: Path, kind: str) -> None:
    model = copied("qwen3", ALTERNATING)
    chat = written(TALKS[0], TALKS[1], TALKS[0], TALKS[1])
    with pytest.raises(DynquantError) as e:
        tokens_of(model if kind == "checkpoint" else gguf_of(model), chat)
    assert e.value.messages == (
        "t.jsonl:2,4: the chat template fails: roles must alternate; correct the conversation or"
        " remove it",
    )


@pytest.mark.parametrize(
    "template",
    ["{% if %}", "{{ ''.__class__.__mro__ }}", "{{ 'a' * 10 ** 15 }}", "{% include 'x' %}"],
)
def test_a_template_that_fails_always_is_one_error(folder: Path, template: str) -> None:
    model = copied("qwen3", template)
    with pytest.raises(CalibrationError, match=r"^t\.jsonl:1,2: the chat template fails: ") as e:
        tokens_of(model, written(*TALKS))
    assert len(e.value.messages) == 1


@pytest.mark.parametrize("kind", ["checkpoint", "gguf"])
def test_a_model_without_a_template_is_refused(folder: Path, kind: str) -> None:
    model = TINY_BOOKS if kind == "checkpoint" else gguf_of(TINY_BOOKS)
    with pytest.raises(CalibrationError, match="has no chat template, which --chat needs; "):
        tokens_of(model, written(*TALKS))


def test_the_file_states_chats_and_the_template(folder: Path) -> None:
    model = load_reference("qwen3").folder
    chat, text = written(*TALKS * 2), Text("a.txt", b"The river was dark." * 20)
    make_imatrix(
        model,
        Path("out.gguf"),
        Settings((text, chat), context=16, threads=1),
        force=False,
        progress=lambda _, __: None,
        say=lambda _: None,
    )
    keys = read_gguf(Path("out.gguf")).keys
    template = transformers.AutoTokenizer.from_pretrained(model).chat_template
    assert keys["imatrix.datasets"].value == ("a.txt", "t.jsonl")
    assert keys["dynquant.imatrix.text_form"].value == ("text", "chat")
    sha256 = [hashlib.sha256(c).hexdigest() for c in (text.content, Path("t.jsonl").read_bytes())]
    assert keys["dynquant.imatrix.text_sha256"].value == tuple(sha256)
    assert keys["dynquant.imatrix.chat_template_sha256"].value == (
        hashlib.sha256(template.encode()).hexdigest(),
    )
    # Windows of the joined conversations, without overlap.
    joined = [token for talk in TALKS * 2 for token in of_transformers(model, talk)]
    (plain,) = tokens_of(model, text)
    windows = [*plain[: len(plain) // 16 * 16], *joined[: len(joined) // 16 * 16]]
    content = np.array(windows, "<i4").tobytes()
    assert keys["dynquant.imatrix.tokens_sha256"].value == hashlib.sha256(content).hexdigest()


def test_without_chats_no_template_is_stated(folder: Path) -> None:
    make_imatrix(
        load_reference("qwen3").folder,
        Path("out.gguf"),
        Settings((Text("a.txt", b"The river was dark." * 20),), context=16, threads=1),
        force=False,
        progress=lambda _, __: None,
        say=lambda _: None,
    )
    assert "dynquant.imatrix.chat_template_sha256" not in read_gguf(Path("out.gguf")).keys
