from __future__ import annotations

import base64
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from gguf import TokenType
from hypothesis import given, settings
from hypothesis import strategies as st
from places import VOCABULARIES, shared
from tokenizers import models
from vocab_files import edit

from dynquant.errors import VocabError
from dynquant.vocab import read_vocab
from dynquant.vocab.ranks import letters, merges_of_ranks

N = 384  # learned tokens of each


@pytest.fixture
def kimi(tmp_path: Path) -> Path:
    shutil.copytree(VOCABULARIES / "kimi-k2", tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture
def tekken(tmp_path: Path) -> Path:
    shutil.copytree(VOCABULARIES / "tekken", tmp_path, dirs_exist_ok=True)
    return tmp_path


def values(folder: Path, name: str, config: dict[str, Any] | None = None) -> list[Any]:
    found = read_vocab(folder, config or {})[f"tokenizer.ggml.{name}"].value
    assert isinstance(found, tuple)
    return list(found)


def stored_ranks() -> dict[bytes, int]:
    lines = (VOCABULARIES / "kimi-k2" / "tiktoken.model").read_text(encoding="utf-8").split("\n")
    return {base64.b64decode(line.split()[0]): int(line.split()[1]) for line in lines if line}


RANKS = stored_ranks()
BPE = models.BPE({letters(t): r for t, r in RANKS.items()}, merges_of_ranks(RANKS))


def joined(text: bytes) -> list[int]:
    """Join neighbours by rank, as tiktoken does with a piece of text."""
    parts = [text[i : i + 1] for i in range(len(text))]
    while True:
        pairs = [RANKS.get(a + b, N) for a, b in pairwise(parts)]
        if not pairs or min(pairs) == N:
            return [RANKS[part] for part in parts]
        at = pairs.index(min(pairs))
        parts[at : at + 2] = [parts[at] + parts[at + 1]]


@pytest.mark.slow
@settings(deadline=None, derandomize=True)
@given(st.text("aehinorst ,\u00e9", max_size=30))
def test_merges_join_in_the_same_order_as_ranks(text: str):
    encoded = text.encode()
    assert [token.id for token in BPE.tokenize(letters(encoded))] == joined(encoded)


def test_every_token_of_several_bytes_has_one_merge(kimi: Path):
    merges = values(kimi, "merges")
    made = [merge.replace(" ", "") for merge in merges]
    assert made == values(kimi, "tokens")[256:N]


def test_kimis_reserved_ids_are_control_tokens_with_unlikely_texts(kimi: Path):
    tokens, types = (values(kimi, name) for name in ("tokens", "token_type"))
    assert len(tokens) == N + 256
    assert tokens[N : N + 5] == [
        *("[BOS]", "[EOS]", "<|im_end|>", "<|im_user|>"),
        f"<|reserved_token_{N + 4}|>",
    ]
    assert set(types[:N]) == {TokenType.NORMAL}
    assert set(types[N:]) == {TokenType.CONTROL}
    assert len(values(kimi, "tokens", {"vocab_size": N + 258})) == N + 258


def test_hunyuans_class_names_special_tokens_after_the_ranks():
    folder = VOCABULARIES / "hunyuan"
    keys = read_vocab(folder, {"vocab_size": N + 212, "bos_token_id": 1, "eos_token_id": N + 3})
    tokens, types = (
        values(folder, name, {"vocab_size": N + 212}) for name in ("tokens", "token_type")
    )
    assert tokens[N : N + 6] == [
        *("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>", "<|extra_0|>"),
    ]
    assert tokens[N + 209 :] == ["<|extra_204|>", f"[PAD{N + 210}]", f"[PAD{N + 211}]"]
    assert set(types[N : N + 210]) == {TokenType.CONTROL}
    assert keys["tokenizer.ggml.pre"].value == "hunyuan"
    ids = [keys[f"tokenizer.ggml.{name}_token_id"].value for name in ("bos", "eos")]
    assert ids == [N + 2, N + 3]


def test_an_unknown_class_needs_the_pre_option(kimi: Path):
    edit(kimi, "tokenizer_config.json", tokenizer_class="MyTokenizer")
    with pytest.raises(
        VocabError, match=r"tokenizer_class 'MyTokenizer' is not supported.*--pre NAME"
    ):
        read_vocab(kimi, {})
    keys = read_vocab(kimi, {"vocab_size": N + 256}, pre="llama-bpe")
    assert keys["tokenizer.ggml.pre"].value == "llama-bpe"
    with pytest.raises(VocabError, match="--pre: 'llama' is not a pre-tokenizer"):
        read_vocab(kimi, {}, pre="llama")


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("IQ==", r":385: 'IQ==' is not a token in base64 and its rank"),
        ("IQ== x", r":385: 'IQ== x' is not a token in base64"),
        ("I? 384", r":385: 'I\?' is not base64"),
        ("IQ== 384", r":385: token b'!' is repeated or empty"),
        ("IXF6IQ== 400", r"the ranks of 385 tokens are not 0 to 384"),
    ],
)
def test_a_damaged_line_is_named(line: str, why: str, kimi: Path):
    with (kimi / "tiktoken.model").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(VocabError, match=why):
        read_vocab(kimi, {})


def test_bytes_without_a_token_are_counted(kimi: Path):
    lines = (kimi / "tiktoken.model").read_text(encoding="utf-8").split("\n")
    (kimi / "tiktoken.model").write_text("\n".join(lines[3:]), encoding="utf-8")
    with pytest.raises(VocabError, match="3 of the 256 bytes are not tokens"):
        read_vocab(kimi, {})


@pytest.mark.slow
def test_tekkens_special_tokens_come_first_and_missing_ones_are_filled_in(tekken: Path):
    tokens, types = (values(tekken, name) for name in ("tokens", "token_type"))
    assert tokens[:8] == [
        *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<pad>"),
        "<SPECIAL_7>",
    ]
    assert set(types[:24]) == {TokenType.CONTROL}
    assert set(types[24:]) == {TokenType.NORMAL}
    found = read_vocab(tekken, {})
    for name, token_id in (("bos", 1), ("eos", 2), ("unknown", 0), ("padding", 6)):
        assert found[f"tokenizer.ggml.{name}_token_id"].value == token_id
    assert found["tokenizer.ggml.add_bos_token"].value is True
    assert found["tokenizer.ggml.add_eos_token"].value is False


def test_an_older_tekken_without_special_tokens_gets_the_known_ones(tekken: Path):
    value = json.loads((tekken / "tekken.json").read_text(encoding="utf-8"))
    edit(tekken, "tekken.json", **(value | {"special_tokens": None}))
    tokens = values(tekken, "tokens")
    assert (tokens[1], tokens[11], tokens[20]) == ("<s>", "<pad>", "<SPECIAL_20>")


def test_tokens_of_tekken_beyond_its_size_are_not_used(tekken: Path):
    value = json.loads((tekken / "tekken.json").read_text(encoding="utf-8"))
    edit(tekken, "tekken.json", config=value["config"] | {"default_vocab_size": 24 + 300})
    assert len(values(tekken, "tokens")) == 324
    edit(tekken, "tekken.json", config=value["config"] | {"default_vocab_size": 9999})
    with pytest.raises(VocabError, match=r"has 384 tokens, but 'config' declares 9975"):
        read_vocab(tekken, {})


def test_an_unknown_pattern_is_reported_with_the_pre_option(tekken: Path):
    value = json.loads((tekken / "tekken.json").read_text(encoding="utf-8"))
    edit(tekken, "tekken.json", config=value["config"] | {"pattern": "a+"})
    with pytest.raises(VocabError, match=r'has these rules: "a\+"; .* --pre NAME'):
        read_vocab(tekken, {})
    keys = read_vocab(tekken, {}, pre="tekken")
    assert keys["tokenizer.ggml.pre"].value == "tekken"


@pytest.mark.slow
@pytest.mark.shared
def test_kimi_k2_itself_is_read():
    """163,584 ranks; eos is named in tokenizer_config.json, im_end is recognised by its text."""
    folder = shared("tokenizers/kimi-k2")
    keys = read_vocab(folder, {"vocab_size": 163840, "bos_token_id": 163584})
    assert keys["tokenizer.ggml.pre"].value == "kimi-k2"
    tokens = keys["tokenizer.ggml.tokens"].value
    assert isinstance(tokens, tuple)
    assert (len(tokens), tokens[163584], tokens[163589]) == (
        163840,
        "[BOS]",
        "<|reserved_token_163589|>",
    )
    merges = keys["tokenizer.ggml.merges"].value
    assert isinstance(merges, tuple)
    assert len(merges) == 163584 - 256
