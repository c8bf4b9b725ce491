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
from vocab_files import (
    MARKS,
    TEXTS,
    edit,
    edit_model,
    pieces,
    sentencepiece,
    tokenize,
    words,
    write_json,
    write_model,
    write_spm_json,
)

from dynquant.errors import VocabError
from dynquant.vocab import read_vocab
from dynquant.vocab.tokens import SPACE

N = len(pieces())
LINES = [*TEXTS, MARKS, *words(3, 10), "a" + " " * 40 + "b"]


def write_spm(folder: Path, **options: Any) -> None:
    (folder / "tokenizer.model").write_bytes(sentencepiece(pieces(), **options))


@pytest.mark.slow
def test_pieces_keep_their_texts_scores_and_types(tmp_path: Path):
    write_spm(tmp_path)
    keys = read_vocab(tmp_path, {})
    texts, scores, types = zip(*pieces(), strict=True)
    assert keys["tokenizer.ggml.model"].value == "llama"
    assert keys["tokenizer.ggml.pre"].value == "default"
    assert keys["tokenizer.ggml.tokens"].value == texts
    assert keys["tokenizer.ggml.scores"].value == scores
    assert keys["tokenizer.ggml.token_type"].value == types


@pytest.mark.slow
def test_the_models_special_ids_apply_if_no_file_names_any(tmp_path: Path):
    write_spm(tmp_path)
    keys = read_vocab(tmp_path, {})
    assert keys["tokenizer.ggml.bos_token_id"].value == 1
    assert keys["tokenizer.ggml.eos_token_id"].value == 2
    assert keys["tokenizer.ggml.unknown_token_id"].value == 0
    assert "tokenizer.ggml.padding_token_id" not in keys
    configured = read_vocab(tmp_path, {"eos_token_id": 7})
    assert configured["tokenizer.ggml.eos_token_id"].value == 7


@pytest.mark.parametrize("dummy", [False, True])
def test_the_space_before_a_text_is_the_models_unless_configured(dummy: bool, tmp_path: Path):
    write_spm(tmp_path, dummy_prefix=dummy)
    assert read_vocab(tmp_path, {})["tokenizer.ggml.add_space_prefix"].value is dummy
    edit(tmp_path, "tokenizer_config.json", add_prefix_space=not dummy)
    assert read_vocab(tmp_path, {})["tokenizer.ggml.add_space_prefix"].value is not dummy


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_tokenizes_with_tokenizer_model_as_the_same_merges_do(tmp_path: Path):
    tokenizer = write_spm_json(tmp_path)
    write_spm(tmp_path)
    model = write_model(tmp_path / "model.gguf", read_vocab(tmp_path, {}))
    texts = list(filter(None, LINES))
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_tokenizes_with_scores_from_merges_as_the_tokenizer_with_merges(tmp_path: Path):
    tokenizer = write_spm_json(tmp_path)
    model = write_model(tmp_path / "model.gguf", read_vocab(tmp_path, {}))
    texts = list(filter(None, LINES))
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.slow
def test_a_model_in_the_form_of_merges_has_the_types_of_its_pieces(tmp_path: Path):
    write_spm_json(tmp_path)
    edit(tmp_path, "tokenizer.json", added_tokens=[])
    types = read_vocab(tmp_path, {})["tokenizer.ggml.token_type"].value
    assert types == (2, 1, 1, *[kind for _, _, kind in pieces()[3:]])


@pytest.mark.slow
def test_merges_without_equivalent_scores_are_rejected(tmp_path: Path):
    write_spm_json(tmp_path)
    merges = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))["model"][
        "merges"
    ]
    edit_model(tmp_path, merges=[pair for pair in merges if pair != merges[-1]])
    with pytest.raises(VocabError, match=r"not from SentencePiece: .* 1 pairs .* tokenizer.model"):
        read_vocab(tmp_path, {})


def test_added_tokens_replace_pieces_and_have_plain_spaces(tmp_path: Path):
    write_spm(tmp_path)
    decoder = {
        "1": {"content": "<s>", "special": True},
        "300": {"content": "[INST]", "special": True},
        str(N): {"content": f"two{SPACE}words", "special": False},
    }
    edit(tmp_path, "tokenizer_config.json", added_tokens_decoder=decoder)
    write_json(tmp_path / "added_tokens.json", {"<more>": N + 1})
    keys = read_vocab(tmp_path, {"vocab_size": N + 3})
    found = {
        i: tuple(keys[f"tokenizer.ggml.{name}"].value[i] for name in ("tokens", "token_type"))  # type: ignore[index]
        for i in (1, 300, N, N + 1, N + 2)
    }
    assert found == {
        1: ("<s>", TokenType.CONTROL),
        300: ("[INST]", TokenType.CONTROL),
        N: ("two words", TokenType.USER_DEFINED),
        N + 1: ("<more>", TokenType.USER_DEFINED),
        N + 2: (f"[PAD{N + 2}]", TokenType.UNUSED),
    }
    assert keys["tokenizer.ggml.scores"].value[N:] == (-1000.0, -1000.0, -10000.0)  # type: ignore[index]


def test_user_defined_pieces_have_plain_spaces(tmp_path: Path):
    extra = [*pieces(), (f"{SPACE}{SPACE}key", 0.0, TokenType.USER_DEFINED)]
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(extra))
    keys = read_vocab(tmp_path, {})
    assert keys["tokenizer.ggml.tokens"].value[-1] == "  key"  # type: ignore[index]
    assert keys["tokenizer.ggml.token_type"].value[-1] == TokenType.USER_DEFINED  # type: ignore[index]


@pytest.mark.parametrize(("model_type", "name"), [(3, "word"), (4, "char"), (9, "type 9")])
def test_a_model_of_an_unsupported_type_is_rejected(model_type: int, name: str, tmp_path: Path):
    write_spm(tmp_path, model_type=model_type)
    with pytest.raises(VocabError, match=f"models of type '{name}'"):
        read_vocab(tmp_path, {})


@pytest.mark.slow
def test_a_model_without_pieces_for_bytes_is_rejected(tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece(pieces()[:3] + pieces()[259:]))
    with pytest.raises(VocabError, match="has no pieces for 223 of the 256 bytes"):
        read_vocab(tmp_path, {})


@pytest.mark.slow
def test_a_truncated_model_is_rejected_wherever_it_ends(tmp_path: Path):
    whole = sentencepiece(pieces())
    for end in random.Random(0).sample(range(len(whole)), 100):
        (tmp_path / "tokenizer.model").write_bytes(whole[:end])
        with pytest.raises(
            VocabError, match=r"tokenizer\.model: not a complete SentencePiece model"
        ):
            read_vocab(tmp_path, {"vocab_size": N})


@pytest.mark.slow
def test_random_bytes_raise_nothing_but_vocab_errors(tmp_path: Path):
    rng = random.Random(1)
    whole = sentencepiece(pieces()[:8])
    for _ in range(300):
        data = bytearray(whole)
        for at in rng.sample(range(len(data)), 3):
            data[at] = rng.randrange(256)
        (tmp_path / "tokenizer.model").write_bytes(data)
        with pytest.raises(VocabError):
            read_vocab(tmp_path, {})


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it has no pieces"),
        (b"IQ== 0\nIg== 1\n", "it has no pieces"),
        (b"\x0a\xff\xff\xff\xff\x0f", "ends 4294967295 bytes too early"),
        (b"\x80" * 12, "a number of more than 10 bytes"),
        (b"\x0a\x03\x0a\x01\xff", "piece 0 is not UTF-8"),
        (b"\x0a\x02\x18\x09", "piece 0, '', is of unknown type 9"),
        (b"\x0a\x03\x12\x01\x00", "piece 0 has a score of 1 bytes"),
        (b"\x08\x01", "piece is a number"),
        (b"\x0b", "wire type 3"),
    ],
)
def test_each_kind_of_damage_is_named(data: bytes, why: str, tmp_path: Path):
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(VocabError, match=why):
        read_vocab(tmp_path, {})


def test_a_pre_tokenizer_for_sentencepiece_is_rejected(tmp_path: Path):
    write_spm(tmp_path)
    with pytest.raises(VocabError, match="SentencePiece tokenizers have no pre-tokenizer"):
        read_vocab(tmp_path, {}, pre="llama-bpe")


@pytest.mark.slow
@pytest.mark.oracle
@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_a_metaspace_determines_the_space_before_a_text(scheme: str, tmp_path: Path):
    write_spm_json(tmp_path)
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme}
    edit(tmp_path, "tokenizer.json", normalizer=None, pre_tokenizer=metaspace | {"split": False})
    keys = read_vocab(tmp_path, {})
    assert keys["tokenizer.ggml.add_space_prefix"].value is (scheme != "never")
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    # Metaspace adds no space before a text that begins with one; llama.cpp does.
    texts = [text for text in LINES if text and not text.startswith(" ")]
    model = write_model(tmp_path / "model.gguf", keys)
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]


@pytest.mark.oracle
def test_gemmas_runs_of_spaces_are_merged_and_not_added_tokens(tmp_path: Path):
    shutil.copytree(VOCABULARIES / "gemma", tmp_path, dirs_exist_ok=True)
    expected = read_vocab(tmp_path, {})
    plain = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    runs = [SPACE * n for n in range(2, 6)]
    listed = [{"id": plain["model"]["vocab"][run], "content": run, **flags} for run in runs]
    edit(tmp_path, "tokenizer.json", added_tokens=plain["added_tokens"] + listed)
    assert read_vocab(tmp_path, {}) == expected
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = [f"a{' ' * n}b{' ' * n}" for n in range(1, 12)]
    model = write_model(tmp_path / "model.gguf", expected)
    assert tokenize(model, texts) == [tokenizer.encode(text).ids for text in texts]


def test_gemmas_tab_replaces_its_byte_and_line_ends_are_added_tokens(tmp_path: Path):
    shutil.copytree(VOCABULARIES / "gemma", tmp_path, dirs_exist_ok=True)
    keys = read_vocab(tmp_path, {})
    tokens, types = (keys[f"tokenizer.ggml.{n}"].value for n in ("tokens", "token_type"))
    assert isinstance(tokens, tuple)
    assert isinstance(types, tuple)
    assert "<0x09>" not in tokens
    assert types[tokens.index("\t")] == TokenType.NORMAL
    assert types[tokens.index("\n\n")] == TokenType.USER_DEFINED
    assert types[tokens.index("<start_of_turn>")] == TokenType.CONTROL
    assert keys["tokenizer.ggml.add_space_prefix"].value is False
