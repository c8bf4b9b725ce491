from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vocab_files import edit, tokenize, train, write_json, write_model

from dynquant.errors import VocabError
from dynquant.vocab import read_vocab
from dynquant.vocab.pretypes import GPT_2

CONFIG: dict[str, Any] = {"vocab_size": 700}
SEQUENCE = {"Sequence": {"id": "A", "type_id": 0}}
START = {"SpecialToken": {"id": "<|start|>", "type_id": 0}}
END = {"SpecialToken": {"id": "<|end|>", "type_id": 0}}


def special(folder: Path, config: dict[str, Any] = CONFIG) -> dict[str, object]:
    names = ("_token_id", "add_bos_token", "add_eos_token", "add_sep_token")
    return {
        key.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): value.value
        for key, value in read_vocab(folder, config).items()
        if key.endswith(names)
    }


def template(folder: Path, *pieces: Any) -> None:
    tokens = {
        t: {"id": t, "ids": [i], "tokens": [t]} for i, t in ((0, "<|end|>"), (1, "<|start|>"))
    }
    edit(
        folder,
        "tokenizer.json",
        post_processor={
            "type": "TemplateProcessing",
            "single": list(pieces),
            "pair": [SEQUENCE, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": tokens,
        },
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    train(tmp_path, (GPT_2,))
    return tmp_path


def test_tokenizer_config_names_the_special_tokens(folder: Path):
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": {"content": "<|start|>"},
            "eos_token": "<|end|>",
            "unk_token": None,
            "pad_token": "<|end|>",
            "mask_token": "no such token",
        },
    )
    assert special(folder) == {"bos": 1, "eos": 0, "padding": 0, "add_bos_token": False}


def test_config_json_counts_where_tokenizer_config_names_none(folder: Path):
    write_json(folder / "tokenizer_config.json", {"bos_token": "<|start|>"})
    config = CONFIG | {"bos_token_id": 5, "eos_token_id": [6, 7], "pad_token_id": -1}
    assert special(folder, config) == {"bos": 1, "eos": 6, "eot": 7, "add_bos_token": False}


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_bos_or_eos_beyond_the_vocabulary_is_named(name: str, folder: Path):
    write_json(folder / "tokenizer_config.json", {})
    with pytest.raises(
        VocabError, match=rf"config.json: {name}_token_id is 700, but there are 700"
    ):
        special(folder, CONFIG | {f"{name}_token_id": 700})


def test_what_the_template_puts_around_a_text_is_added(folder: Path):
    template(folder, START, SEQUENCE, END)
    assert special(folder) == {"bos": 1, "eos": 0, "add_bos_token": True, "add_eos_token": True}
    model = write_model(folder / "model.gguf", read_vocab(folder, CONFIG))
    (tokens,) = tokenize(model, ["a"])
    assert tokens[::2] == [1, 0]


def test_tokenizer_config_counts_more_than_the_template(folder: Path):
    template(folder, START, SEQUENCE)
    edit(folder, "tokenizer_config.json", add_bos_token=False, add_eos_token=True)
    assert special(folder) == {"bos": 1, "eos": 0, "add_bos_token": False, "add_eos_token": True}


def test_another_token_at_the_end_is_the_end_and_the_configured_one_a_turns(folder: Path):
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|start|>"})
    template(folder, SEQUENCE, END)
    assert special(folder) == {"eos": 0, "eot": 1, "add_bos_token": False, "add_eos_token": True}


def test_the_token_before_a_text_is_the_bos_where_none_is_named(folder: Path):
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|end|>"})
    template(folder, START, SEQUENCE)
    assert special(folder) == {"bos": 1, "eos": 0, "add_bos_token": True}


def test_no_bos_is_added_where_there_is_none(folder: Path):
    write_json(folder / "tokenizer_config.json", {"add_bos_token": True})
    assert special(folder) == {"add_bos_token": False}
    keys = read_vocab(folder, CONFIG, pre="llama-bpe")
    model = write_model(folder / "model.gguf", keys)
    (tokens,) = tokenize(model, ["a"])
    assert len(tokens) == 1


def test_a_template_stands_in_its_own_file_or_in_a_configuration(folder: Path):
    def found() -> object:
        return read_vocab(folder, CONFIG)["tokenizer.chat_template"].value

    write_json(folder / "chat_template.json", {"chat_template": "json"})
    assert found() == "json"
    edit(folder, "tokenizer_config.json", chat_template="configuration")
    assert found() == "configuration"
    (folder / "chat_template.jinja").write_text("jinja é", encoding="utf-8")
    assert found() == "jinja é"


def test_several_templates_have_their_names(folder: Path):
    named = [{"name": n, "template": n.upper()} for n in ("default", "tool use", "rag")]
    edit(folder, "tokenizer_config.json", chat_template=named)
    keys = read_vocab(folder, CONFIG)
    assert {k: v.value for k, v in keys.items() if k.startswith("tokenizer.chat")} == {
        "tokenizer.chat_template.rag": "RAG",
        "tokenizer.chat_template.tool_use": "TOOL USE",
        "tokenizer.chat_templates": ("rag", "tool_use"),
        "tokenizer.chat_template": "DEFAULT",
    }


def test_further_template_files_have_the_names_of_their_files(folder: Path):
    (folder / "chat_template.jinja").write_text("main", encoding="utf-8")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag", encoding="utf-8")
    keys = read_vocab(folder, CONFIG)
    assert keys["tokenizer.chat_template"].value == "main"
    assert keys["tokenizer.chat_template.rag"].value == "rag"


@pytest.mark.parametrize("value", [3, {"default": "x"}, [{"name": "default"}]])
def test_a_template_that_is_none_is_named(value: object, folder: Path):
    edit(folder, "tokenizer_config.json", chat_template=value)
    with pytest.raises(VocabError, match=r"tokenizer_config\.json.*chat.template"):
        read_vocab(folder, CONFIG)
