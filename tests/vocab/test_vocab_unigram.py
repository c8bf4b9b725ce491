from __future__ import annotations

import base64
import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from places import VOCABULARIES
from vocab_files import edit, edit_model, sentencepiece, tokenize, write_json, write_model

from dynquant.errors import VocabError
from dynquant.vocab import read_vocab
from dynquant.vocab.tokens import SPACE


@pytest.fixture
def t5(tmp_path: Path) -> Path:
    shutil.copytree(VOCABULARIES / "t5", tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def xlm_r(tmp_path: Path) -> Path:
    shutil.copytree(VOCABULARIES / "xlm-r", tmp_path, dirs_exist_ok=True)
    return tmp_path


def plain(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    keys = read_vocab(folder, config or {})
    return {
        k.removeprefix("tokenizer.ggml."): v.value
        for k, v in keys.items()
        if not isinstance(v.value, tuple)
    }


def token(folder: Path, i: int) -> tuple[Any, ...]:
    keys = read_vocab(folder, {})
    return tuple(
        keys[f"tokenizer.ggml.{name}"].value[i]  # type: ignore[index]
        for name in ("tokens", "token_type", "scores")
    )


def test_keys_are_those_of_llama_cpps_converter(xlm_r: Path):
    assert list(read_vocab(xlm_r, {})) == [
        "tokenizer.ggml.model",
        "tokenizer.ggml.pre",
        "tokenizer.ggml.tokens",
        "tokenizer.ggml.scores",
        "tokenizer.ggml.token_type",
        "tokenizer.ggml.add_space_prefix",
        "tokenizer.ggml.token_type_count",
        "tokenizer.ggml.remove_extra_whitespaces",
        "tokenizer.ggml.precompiled_charsmap",
        "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id",
        "tokenizer.ggml.unknown_token_id",
        "tokenizer.ggml.seperator_token_id",
        "tokenizer.ggml.padding_token_id",
        "tokenizer.ggml.mask_token_id",
        "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_eos_token",
        "tokenizer.ggml.add_sep_token",
    ]


def test_the_unknown_token_has_its_type_and_other_special_tokens_are_control(t5: Path):
    assert [token(t5, i)[:2] for i in range(4)] == [
        ("<pad>", TokenType.CONTROL),
        ("</s>", TokenType.CONTROL),
        ("<unk>", TokenType.UNKNOWN),
        (SPACE, TokenType.NORMAL),
    ]


@pytest.mark.parametrize("by", ["tokenizer_class", "model_type"])
def test_xlm_rs_pieces_have_ids_one_above_those_of_the_model_file(by: str, xlm_r: Path):
    expected = token(xlm_r, 3)[:2], token(xlm_r, 4)[0], token(xlm_r, 241)[:2]
    (xlm_r / "tokenizer.json").unlink()
    config = {}
    if by == "model_type":
        (xlm_r / "tokenizer_config.json").unlink()
        config = {"model_type": "xlm-roberta"}
    keys = read_vocab(xlm_r, config)
    tokens, types = (keys[f"tokenizer.ggml.{n}"].value for n in ("tokens", "token_type"))
    assert ((tokens[3], types[3]), tokens[4], (tokens[241], types[241])) == expected  # type: ignore[index]
    assert plain(xlm_r, config)["mask_token_id"] == 241


@pytest.mark.parametrize(
    ("scheme", "merge"),
    [("always", "pre_tokenizer"), ("always", "normalizer"), ("always", ""), ("never", "")],
)
def test_spaces_follow_the_rules(scheme: str, merge: str, t5: Path):
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    split = [{"type": "WhitespaceSplit"}] if merge == "pre_tokenizer" else []
    table = json.loads((t5 / "tokenizer.json").read_text(encoding="utf-8"))["normalizer"]
    replace = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": SPACE}
    edit(
        t5,
        "tokenizer.json",
        pre_tokenizer={"type": "Sequence", "pretokenizers": [*split, metaspace]},
        normalizer=replace if merge == "normalizer" else table if split else None,
    )
    found = plain(t5)
    assert found["add_space_prefix"] is (scheme == "always")
    assert found["remove_extra_whitespaces"] is bool(merge)


@pytest.mark.parametrize(
    "rules",
    [
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}},
        {"pre_tokenizer": {"type": "Whitespace"}},
    ],
)
def test_unsupported_rules_are_named(rules: dict[str, Any], t5: Path):
    edit(t5, "tokenizer.json", **rules)
    (part,) = rules
    with pytest.raises(
        VocabError, match=f"llama.cpp's unigram does not have the {part.replace('_', '-')} "
    ):
        read_vocab(t5, {})


def charsmap(content: bytes) -> dict[str, str]:
    return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(content).decode()}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"abc", "has 3 bytes"),
        (struct.pack("<I", 400) + bytes(20), "declares a trie of 400 bytes in a total of 24"),
        (struct.pack("<I", 8) + bytes(8) + b"a", "ends inside a text"),
    ],
)
def test_a_damaged_table_of_replacements_is_named(content: bytes, why: str, t5: Path):
    edit(t5, "tokenizer.json", normalizer=charsmap(content))
    with pytest.raises(VocabError, match=f"the table of replacements {why}"):
        read_vocab(t5, {})


def test_a_table_that_is_not_base64_is_named(t5: Path):
    edit(t5, "tokenizer.json", normalizer=charsmap(b"") | {"precompiled_charsmap": "?"})
    with pytest.raises(VocabError, match="precompiled_charsmap is not base64"):
        read_vocab(t5, {})


@pytest.mark.parametrize("vocab", [[], [["a", "b"]], [["a", 1.0], "b"], {"a": 1}])
def test_a_vocabulary_without_scores_is_named(vocab: Any, t5: Path):
    edit_model(t5, vocab=vocab)
    with pytest.raises(VocabError, match=r"tokenizer.json: 'vocab'.*download|.*list is expected"):
        read_vocab(t5, {})


def test_a_vocabulary_without_an_unknown_token_is_rejected(t5: Path):
    edit_model(t5, unk_id=None)
    edit(t5, "tokenizer_config.json", unk_token=None)
    with pytest.raises(VocabError, match="the unknown token is missing"):
        read_vocab(t5, {})


@pytest.mark.oracle
def test_ascii_characters_without_a_piece_are_not_unknown_to_llama_cpp(tmp_path: Path):
    fixed = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    fixed += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    letters = [(SPACE, -1.0, 1), ("a", -2.0, 1), (f"{SPACE}a", -2.5, 1), ("b", -3.0, 1)]
    model = sentencepiece([*fixed, *letters], model_type=1)
    (tmp_path / "tokenizer.model").write_bytes(model)
    write_json(tmp_path / "tokenizer_config.json", {"add_bos_token": True, "add_eos_token": False})
    keys = read_vocab(tmp_path, {})
    assert keys["tokenizer.ggml.model"].value == "t5"
    text = "a\n#b"
    newline, sign = 3 + ord("\n"), 3 + ord("#")
    found = tokenize(write_model(tmp_path / "model.gguf", keys), [text])
    assert found == [[1, 261, newline, sign, 262]]
    assert token(tmp_path, newline) == ("\n", TokenType.NORMAL, -13.0)
    assert token(tmp_path, 3 + 0xE9)[:2] == ("<0xE9>", TokenType.BYTE)


@pytest.mark.oracle
def test_added_tokens_are_found_before_splitting(t5: Path):
    value = json.loads((t5 / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    extra = [
        {"id": 240, "content": "<extra_id_0>", "special": True, **flags},
        {"id": 241, "content": "{tool}", "special": False, **flags},
    ]
    edit(t5, "tokenizer.json", added_tokens=value["added_tokens"] + extra)
    assert token(t5, 240)[:2] == ("<extra_id_0>", TokenType.CONTROL)
    assert token(t5, 241)[:2] == ("{tool}", TokenType.USER_DEFINED)
    model = write_model(t5 / "model.gguf", read_vocab(t5, {}))
    (tokens,) = tokenize(model, ["the {tool}<extra_id_0>"])
    assert tokens[-3:] == [241, 240, 1]
