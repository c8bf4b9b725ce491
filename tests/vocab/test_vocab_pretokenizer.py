from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from subsets import slow_except
from vocab_files import (
    BYTE_LEVEL,
    MARKS,
    TEXTS,
    edit,
    edit_model,
    pre_tokenizer,
    tokenize,
    train,
    write_json,
    write_model,
)

from dynquant.errors import VocabError
from dynquant.vocab import read_vocab
from dynquant.vocab.pretypes import CLASS_SPLITS, EACH_DIGIT, GPT_2, NAMES, PRE_TYPES, PreType

SPLITS = {pre.name: pre.splits for pre in PRE_TYPES}
CONFIG = {"vocab_size": 700}

# llama.cpp's regexes for these do not handle combining marks; their tokenizers' do.
WITHOUT_MARKS = ("kimi-k2", "tekken")


def pre_of(folder: Path) -> object:
    return read_vocab(folder, CONFIG)["tokenizer.ggml.pre"].value


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("pre", slow_except(PRE_TYPES[::5], PRE_TYPES), ids=lambda pre: pre.name)
def test_llama_cpp_splits_by_the_name_as_the_tokenizer_by_its_rules(pre: PreType, tmp_path: Path):
    tokenizer = train(tmp_path, pre.splits, ignore_merges=pre.ignore_merges)
    edit(
        tmp_path,
        "tokenizer_config.json",
        clean_up_tokenization_spaces=pre.clean_spaces,
        bos_token="<|start|>" if pre.expects_bos else None,
    )
    keys = read_vocab(tmp_path, CONFIG)
    assert keys["tokenizer.ggml.pre"].value == pre.name
    model = write_model(tmp_path / "model.gguf", keys)
    texts = [*TEXTS, *(() if pre.name in WITHOUT_MARKS else (MARKS,))]
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.oracle
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_llama_cpp_accepts_every_name_of_the_pre_option(name: str, tmp_path: Path):
    train(tmp_path, (GPT_2,))
    keys = read_vocab(tmp_path, CONFIG, pre=name)
    assert keys["tokenizer.ggml.pre"].value == name
    assert tokenize(write_model(tmp_path / "model.gguf", keys), ["a"], add_special=False)


def test_a_regex_with_plain_line_ends_equals_the_one_with_escapes(tmp_path: Path):
    spelled = SPLITS["deepseek-v3"][2].replace(r"\r\n", "\r\n")
    train(tmp_path, (*SPLITS["deepseek-v3"][:2], spelled))
    assert pre_of(tmp_path) == "deepseek-v3"


def test_inverted_removal_equals_keeping_the_matches(tmp_path: Path):
    train(tmp_path, SPLITS["gpt-4o"])
    rules = pre_tokenizer(SPLITS["gpt-4o"])
    rules["pretokenizers"][0] |= {"behavior": "Removed", "invert": True}
    edit(tmp_path, "tokenizer.json", pre_tokenizer=rules)
    assert pre_of(tmp_path) == "gpt-4o"


def test_a_single_step_and_nested_sequences_give_a_flat_list_of_steps(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    single = {**BYTE_LEVEL, "use_regex": True}
    nested = {"type": "Sequence", "pretokenizers": [pre_tokenizer((EACH_DIGIT, GPT_2))]}
    edit(tmp_path, "tokenizer.json", pre_tokenizer=single)
    assert pre_of(tmp_path) == "gpt-2"
    edit(tmp_path, "tokenizer.json", pre_tokenizer=nested)
    assert pre_of(tmp_path) == "starcoder"


def test_nfc_is_ignored_as_in_llama_cpp(tmp_path: Path):
    train(tmp_path, SPLITS["qwen2"])
    edit(tmp_path, "tokenizer.json", normalizer={"type": "NFC"})
    assert pre_of(tmp_path) == "qwen2"


UNKNOWN: dict[str, dict[str, Any]] = {
    "regex": {"pre_tokenizer": pre_tokenizer((r"\p{L}+|\p{Z}+",))},
    "space before the text": {"pre_tokenizer": {**BYTE_LEVEL, "add_prefix_space": True}},
    "lower case": {"normalizer": {"type": "Lowercase"}},
    "removed matches": {
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLITS["qwen2"][0]},
                    "behavior": "Removed",
                    "invert": False,
                },
                {**BYTE_LEVEL, "use_regex": False},
            ],
        }
    },
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_unknown_rules_are_reported_with_the_pre_option(what: str, tmp_path: Path):
    train(tmp_path, (GPT_2,))
    edit(tmp_path, "tokenizer.json", **UNKNOWN[what])
    with pytest.raises(VocabError) as e:
        pre_of(tmp_path)
    assert str(tmp_path / "tokenizer.json") in str(e.value)
    assert "no known pre-tokenizer" in str(e.value)
    for part in UNKNOWN[what].values():
        assert json.dumps(part, ensure_ascii=False) in str(e.value)
    assert "--pre NAME (one of a.x-4.0, " in str(e.value)


def test_the_users_name_has_precedence(tmp_path: Path):
    train(tmp_path, (r"\p{L}+|\p{Z}+",))
    keys = read_vocab(tmp_path, CONFIG, pre="llama-bpe")
    assert keys["tokenizer.ggml.pre"].value == "llama-bpe"


def test_an_unknown_name_is_reported_with_the_nearest_known_one(tmp_path: Path):
    train(tmp_path, (GPT_2,))
    with pytest.raises(VocabError, match=r"--pre: 'qwen-2' is not a pre-tokenizer; did you mean"):
        read_vocab(tmp_path, CONFIG, pre="qwen-2")


@pytest.mark.parametrize("name", CLASS_SPLITS)
@pytest.mark.parametrize("suffix", ["", "Fast"])
def test_without_tokenizer_json_the_class_determines_the_rules(
    name: str, suffix: str, tmp_path: Path
):
    slow_files(tmp_path, tokenizer_class=name + suffix)
    expected = {"Qwen2Tokenizer": "qwen2", "Qwen3_5Tokenizer": "qwen35"}
    assert pre_of(tmp_path) == expected.get(name, "gpt-2")


def test_qwen_3_5_may_state_the_class_of_qwen_2(tmp_path: Path):
    slow_files(tmp_path, tokenizer_class="Qwen2Tokenizer")
    keys = read_vocab(tmp_path, {**CONFIG, "model_type": "qwen3_5"})
    assert keys["tokenizer.ggml.pre"].value == "qwen35"


def test_without_a_class_the_model_type_determines_the_rules(tmp_path: Path):
    slow_files(tmp_path)
    keys = read_vocab(tmp_path, CONFIG | {"model_type": "qwen3"})
    assert keys["tokenizer.ggml.pre"].value == "qwen2"


@pytest.mark.parametrize(
    "config", [{"tokenizer_class": "MyTokenizer"}, {}, {"tokenizer_class": "GPT2Tokenizer"}]
)
def test_an_unknown_class_is_reported_with_the_pre_option(config: dict[str, Any], tmp_path: Path):
    prefix = config.get("tokenizer_class") == "GPT2Tokenizer"
    slow_files(tmp_path, **config, add_prefix_space=prefix)
    with pytest.raises(
        VocabError, match=r"tokenizer_class .* without a tokenizer.json.*--pre NAME"
    ):
        pre_of(tmp_path)


def slow_files(folder: Path, **config: Any) -> None:
    """Write vocab.json and merges.txt in place of tokenizer.json."""
    train(folder, (GPT_2,))
    model = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "tokenizer.json").unlink()
    write_json(folder / "vocab.json", model["vocab"])
    merges = "".join(f"{a} {b}\n" for a, b in model["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", config)


@pytest.mark.parametrize("ignored", [False, True])
def test_ignore_merges_does_not_matter_if_merges_produce_every_token(ignored: bool, tmp_path: Path):
    train(tmp_path, SPLITS["qwen2"], ignore_merges=ignored)
    assert pre_of(tmp_path) == "qwen2"


@pytest.mark.parametrize(("name", "ignored"), [("qwen2", True), ("tekken", False)])
def test_ignore_merges_that_differs_from_llama_cpps_is_an_error_if_it_matters(
    name: str, ignored: bool, tmp_path: Path
):
    train(tmp_path, SPLITS[name], ignore_merges=ignored)
    model = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    edit_model(tmp_path, vocab=model["vocab"] | {"unreached": 700})
    with pytest.raises(
        VocabError, match=r"1 tokens that the merges do not produce \('unreached'\).*--pre " + name
    ):
        read_vocab(tmp_path, {"vocab_size": 701})
    assert read_vocab(tmp_path, {"vocab_size": 701}, pre=name)
