"""Attacks with the files of a tokenizer."""

from __future__ import annotations

import base64
import os
import struct
from pathlib import Path
from shutil import copytree
from typing import Any

from attacks.making import (
    VOCABULARIES,
    on,
    save,
    tokenizer,
)


@on("tokenizer", "VocabError", "twice in one object")
def a_hundred_thousand_tokens_twice(at: Path) -> None:
    """100,000 tokens, each of them twice; comparing all pairs takes hours"""
    tokenizer(at, "phi-3")
    pairs = "".join(f'"t{i}": 1, ' for i in range(100_000))
    (at / "tokenizer.json").write_text("{" + pairs + pairs + '"a": 1}')


@on("tokenizer", "VocabError", "nested more than 64 deep")
def deeply_nested_rules(at: Path) -> None:
    """a pre-tokenizer of 400 nested sequences"""
    found = tokenizer(at, "phi-3")
    rule: Any = {"type": "ByteLevel"}
    for _ in range(400):
        rule = {"type": "Sequence", "pretokenizers": [rule]}
    save(at, found | {"pre_tokenizer": rule})


@on("tokenizer", "VocabError", "no known pre-tokenizer of llama.cpp has these rules")
def a_pre_tokenizer_with_exponential_time(at: Path) -> None:
    """the regular expression (a+)+$ in a Split rule; it is compared and never run"""
    found = tokenizer(at, "phi-3")
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated"}
    rules = [split, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
    model = found["model"] | {"byte_fallback": False}
    rule = {"type": "Sequence", "pretokenizers": rules}
    save(at, found | {"pre_tokenizer": rule, "model": model, "normalizer": None})


@on("tokenizer", "VocabError", "at most 4096 are read")
def a_token_of_a_million_letters(at: Path) -> None:
    """a token of 1,000,000 letters, which has as many ways to be split"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"]["a" * 1_000_000] = 3000
    save(at, found)


@on("tokenizer", "VocabError", "pairs that are not among the merges")
def tokens_with_very_many_splits(at: Path) -> None:
    """tokens a, aa, aaa ... of up to 800 letters: 320,000 pairs that are not merges"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"] |= {"a" * n: 10_000 + n for n in range(2, 800)}
    save(at, found)


@on("tokenizer", "VocabError", "not pairs of text and score")
def scores_that_are_not_numbers(at: Path) -> None:
    """unigram scores NaN, 10^300 and 10^400"""
    found = tokenizer(at, "t5")
    found["model"]["vocab"] += [["x", float("nan")], ["y", 1e300], ["z", 10**400]]
    save(at, found)


@on("tokenizer", "VocabError", "half a character")
def half_a_character(at: Path) -> None:
    """a token of half a surrogate pair, which has no UTF-8 form"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"]["\ud800"] = 3000
    save(at, found)


@on("tokenizer", "VocabError", "is not a token id")
def an_id_too_long_for_int(at: Path) -> None:
    """added_tokens_decoder with an id of 5000 digits"""
    tokenizer(at, "phi-3")
    save(at, {"added_tokens_decoder": {"9" * 5000: {"content": "x"}}}, "tokenizer_config.json")


@on("tokenizer", "VocabError", "has id 2147483647")
def a_huge_token_id(at: Path) -> None:
    """a token with id 2^31 - 1; the vocabulary would be padded to it"""
    found = tokenizer(at, "phi-3")
    found["model"]["vocab"]["x" * 4000] = 2**31 - 1
    save(at, found)


@on("tokenizer", "VocabError", "at most 1048576 are read")
def two_billion_special_tokens(at: Path) -> None:
    """tekken.json with default_num_special_tokens 2^31 - 385, followed by 384 tokens"""
    found = tokenizer(at, "tekken", "tekken.json")
    found["config"] |= {"default_num_special_tokens": 2**31 - 385, "default_vocab_size": 2**31 - 1}
    save(at, found, "tekken.json")


@on("tokenizer", "VocabError", "1 tokens that the merges do not produce")
def a_token_of_sixty_thousand_bytes(at: Path) -> None:
    """tiktoken.model with a token of 60,000 bytes, whose merges are searched in order of rank"""
    copytree(VOCABULARIES / "kimi-k2", at, dirs_exist_ok=True)
    path = at / "tiktoken.model"
    lines = path.read_text().rstrip("\n").split("\n")
    token = base64.b64encode(b"in the " * 9000).decode()
    path.write_text("\n".join([*lines, f"{token} {len(lines)}", ""]))
    save(at, {"tokenizer_class": "TikTokenTokenizer"}, "tokenizer_config.json")


@on("tokenizer", "VocabError", "bytes too early")
def a_piece_of_two_to_the_63_bytes(at: Path) -> None:
    """a SentencePiece model whose first piece is 2^63 bytes long"""
    (at / "tokenizer.model").write_bytes(b"\x0a" + b"\x80" * 9 + b"\x01")


@on("tokenizer", "VocabError", "a score that is not a number")
def a_piece_whose_score_is_not_a_number(at: Path) -> None:
    """a SentencePiece model with a score of NaN, by which llama.cpp would sort"""
    piece = b"\x0a\x01a\x15" + struct.pack("<f", float("nan"))
    rest = b"\x12\x00\x1a\x00"  # an empty trainer and an empty normalizer
    (at / "tokenizer.model").write_bytes(b"\x0a" + bytes([len(piece)]) + piece + rest)


@on("tokenizer", "VocabError", "outside of the folder")
def a_chat_template_that_publishes_a_secret(at: Path) -> None:
    """chat_template.jinja is a link to a file outside, whose text would be in the output"""
    tokenizer(at, "phi-3")
    (at.parent / "secret").write_text("a key")
    (at / "chat_template.jinja").symlink_to("../secret")


@on("tokenizer", "VocabError", "outside of the folder")
def a_vocabulary_that_publishes_a_secret(at: Path) -> None:
    """vocab.txt is a link to /etc/passwd, whose lines would be tokens"""
    (at / "vocab.txt").symlink_to("/etc/passwd")


@on("tokenizer", "VocabError", "outside of the folder")
def a_folder_of_templates_outside(at: Path) -> None:
    """additional_chat_templates is a link to another folder"""
    tokenizer(at, "phi-3")
    (at.parent / "others").mkdir()
    (at.parent / "others" / "x.jinja").write_text("a key")
    (at / "additional_chat_templates").symlink_to("../others")


@on("tokenizer")
def a_chat_template_that_runs_code(at: Path) -> None:
    """a template that calls os.system when it is rendered; it is never rendered"""
    tokenizer(at, "phi-3")
    code = "{{ cycler.__init__.__globals__.os.system('touch owned') }}"
    (at / "chat_template.jinja").write_text(code)


@on("tokenizer", "NoVocabError", "no tokenizer")
def a_tokenizer_that_is_a_pipe(at: Path) -> None:
    """tokenizer.json is a FIFO, which is treated as missing"""
    os.mkfifo(at / "tokenizer.json")
