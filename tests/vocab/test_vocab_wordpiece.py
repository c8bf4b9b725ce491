from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from places import VOCABULARIES
from vocab_files import TEXTS, edit, edit_model, tokenize, words, write_json, write_model

from dynquant.errors import VocabError
from dynquant.vocab import read_vocab
from dynquant.vocab.tokens import SPACE

BERT = VOCABULARIES / "bert"
NAMES = {"cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    shutil.copytree(BERT, tmp_path, dirs_exist_ok=True)
    return tmp_path


def values(folder: Path, name: str, config: dict[str, Any] | None = None) -> list[Any]:
    found = read_vocab(folder, config or {})[f"tokenizer.ggml.{name}"].value
    assert isinstance(found, tuple)
    return list(found)


def test_pieces_that_begin_a_word_have_a_phantom_space(folder: Path):
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    texts = sorted(model["vocab"], key=model["vocab"].__getitem__)
    tokens = values(folder, "tokens")
    assert tokens[:5] == texts[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokens[5:] == [
        text.removeprefix("##") if text.startswith("##") else SPACE + text for text in texts[5:]
    ]
    assert set(values(folder, "token_type")[:5]) == {TokenType.CONTROL}
    assert set(values(folder, "token_type")[5:]) == {TokenType.NORMAL}


def test_keys_are_those_of_llama_cpps_converter(folder: Path):
    keys = read_vocab(folder, {"type_vocab_size": 2})
    plain = {k: v.value for k, v in keys.items() if not isinstance(v.value, tuple)}
    assert plain == {
        "tokenizer.ggml.token_type_count": 2,
        "tokenizer.ggml.model": "bert",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 3,
        "tokenizer.ggml.unknown_token_id": 1,
        "tokenizer.ggml.seperator_token_id": 3,
        "tokenizer.ggml.padding_token_id": 0,
        "tokenizer.ggml.mask_token_id": 4,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": True,
        "tokenizer.ggml.add_sep_token": False,
        "tokenizer.ggml.normalizer.lowercase": True,
        "tokenizer.ggml.normalizer.strip_accents": True,
    }


@pytest.mark.oracle
@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("strip", [False, True, None])
def test_llama_cpp_normalizes_as_the_tokenizer(lowercase: bool, strip: bool | None, folder: Path):
    from tokenizers import Tokenizer

    normalizer = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": strip,
        "lowercase": lowercase,
    }
    edit(folder, "tokenizer.json", normalizer=normalizer)
    edit(folder, "tokenizer_config.json", do_lower_case=lowercase, strip_accents=strip)
    model = write_model(folder / "model.gguf", read_vocab(folder, {}))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [*TEXTS, *words(4, 5)]
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_vocab_txt_without_other_files_has_berts_special_tokens(end: str, folder: Path):
    expected = values(folder, "tokens"), values(folder, "token_type")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    text = (folder / "vocab.txt").read_text(encoding="utf-8")
    (folder / "vocab.txt").write_bytes(text.replace("\n", end).encode())
    assert (values(folder, "tokens"), values(folder, "token_type")) == expected
    assert read_vocab(folder, {})["tokenizer.ggml.bos_token_id"].value == 2


def test_ids_without_a_piece_are_padded(folder: Path):
    n = len(values(folder, "tokens"))
    assert values(folder, "tokens", {"vocab_size": n + 2})[n:] == [f"[PAD{n}]", f"[PAD{n + 1}]"]
    assert values(folder, "token_type", {"vocab_size": n + 2})[n:] == [5, 5]


def test_a_vocabulary_larger_than_the_embedding_is_rejected_with_both_sizes(folder: Path):
    n = len(values(folder, "tokens"))
    with pytest.raises(VocabError, match=rf"has {n} tokens, .* vocab_size is {n - 1}"):
        read_vocab(folder, {"vocab_size": n - 1})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"pre_tokenizer": {"type": "Whitespace"}}, "does not have the pre-tokenizer Whitespace;"),
        ({"normalizer": {"type": "NFKC"}}, "does not have the normalizer NFKC;"),
        (
            {"normalizer": {"type": "BertNormalizer", "handle_chinese_chars": False}},
            "does not have the normalizer BertNormalizer {.handle_chinese_chars.: false}",
        ),
    ],
)
def test_unsupported_rules_are_named(change: dict[str, Any], why: str, folder: Path):
    edit(folder, "tokenizer.json", **change)
    with pytest.raises(VocabError, match=why):
        read_vocab(folder, {})


def test_an_unsupported_marker_inside_words_is_named(folder: Path):
    edit_model(folder, continuing_subword_prefix="@@")
    with pytest.raises(VocabError, match="continuing_subword_prefix is '@@', not '##'"):
        read_vocab(folder, {})


def test_missing_tokens_that_llama_cpp_needs_are_named_together(tmp_path: Path):
    (tmp_path / "vocab.txt").write_text("a\nb\n[CLS]\n", encoding="utf-8")
    with pytest.raises(VocabError) as e:
        read_vocab(tmp_path, {})
    assert [m.split(": the ")[1].split(",")[0] for m in e.value.messages] == [
        "sep token ([SEP]) is missing",
        "unk token ([UNK]) is missing",
    ]
    write_json(tmp_path / "tokenizer_config.json", {"sep_token": "[CLS]", "unk_token": "[CLS]"})
    assert read_vocab(tmp_path, {})["tokenizer.ggml.unknown_token_id"].value == 2


@pytest.mark.parametrize("text", ["", "\n"])
def test_an_empty_vocab_txt_is_named(text: str, tmp_path: Path):
    (tmp_path / "vocab.txt").write_text(text, encoding="utf-8")
    with pytest.raises(VocabError, match="the vocabulary is empty"):
        read_vocab(tmp_path, {})


def test_a_pre_tokenizer_for_wordpiece_is_rejected(folder: Path):
    with pytest.raises(VocabError, match="WordPiece tokenizers have no pre-tokenizer"):
        read_vocab(folder, {}, pre="llama-bpe")
