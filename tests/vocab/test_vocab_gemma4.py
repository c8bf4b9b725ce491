"""Gemma 4's tokenizer model; the oracles are llama.cpp and the tokenizers package."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from places import VOCABULARIES
from tokenizers import Tokenizer
from vocab_files import MARKS, TEXTS, edit, edit_model, ends, tokenize, write_json, write_model

from dynquant.errors import VocabError
from dynquant.keys import Keys
from dynquant.vocab import VocabReport, read_vocab
from dynquant.vocab.loading import loading_warnings

CONFIG = {"model_type": "gemma4", "text_config": {"model_type": "gemma4_text"}}
TOOLS = (
    *("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>"),
    *("<|tool_response>", "<tool_response|>", '<|"|>'),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shutil.copytree(VOCABULARIES / "gemma4", tmp_path / "model")


def read(folder: Path, **config: Any) -> tuple[Keys, tuple[str, ...]]:
    report = VocabReport()
    return read_vocab(folder, CONFIG | config, report=report), report.warnings


def refusal(folder: Path) -> str:
    with pytest.raises(VocabError) as e:
        read(folder)
    return "\n".join(e.value.messages)


def mixed(seed: int, n: int) -> list[str]:
    """Return texts of line ends, spaces, words, signs and special tokens in any order."""
    rng = random.Random(seed)
    parts = (
        *("\n", "\n\n", "\r\n", " ", "   ", "\t", "\x01", "▁", "é", "日", "🙂", "<0x41>"),
        *("a", "the ", "of the ", "It was the", "<table>", "<|turn>", "<|image|>", *TOOLS),
    )
    return ["".join(rng.choices(parts, k=rng.randint(1, 25))) for _ in range(n)]


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_tokenizes_as_the_tokenizer(folder: Path):
    keys, warned = read(folder)
    texts = [*filter(None, TEXTS), MARKS, *mixed(7, 400), "x" + "\n" * 11 + "y" + " " * 40]
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = write_model(folder / "model.gguf", keys)
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]
    assert warned == ()


def test_merges_span_words_which_no_scores_express(folder: Path):
    with pytest.raises(VocabError, match="not from SentencePiece"):
        read_vocab(folder, {"model_type": "gemma3"})


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "gemma4"},
        {"model_type": "gemma4_unified"},
        {"model_type": "wrapper", "text_config": {"model_type": "gemma4_unified_text"}},
    ],
)
def test_the_model_type_decides(folder: Path, config: dict[str, Any]):
    assert read_vocab(folder, config)["tokenizer.ggml.model"].value == "gemma4"


def test_tokens_of_tool_calls_are_visible_without_a_warning(folder: Path):
    keys, _ = read(folder)
    texts, types = (keys[f"tokenizer.ggml.{n}"].value for n in ("tokens", "token_type"))
    found = dict(zip(texts, types, strict=True))  # type: ignore[arg-type]
    assert {found[t] for t in TOOLS} == {TokenType.USER_DEFINED}
    assert {found[t] for t in ("<bos>", "<|turn>", "<unk>")} == {TokenType.CONTROL}
    assert found["<0x41>"] == TokenType.BYTE
    assert found["<table>"] == TokenType.USER_DEFINED
    assert found["▁▁"] == TokenType.NORMAL
    assert loading_warnings(keys, None, keys) == []


@pytest.mark.oracle
def test_llama_cpp_stops_at_the_end_of_a_turn_and_at_a_tool_response(folder: Path):
    keys, _ = read(folder)
    texts: tuple[str, ...] = keys["tokenizer.ggml.tokens"].value  # type: ignore[assignment]
    model = write_model(folder / "model.gguf", keys)
    assert {texts[i] for i in ends(model)} == {"<eos>", "<turn|>", "<|tool_response>"}


def test_an_ordinary_end_of_other_models_is_no_end_here(folder: Path):
    edit_model(folder, vocab=vocab_of(folder) | {"</s>": 480})
    keys, _ = read(folder)
    assert loading_warnings(keys, None, keys) == []


def vocab_of(folder: Path) -> dict[str, int]:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocab: dict[str, int] = content["model"]["vocab"]
    return vocab


def merges_of(folder: Path) -> list[list[str]]:
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    merges: list[list[str]] = content["model"]["merges"]
    return merges


def test_the_first_token_is_always_added(folder: Path):
    edit(folder, "tokenizer_config.json", add_bos_token=False)
    keys, warned = read(folder)
    assert keys["tokenizer.ggml.add_bos_token"].value is True
    assert [w for w in warned if "add_bos_token is false, but llama.cpp always adds" in w]
    edit(folder, "tokenizer.json", post_processor=None)
    edit(folder, "tokenizer_config.json", add_bos_token=None)
    (warning,) = read(folder)[1]
    assert "the post-processor puts no token before a text, but llama.cpp '<bos>'" in warning


def test_without_a_first_token_llama_cpp_would_stop(folder: Path):
    edit(folder, "tokenizer.json", post_processor=None)
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "GemmaTokenizer"})
    assert "no file names the bos token" in refusal(folder)


@pytest.mark.oracle
def test_a_token_with_a_line_end_beside_letters_is_reported(folder: Path):
    edit_model(
        folder,
        vocab=vocab_of(folder) | {"a\n": 480},
        merges=[["a", "\n"], *merges_of(folder)],
    )
    keys, (warning,) = read(folder)
    assert r"tokens with a line end beside other characters ('a\n')" in warning
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = write_model(folder / "model.gguf", keys)
    assert 480 in tokenizer.encode("a\nb").ids
    assert 480 not in tokenize(model, ["a\nb"])[0]


@pytest.mark.oracle
def test_a_run_of_line_ends_that_the_merges_do_not_produce_is_reported(folder: Path):
    edit_model(folder, vocab=vocab_of(folder) | {"\n" * 5: 480})
    keys, (warning,) = read(folder)
    assert "tokens of line ends that the merges do not produce" in warning
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    model = write_model(folder / "model.gguf", keys)
    assert 480 not in tokenizer.encode("\n" * 5).ids
    assert 480 in tokenize(model, ["\n" * 5])[0]


def test_what_llama_cpp_does_not_have_is_refused_at_once(folder: Path):
    vocab = {t: i for t, i in vocab_of(folder).items() if t != "<0x80>"}
    edit_model(
        folder,
        vocab=vocab | {"q ": 480, "whole": 481, " ": 482},
        merges=[*merges_of(folder), ["q", " "]],
        ignore_merges=True,
    )
    found = refusal(folder)
    assert "no tokens for 1 of the 256 bytes" in found
    assert "merges with spaces in their parts ('q ')" in found
    assert "ignore_merges is true" in found


def test_tokens_that_must_not_be_generated_are_a_key(folder: Path):
    write_json(folder / "generation_config.json", {"suppress_tokens": [7, 9999, 8]})
    assert read(folder)[0]["tokenizer.ggml.suppress_tokens"].value == (7, 8)
    write_json(folder / "generation_config.json", {"suppress_tokens": None})
    assert "tokenizer.ggml.suppress_tokens" not in read(folder)[0]


def test_other_spaces_are_refused_unless_the_class_replaces_the_rules(folder: Path):
    edit(folder, "tokenizer.json", normalizer=None)
    assert "rules of transformers' GemmaTokenizer" in " ".join(read(folder)[1])
    edit(folder, "tokenizer_config.json", tokenizer_class="TokenizersBackend")
    assert "the pre-tokenizer Split" in refusal(folder)
    edit(folder, "tokenizer.json", pre_tokenizer=None)
    assert "the normalizer does not replace spaces" in refusal(folder)


def test_a_name_of_a_pre_tokenizer_is_refused(folder: Path):
    with pytest.raises(VocabError, match="Gemma 4 tokenizers have no pre-tokenizer"):
        read_vocab(folder, CONFIG, pre="gpt-2")
