from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from vocab_files import edit, ends, tokenize, train, write_json, write_model

from dynquant.errors import VocabError
from dynquant.vocab import read_vocab
from dynquant.vocab.loading import KNOWN_ENDS
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


def test_config_json_applies_if_tokenizer_config_names_no_token(folder: Path):
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


@pytest.mark.slow
@pytest.mark.oracle
def test_tokens_around_a_text_in_the_template_are_added(folder: Path):
    template(folder, START, SEQUENCE, END)
    assert special(folder) == {"bos": 1, "eos": 0, "add_bos_token": True, "add_eos_token": True}
    model = write_model(folder / "model.gguf", read_vocab(folder, CONFIG))
    (tokens,) = tokenize(model, ["a"])
    assert tokens[::2] == [1, 0]


def test_tokenizer_config_has_precedence_over_the_template(folder: Path):
    template(folder, START, SEQUENCE)
    edit(folder, "tokenizer_config.json", add_bos_token=False, add_eos_token=True)
    assert special(folder) == {"bos": 1, "eos": 0, "add_bos_token": False, "add_eos_token": True}


def test_a_different_last_token_is_eos_and_the_configured_one_eot(folder: Path):
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|start|>"})
    template(folder, SEQUENCE, END)
    assert special(folder) == {"eos": 0, "eot": 1, "add_bos_token": False, "add_eos_token": True}


def test_the_token_before_a_text_is_bos_if_none_is_named(folder: Path):
    write_json(folder / "tokenizer_config.json", {"eos_token": "<|end|>"})
    template(folder, START, SEQUENCE)
    assert special(folder) == {"bos": 1, "eos": 0, "add_bos_token": True}


def more_ends(folder: Path, *texts: str) -> list[int]:
    """Add special tokens after the 700 of the vocabulary; return their ids."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": 700 + i, "content": t, "special": True, **flags} for i, t in enumerate(texts)]
    edit(folder, "tokenizer.json", added_tokens=added)
    return [700 + i for i in range(len(texts))]


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("where", ["generation_config.json", "config.json"])
def test_llama_cpp_stops_at_all_tokens_at_which_transformers_stops(where: str, folder: Path):
    stops = [0, *more_ends(folder, "<|user|>", "<|observation|>", "<|im_end|>")]
    config: dict[str, Any] = {"vocab_size": 703}
    if where == "config.json":
        config["eos_token_id"] = stops
    else:
        # transformers uses the model's configuration only if the other file is missing.
        config["eos_token_id"] = [0, 5, 6, 7]
        write_json(folder / where, {"eos_token_id": stops})
    found = special(folder, config)
    assert (found["eos"], found["eot"], found["eom"]) == (0, 700, 701)
    model = write_model(folder / "model.gguf", read_vocab(folder, config))
    assert ends(model) == stops


@pytest.mark.slow
@pytest.mark.oracle
def test_an_end_that_llama_cpp_knows_by_its_text_needs_no_key(folder: Path):
    (known,) = more_ends(folder, "<|eot_id|>")
    write_json(folder / "generation_config.json", {"eos_token_id": [0, known, 9999]})
    assert special(folder, {"vocab_size": 701}) == {"bos": 1, "eos": 0, "add_bos_token": False}
    keys = read_vocab(folder, {"vocab_size": 701})
    assert ends(write_model(folder / "model.gguf", keys)) == [0, known]


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("text", sorted(KNOWN_ENDS - {"<|end|>"}))  # the vocabulary's own
def test_llama_cpp_knows_the_ends_that_need_no_key(text: str, folder: Path):
    (known,) = more_ends(folder, text)
    model = write_model(folder / "model.gguf", read_vocab(folder, {"vocab_size": 701}))
    assert known in ends(model)


def test_more_ends_than_a_gguf_can_name_are_listed(folder: Path):
    stops = more_ends(folder, "<|a|>", "<|b|>", "<|c|>", "<|d|>")
    write_json(folder / "generation_config.json", {"eos_token_id": [0, *stops]})
    with pytest.raises(
        VocabError, match=r"generation_config\.json: .*'<\|c\|>', '<\|d\|>' would be left out"
    ):
        special(folder, {"vocab_size": 704})


@pytest.mark.slow
def test_the_classification_token_and_the_separator_stand_in_for_bos_and_eos(folder: Path):
    write_json(folder / "tokenizer_config.json", {"cls_token": "<|start|>", "sep_token": "<|end|>"})
    assert special(folder) == {"bos": 1, "eos": 0, "seperator": 0, "add_bos_token": False}


@pytest.mark.oracle
@pytest.mark.parametrize(("kind", "sep"), [("BertProcessing", False), ("RobertaProcessing", True)])
def test_processors_of_bert_and_roberta_add_their_models_tokens(kind: str, sep: bool, folder: Path):
    ends = {"sep": ["<|end|>", 0], "cls": ["<|start|>", 1]}
    edit(folder, "tokenizer.json", post_processor={"type": kind, **ends})
    edit(folder, "tokenizer_config.json", sep_token="<|end|>")
    found = special(folder)
    assert (found["add_bos_token"], found["add_eos_token"], found["add_sep_token"]) == (
        *(True, True),
        sep,
    )


def test_a_second_end_between_two_texts_is_the_separator(folder: Path):
    template(folder, START, SEQUENCE, END)
    second = {"Sequence": {"id": "B", "type_id": 1}}
    post = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["post_processor"]
    for between, sep in (([END, END], True), ([END], False)):
        pair = [START, SEQUENCE, *between, second, END]
        edit(folder, "tokenizer.json", post_processor=post | {"pair": pair})
        assert special(folder)["add_sep_token"] is sep


@pytest.mark.slow
@pytest.mark.oracle
def test_a_bos_that_does_not_exist_is_not_added(folder: Path):
    write_json(folder / "tokenizer_config.json", {"add_bos_token": True})
    assert special(folder) == {"add_bos_token": False}
    keys = read_vocab(folder, CONFIG, pre="llama-bpe")
    model = write_model(folder / "model.gguf", keys)
    (tokens,) = tokenize(model, ["a"])
    assert len(tokens) == 1


@pytest.mark.slow
def test_a_template_is_read_from_a_separate_file_or_a_configuration(folder: Path):
    def found() -> object:
        return read_vocab(folder, CONFIG)["tokenizer.chat_template"].value

    write_json(folder / "chat_template.json", {"chat_template": "json"})
    assert found() == "json"
    edit(folder, "tokenizer_config.json", chat_template="configuration")
    assert found() == "configuration"
    (folder / "chat_template.jinja").write_text("jinja é", encoding="utf-8")
    assert found() == "jinja é"


def test_several_templates_keep_their_names(folder: Path):
    named = [{"name": n, "template": n.upper()} for n in ("default", "tool use", "rag")]
    edit(folder, "tokenizer_config.json", chat_template=named)
    keys = read_vocab(folder, CONFIG)
    assert {k: v.value for k, v in keys.items() if k.startswith("tokenizer.chat")} == {
        "tokenizer.chat_template.rag": "RAG",
        "tokenizer.chat_template.tool_use": "TOOL USE",
        "tokenizer.chat_templates": ("rag", "tool_use"),
        "tokenizer.chat_template": "DEFAULT",
    }


@pytest.mark.parametrize("main", ["chat_template.jinja", "tokenizer_config.json"])
def test_further_templates_are_named_after_their_files(main: str, folder: Path):
    if main.endswith("jinja"):
        (folder / main).write_text("main", encoding="utf-8")
    else:
        edit(folder, main, chat_template="main")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("rag", encoding="utf-8")
    keys = read_vocab(folder, CONFIG)
    assert keys["tokenizer.chat_template"].value == "main"
    assert keys["tokenizer.chat_template.rag"].value == "rag"


@pytest.mark.parametrize("value", [3, {"default": "x"}, [{"name": "default"}]])
def test_an_invalid_template_is_named(value: object, folder: Path):
    edit(folder, "tokenizer_config.json", chat_template=value)
    with pytest.raises(VocabError, match=r"tokenizer_config\.json.*chat.template"):
        read_vocab(folder, CONFIG)
