from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from places import TINY_BOOKS
from tokenizers import Tokenizer
from vocab_files import (
    MARKS,
    TEXTS,
    edit,
    edit_model,
    tokenize,
    train,
    words,
    write_json,
    write_model,
)

from dynquant.errors import VocabError
from dynquant.keys import Keys
from dynquant.vocab import read_vocab
from dynquant.vocab.pretypes import GPT_2

CONFIG = {"vocab_size": 700}


def values(keys: Keys, name: str) -> list[Any]:
    found = keys[f"tokenizer.ggml.{name}"].value
    assert isinstance(found, tuple)
    return list(found)


def added(token_id: int, text: str, *, special: bool = False) -> dict[str, Any]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token_id, "content": text, "special": special, **flags}


def read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_tokens_are_at_their_ids_and_merges_in_order(tmp_path: Path):
    tokenizer = train(tmp_path, (GPT_2,))
    keys = read_vocab(tmp_path, CONFIG)
    assert values(keys, "tokens") == [tokenizer.id_to_token(i) for i in range(700)]
    merges = read_json(tmp_path / "tokenizer.json")["model"]["merges"]
    assert values(keys, "merges") == [f"{a} {b}" for a, b in merges]


def test_keys_are_in_the_order_of_llama_cpps_converter(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer_config.json", chat_template="{{ x }}")
    assert [name.removeprefix("tokenizer.") for name in read_vocab(tmp_path, CONFIG)] == [
        "ggml.model",
        "ggml.pre",
        "ggml.tokens",
        "ggml.token_type",
        "ggml.merges",
        "ggml.bos_token_id",
        "ggml.eos_token_id",
        "ggml.add_bos_token",
        "chat_template",
    ]


def test_added_tokens_are_control_if_special_or_known_control_texts_else_user_defined(
    tmp_path: Path,
):
    train(tmp_path, (GPT_2,))
    texts = {"<tool>": TokenType.USER_DEFINED, "<|x|>": TokenType.CONTROL}
    texts |= {"<pad>": TokenType.CONTROL, "<｜hole｜>": TokenType.CONTROL}
    tokens = [added(700 + i, text) for i, text in enumerate(texts)]
    tokens.append(added(704, "special", special=True))
    edit(tmp_path, "tokenizer.json", added_tokens=tokens)
    keys = read_vocab(tmp_path, {"vocab_size": 705})
    assert values(keys, "tokens")[700:] == [*texts, "special"]
    assert values(keys, "token_type")[700:] == [*texts.values(), TokenType.CONTROL]


@pytest.mark.oracle
def test_llama_cpp_finds_added_tokens_in_a_text_as_the_tokenizer_does(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    tokens = [added(700, "<tool>"), added(701, "Ġodd é"), added(702, "<|x|>", special=True)]
    edit(tmp_path, "tokenizer.json", added_tokens=tokens)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    keys = read_vocab(tmp_path, {"vocab_size": 703})
    model = write_model(tmp_path / "model.gguf", keys)
    text = "a<tool>b Ġodd é<|x|> c"
    assert {700, 701, 702} < set(tokenizer.encode(text).ids)
    assert tokenize(model, [text], add_special=False) == [tokenizer.encode(text).ids]


@pytest.mark.oracle
@pytest.mark.parametrize("flag", ["single_word", "lstrip", "rstrip", "normalized"])
@pytest.mark.parametrize("special", [False, True])
def test_options_of_added_tokens_that_a_gguf_cannot_hold_do_not_change_their_type(
    flag: str, special: bool, tmp_path: Path
):
    train(tmp_path, (GPT_2,))
    token = added(700, "<tool>", special=special) | {flag: True}
    edit(tmp_path, "tokenizer.json", added_tokens=[token])
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    keys = read_vocab(tmp_path, {"vocab_size": 701})
    expected = TokenType.CONTROL if special else TokenType.USER_DEFINED
    assert values(keys, "token_type")[700] == expected
    model = write_model(tmp_path / "model.gguf", keys)
    text = "a\u0300?<tool>!b"  # next to neither space nor letter, so that the flags have no effect
    assert 700 in tokenizer.encode(text).ids
    assert tokenize(model, [text], add_special=False) == [tokenizer.encode(text).ids]


def test_ids_without_a_token_are_padded_up_to_the_embedding(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", added_tokens=[added(702, "<a>")])
    keys = read_vocab(tmp_path, {"vocab_size": 705})
    padded = ["[PAD700]", "[PAD701]", "<a>", "[PAD703]", "[PAD704]"]
    assert values(keys, "tokens")[700:] == padded
    assert values(keys, "token_type")[700:] == [5, 5, 4, 5, 5]


def test_vocab_size_may_be_in_text_config(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    keys = read_vocab(tmp_path, {"text_config": {"vocab_size": 710, "eos_token_id": 3}})
    assert len(values(keys, "tokens")) == 710


def test_an_added_token_beyond_the_embedding_is_left_out(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", added_tokens=[added(700, "<pad>", special=True)])
    assert "<pad>" not in values(read_vocab(tmp_path, CONFIG), "tokens")


def test_merges_as_strings_and_as_pairs_are_equivalent(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    pairs = read_vocab(tmp_path, CONFIG)
    merges = read_json(tmp_path / "tokenizer.json")["model"]["merges"]
    edit_model(tmp_path, merges=[" ".join(pair) for pair in merges])
    assert read_vocab(tmp_path, CONFIG) == pairs


def test_a_space_inside_a_part_of_a_merge_becomes_its_byte_letter(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    model = read_json(tmp_path / "tokenizer.json")["model"]
    vocab = model["vocab"] | {" ": 700, "a ": 701, "a b": 702}
    edit_model(tmp_path, vocab=vocab, merges=[*model["merges"], ["a", " "], ["a ", "b"]])
    assert values(read_vocab(tmp_path, {}), "merges")[-2:] == ["a Ġ", "aĠ b"]


@pytest.mark.parametrize("header", ["#version: 0.2\n", ""])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_vocab_json_and_merges_txt_are_equivalent_to_tokenizer_json(
    header: str, end: str, tmp_path: Path
):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", added_tokens=[added(700, "<a>"), added(701, "<|b|>")])
    expected = read_vocab(tmp_path, {"vocab_size": 702})
    model = read_json(tmp_path / "tokenizer.json")["model"]
    (tmp_path / "tokenizer.json").unlink()
    write_json(tmp_path / "vocab.json", model["vocab"])
    lines = "".join(f"{a} {b}{end}" for a, b in model["merges"])
    (tmp_path / "merges.txt").write_bytes((header + lines).encode())
    decoder = {"700": {"content": "<a>"}, "701": {"content": "<|b|>", "special": True}}
    edit(
        tmp_path,
        "tokenizer_config.json",
        added_tokens_decoder=decoder,
        tokenizer_class="GPT2Tokenizer",
    )
    assert read_vocab(tmp_path, {"vocab_size": 702}) == expected


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_tokenizes_with_tiny_books_as_its_own_tokenizer(tmp_path: Path):
    tokenizer = Tokenizer.from_file(str(TINY_BOOKS / "tokenizer.json"))
    keys = read_vocab(TINY_BOOKS, read_json(TINY_BOOKS / "config.json"))
    assert keys["tokenizer.ggml.pre"].value == "qwen2"
    model = write_model(tmp_path / "model.gguf", keys)
    texts = [*TEXTS, MARKS, *words(2, 5), "<|im_start|>user\nCall me Ishmael.<|im_end|>\n"]
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]


def broken_vocab(folder: Path, text: str, token_id: object) -> None:
    vocab = read_json(folder / "tokenizer.json")["model"]["vocab"]
    edit_model(folder, vocab=vocab | {text: token_id})


def test_two_texts_with_one_id_are_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    broken_vocab(tmp_path, "twin", 300)
    with pytest.raises(VocabError, match=r"'twin' and '.+' both have id 300"):
        read_vocab(tmp_path, CONFIG)


def test_one_text_with_two_ids_is_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    tokens = [added(0, "<|end|>"), added(5, "<|end|>")]
    edit(tmp_path, "tokenizer.json", added_tokens=tokens)
    with pytest.raises(VocabError, match=r"'<\|end\|>' has id 5, but 0 in another file or entry"):
        read_vocab(tmp_path, CONFIG)


def test_all_added_tokens_that_contradict_the_vocabulary_are_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", added_tokens=[added(300, "<a>"), added(700, "<|end|>")])
    with pytest.raises(VocabError) as e:
        read_vocab(tmp_path, {"vocab_size": 701})
    assert len(e.value.messages) == 2
    assert "id 300 is" in e.value.messages[0]
    assert "'<|end|>' has id 0 in the vocabulary and 700 among" in e.value.messages[1]


def test_files_that_differ_about_an_added_token_are_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    decoder = {"0": {"content": "<|eos|>", "special": True}}
    edit(tmp_path, "tokenizer_config.json", added_tokens_decoder=decoder)
    with pytest.raises(VocabError, match=r"tokenizer_config.json: id 0 is '<\|eos\|>', but"):
        read_vocab(tmp_path, CONFIG)


@pytest.mark.parametrize("token_id", [-1, 1.5, "7", True, None, 2**40])
def test_a_value_that_is_not_an_id_is_named(token_id: object, tmp_path: Path):
    train(tmp_path, (GPT_2,))
    broken_vocab(tmp_path, "odd", token_id)
    with pytest.raises(VocabError, match=r"'odd': .* is not a token id"):
        read_vocab(tmp_path, CONFIG)


@pytest.mark.parametrize("config", [CONFIG, {}])
def test_an_id_beyond_the_embedding_is_named(config: dict[str, Any], tmp_path: Path):
    train(tmp_path, (GPT_2,))
    broken_vocab(tmp_path, "far", 2**31 - 1)
    with pytest.raises(
        VocabError, match=r"701 tokens, .*'far' has id 2147483647, but .*vocab_size"
    ):
        read_vocab(tmp_path, config)


def test_a_repeated_key_in_a_json_object_is_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    text = (tmp_path / "tokenizer.json").read_text(encoding="utf-8")
    twice = text.replace('"vocab": {', '"vocab": {"twin": 1, "twin": 2, ')
    (tmp_path / "tokenizer.json").write_text(twice, encoding="utf-8")
    with pytest.raises(VocabError, match="'twin' twice in one object"):
        read_vocab(tmp_path, CONFIG)


@pytest.mark.slow
def test_two_ids_with_one_text_are_rejected_since_llama_cpp_would_abort(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    broken_vocab(tmp_path, "[PAD701]", 700)
    with pytest.raises(VocabError, match=r"two token ids have the same text: '\[PAD701\]'"):
        read_vocab(tmp_path, {"vocab_size": 702})


def test_merges_that_name_unknown_tokens_are_named(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    model = read_json(tmp_path / "tokenizer.json")["model"]
    edit_model(tmp_path, merges=[*model["merges"], ["a", "nowhere"]])
    with pytest.raises(VocabError, match=r"1 of \d+ merges name .*'anowhere', 'nowhere'"):
        read_vocab(tmp_path, CONFIG)


@pytest.mark.parametrize("merge", ["ab", "a b c", ["a"], ["a", "b", "c"], 3, {"a": "b"}])
def test_a_merge_that_has_not_two_parts_is_named(merge: object, tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit_model(tmp_path, merges=[merge])
    with pytest.raises(VocabError, match="not merges of two parts"):
        read_vocab(tmp_path, CONFIG)


def test_a_malformed_line_of_merges_txt_is_named_by_its_number(tmp_path: Path):
    write_json(tmp_path / "vocab.json", {"a": 0, "b": 1, "ab": 2})
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\nab\n", encoding="utf-8")
    with pytest.raises(VocabError, match=r"merges.txt:3: 'ab' is not a merge"):
        read_vocab(tmp_path, {"model_type": "gpt2"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["continuing_subword_prefix", "end_of_word_suffix"])
def test_a_model_with_subword_markers_is_rejected(name: str, tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit_model(tmp_path, **{name: "##"})
    with pytest.raises(VocabError, match=f"{name} is '##'"):
        read_vocab(tmp_path, CONFIG)


@pytest.mark.parametrize("text", ["{", "[]", "\xff", "3", '{"model": [], "added_tokens": 3}'])
def test_a_damaged_tokenizer_json_is_named(text: str, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(VocabError, match=r"tokenizer\.json"):
        read_vocab(tmp_path, CONFIG)


@pytest.mark.parametrize("kind", ["WordLevel", "BPE"])
def test_an_unsupported_kind_of_tokenizer_json_is_named(kind: str, tmp_path: Path):
    write_json(tmp_path / "tokenizer.json", {"model": {"type": kind, "vocab": {}, "merges": []}})
    with pytest.raises(VocabError, match=rf"a tokenizer of kind .*{kind}"):
        read_vocab(tmp_path, CONFIG)


def test_a_missing_tokenizer_is_reported_with_the_possible_files(tmp_path: Path):
    with pytest.raises(VocabError, match=r"no tokenizer; put tokenizer.json, tokenizer.model"):
        read_vocab(tmp_path, CONFIG)
