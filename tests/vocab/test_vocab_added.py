from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from places import VOCABULARIES
from tokenizers import Tokenizer
from vocab_files import edit, tokenize, train, write_model, write_spm_json

from dynquant.vocab import VocabReport, read_vocab
from dynquant.vocab.loading import Trims, loading_warnings
from dynquant.vocab.pretypes import GPT_2


def added(i: int, text: str, **flags: bool) -> dict[str, Any]:
    names = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": i, "content": text} | dict.fromkeys(names, False) | flags


def add(folder: Path, *tokens: dict[str, Any]) -> None:
    """Add tokens to those of a tokenizer.json."""
    present = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["added_tokens"]
    edit(folder, "tokenizer.json", added_tokens=[*present, *tokens])


def report(folder: Path, n: int = 703) -> VocabReport:
    found = VocabReport()
    read_vocab(folder, {"vocab_size": n}, report=found)
    return found


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip"])
def test_options_that_change_tokens_are_reported_once_for_all_tokens(flag: str, tmp_path: Path):
    train(tmp_path, (GPT_2,))
    tokens = [added(700, "<a>", **{flag: True}), added(701, "<b>", **{flag: True}, special=True)]
    add(tmp_path, *tokens, added(702, "<c>"))
    found = report(tmp_path)
    if flag == "single_word":
        (warning,) = found.warnings
        assert "added tokens with single_word ('<a>', '<b>')" in warning
    else:
        texts = frozenset(["<a>", "<b>"])
        assert found.warnings == ()
        assert found.trims == (Trims(left=texts) if flag == "lstrip" else Trims(right=texts))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = write_model(tmp_path / "m.gguf", read_vocab(tmp_path, {"vocab_size": 703}))
    for text, differs in (("x <a> x <b> x", flag != "single_word"), ("x<c>x", False)):
        got = tokenize(model, [text], add_special=False)
        assert (got != [tokenizer.encode(text).ids]) is differs


@pytest.mark.slow
def test_tokens_beyond_the_embedding_are_counted_and_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    tokens = [added(i, f"<n{i}>", special=True) for i in range(699, 709)]
    add(tmp_path, *tokens[1:])
    (warning,) = report(tmp_path, 702).warnings
    assert warning == (
        f"{tmp_path}: 7 added tokens have ids beyond the 702 rows of the embedding and are left"
        " out: '<n702>', '<n703>', '<n704>', '<n705>', '<n706>' and 2 more; llama.cpp splits their"
        " text into other tokens; to keep them, extend the embedding (resize_token_embeddings of"
        " transformers)"
    )
    assert report(tmp_path, 709).warnings == ()


@pytest.mark.slow
@pytest.mark.oracle
def test_a_normalized_token_that_the_normalizer_changes_is_reported(tmp_path: Path):
    write_spm_json(tmp_path)
    i = len(Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab())
    add(tmp_path, added(i, "<x>", normalized=True))
    (warning,) = report(tmp_path, i + 1).warnings
    assert "added tokens with normalized ('<x>')" in warning
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = write_model(tmp_path / "m.gguf", read_vocab(tmp_path, {"vocab_size": i + 1}))
    assert tokenize(model, ["a<x>b"]) != [tokenizer.encode("a<x>b").ids]


def test_a_normalized_token_without_a_normalizer_is_not_reported(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    add(tmp_path, added(700, "<x>", normalized=True))
    assert report(tmp_path, 701).warnings == ()


@pytest.mark.parametrize(
    "config",
    [
        {"pad_token": "ba"},
        {"additional_special_tokens": ["ba"]},
        {"extra_special_tokens": ["ba"]},
        {"extra_special_tokens": {"image_token": {"content": "ba"}}},
    ],
)
def test_special_tokens_that_are_not_added_are_reported(config: dict[str, Any], tmp_path: Path):
    train(tmp_path, (GPT_2,))
    assert "ba" in Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()
    edit(tmp_path, "tokenizer_config.json", **config)
    (warning,) = report(tmp_path).warnings
    assert "names 'ba' as special tokens, but no file lists them" in warning


def template(*texts: str | None) -> dict[str, Any]:
    """Return a template of tokens; None is the text."""
    single = [
        {"Sequence": {"id": "A", "type_id": 0}}
        if text is None
        else {"SpecialToken": {"id": text, "type_id": 0}}
        for text in texts
    ]
    ids = {"<|end|>": 0, "<|start|>": 1}
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {t: {"id": t, "ids": [i], "tokens": [t]} for t, i in ids.items()},
    }


START, END = "<|start|>", "<|end|>"


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize(
    ("processor", "warned"),
    [
        (template(START, None), []),
        (template(START, None, END), []),
        (template(START, END, None), ["'<|start|>', '<|end|>' before a text, but llama.cpp '<|s"]),
        (template(END, None), ["'<|end|>' before a text, but llama.cpp no token"]),
        (template(START, None, END, END), ["'<|end|>', '<|end|>' after a text, but llama.cpp '<"]),
        ({"type": "BertProcessing", "sep": [END, 0], "cls": [START, 1]}, []),
        (
            {"type": "BertProcessing", "sep": [START, 1], "cls": [END, 0]},
            ["'<|end|>' before a text", "'<|start|>' after a text"],
        ),
        (None, []),
    ],
)
def test_tokens_around_a_text_that_a_gguf_cannot_hold_are_reported(
    processor: dict[str, Any] | None, warned: list[str], tmp_path: Path
):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", post_processor=processor)
    found = report(tmp_path).warnings
    assert len(found) == len(warned)
    assert all(part in warning for part, warning in zip(warned, found, strict=True))
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = write_model(tmp_path / "m.gguf", read_vocab(tmp_path, {}))
    assert (tokenize(model, ["a"]) != [tokenizer.encode("a").ids]) is bool(warned)


def test_wordpiece_without_a_template_is_reported(tmp_path: Path):
    shutil.copy(VOCABULARIES / "bert" / "tokenizer.json", tmp_path)
    assert report(tmp_path).warnings == ()
    edit(tmp_path, "tokenizer.json", post_processor=None)
    before, after = report(tmp_path).warnings
    assert before.endswith("puts no token before a text, but llama.cpp '[CLS]'")
    assert after.endswith("puts no token after a text, but llama.cpp '[SEP]'")


def test_an_end_named_by_a_file_is_not_reported_as_an_ordinary_token(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", added_tokens=[])
    keys = read_vocab(tmp_path, {})
    assert loading_warnings(keys, Trims(), {}) == [
        "llama.cpp shows '<|start|>' in answers and finds them in every text, because gpt-oss has"
        " tokens of this name"
    ]


def test_words_that_are_special_are_reported(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    texts = ("apportionment", " Übertrag", "<x>", "[INST]", "</s>", "unk")
    add(tmp_path, *(added(700 + i, text, special=True) for i, text in enumerate(texts)))
    add(tmp_path, added(706, "spouse"))
    edit(tmp_path, "tokenizer_config.json", unk_token="unk")
    (warning,) = report(tmp_path, 707).warnings
    assert "added tokens with special ('apportionment', ' Übertrag') look like text" in warning
