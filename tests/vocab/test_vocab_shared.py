"""The vocabularies that llama.cpp ships, against the tokenizers that they were made from."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from places import shared
from tokenizers import Tokenizer, models
from vocab_files import pre_tokenizer, tokenize, write_json, write_model

from dynquant.checkpoint.gguf import read_gguf
from dynquant.keys import Keys
from dynquant.vocab import read_vocab
from dynquant.vocab.pretypes import PRE_TYPES

pytestmark = [pytest.mark.shared, pytest.mark.slow]

PAIRS = {
    "gpt-2": ("gpt-2", {"vocab_size": 50257, "bos_token_id": 50256, "eos_token_id": 50256}),
    "qwen2": ("qwen2.5-0.5b-instruct", {"vocab_size": 151936, "bos_token_id": 151643}),
    "llama-spm": ("llama-2-13b-ft", {"vocab_size": 32000}),
    "phi-3": ("phi-3-mini", {"vocab_size": 32064}),
}


@cache
def theirs(name: str) -> Keys:
    return read_gguf(shared(f"vocab-gguf/ggml-vocab-{name}.gguf")).keys


@cache
def ours(name: str) -> Keys:
    folder, config = PAIRS[name]
    return read_vocab(shared(f"tokenizers/{folder}"), config)


def values(keys: Keys, name: str) -> tuple[Any, ...]:
    found = keys[f"tokenizer.ggml.{name}"].value
    assert isinstance(found, tuple)
    return found


def differences(name: str, key: str) -> dict[int, tuple[Any, Any]]:
    """Return the values that differ, ours and theirs, by token id."""
    pairs = zip(values(ours(name), key), values(theirs(name), key), strict=True)
    return {i: (a, b) for i, (a, b) in enumerate(pairs) if a != b}


@pytest.mark.parametrize("name", PAIRS)
def test_model_pre_and_merges_agree_with_llama_cpps(name: str):
    for key in ("model", "pre", "merges"):
        full = f"tokenizer.ggml.{key}"
        assert (full in ours(name)) == (full in theirs(name))
        if full in theirs(name):
            assert ours(name)[full] == theirs(name)[full]


@pytest.mark.parametrize("name", ["gpt-2", "llama-spm", "phi-3"])
def test_tokens_agree_with_llama_cpps(name: str):
    assert differences(name, "tokens") == {}


def test_tokens_of_qwen_agree_except_those_added_in_release_2_5():
    # llama.cpp's vocabulary is that of the first Qwen2, which had padding at these ids.
    new = differences("qwen2", "tokens")
    assert list(new) == [*range(151646, 151665)]
    assert all(their == f"[PAD{i}]" for i, (_, their) in new.items())


def test_token_types_agree_with_llama_cpps_except_those_of_older_converters():
    control, user, unused = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED
    assert differences("gpt-2", "token_type") == {}
    # This fine-tune declares <unk> an added token, which makes it CONTROL.
    assert differences("llama-spm", "token_type") == {0: (control, TokenType.UNKNOWN)}
    # Padding was USER_DEFINED or UNKNOWN in older files; it is UNUSED since.
    phi = differences("phi-3", "token_type")
    assert phi == dict.fromkeys(range(32011, 32064), (unused, TokenType.UNKNOWN))
    qwen = differences("qwen2", "token_type")
    assert set(qwen.values()) == {(control, user), (unused, user)}
    assert min(qwen) == 151646


@pytest.mark.parametrize(
    ("name", "special"),
    [
        ("gpt-2", ("bos", "eos")),
        ("qwen2", ("bos", "padding")),  # the chat model ends with another token than the base
        ("llama-spm", ("bos", "eos", "unknown")),
        ("phi-3", ("bos", "eos", "unknown", "padding")),
    ],
)
def test_special_ids_agree_with_llama_cpps(name: str, special: tuple[str, ...]):
    for kind in special:
        key = f"tokenizer.ggml.{kind}_token_id"
        assert ours(name)[key] == theirs(name)[key]


def test_scores_of_a_tokenizer_model_agree_with_llama_cpps():
    # ids 0, 1 and 2 are added tokens in this fine-tune, which no merge produces.
    assert set(differences("llama-spm", "scores")) == {0, 1, 2}


def test_scores_from_merges_have_the_order_of_the_tokenizer_models_scores():
    their, our = values(theirs("phi-3"), "scores"), values(ours("phi-3"), "scores")
    tokens = values(ours("phi-3"), "tokens")
    merged = [i for i in range(259, 32000) if len(tokens[i]) > 1]
    assert sorted(merged, key=lambda i: (-their[i], i)) == sorted(
        merged, key=lambda i: (-our[i], i)
    )


@pytest.mark.oracle
@pytest.mark.parametrize("name", PAIRS)
def test_llama_cpp_tokenizes_its_test_cases_as_expected(name: str, tmp_path: Path):
    model = write_model(tmp_path / "model.gguf", ours(name))
    texts, expected = zip(*cases(name), strict=True)
    assert tokenize(model, texts, add_special=False) == list(expected)


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["llama-bpe", "deepseek-llm"])
def test_a_vocabulary_with_its_rules_gives_llama_cpps_keys_and_cases(name: str, tmp_path: Path):
    """The tokenizer.json of these is not at hand; llama.cpp's vocabulary and our rules make one.

    Three judges agree on it: the expected ids, the tokenizers wheel by the rules, and llama.cpp
    by the name that the rules have.
    """
    pre = next(pre for pre in PRE_TYPES if pre.name == name)
    tokenizer = write_tokenizer(tmp_path, theirs(name), pre.splits, pre.ignore_merges)
    keys = read_vocab(tmp_path, {"vocab_size": len(values(theirs(name), "tokens"))})
    for key in ("model", "pre", "tokens", "merges", "bos_token_id", "eos_token_id"):
        assert keys[f"tokenizer.ggml.{key}"] == theirs(name)[f"tokenizer.ggml.{key}"]
    model = write_model(tmp_path / "model.gguf", keys)
    texts, expected = zip(*cases(name), strict=True)
    assert [tokenizer.encode(t, add_special_tokens=False).ids for t in texts] == list(expected)
    assert tokenize(model, texts, add_special=False) == list(expected)


def cases(name: str) -> list[tuple[str, list[int]]]:
    path = shared(f"vocab-gguf/ggml-vocab-{name}.gguf.inp")
    texts = path.read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = path.with_suffix(".out").read_text(encoding="utf-8").split("\n")
    ids = [[int(i) for i in line.split()] for line in lines]
    return list(zip(texts, ids, strict=True))


def write_tokenizer(
    folder: Path, keys: Keys, splits: tuple[str, ...], ignore_merges: bool
) -> Tokenizer:
    """Write the tokenizer.json of llama.cpp's keys and our rules."""
    tokens, types = values(keys, "tokens"), values(keys, "token_type")
    plain = json.loads(Tokenizer(models.BPE()).to_str())
    plain["model"] |= {
        "vocab": {t: i for i, t in enumerate(tokens) if types[i] == TokenType.NORMAL},
        "merges": [merge.split(" ") for merge in values(keys, "merges")],
        "ignore_merges": ignore_merges,
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    plain["added_tokens"] = [
        {"id": i, "content": t, "special": types[i] == TokenType.CONTROL, **flags}
        for i, t in enumerate(tokens)
        if types[i] != TokenType.NORMAL
    ]
    plain["pre_tokenizer"] = pre_tokenizer(splits)
    write_json(folder / "tokenizer.json", plain)
    bos, eos = (
        tokens[int(str(keys[f"tokenizer.ggml.{k}_token_id"].value))] for k in ("bos", "eos")
    )
    write_json(folder / "tokenizer_config.json", {"bos_token": bos, "eos_token": eos})
    return Tokenizer.from_str(json.dumps(plain))
