"""Tokenizers in the form of ranks for make_references.py: Kimi-K2's, Hunyuan's, and tekken."""

from __future__ import annotations

import base64
import sys
from pathlib import Path
from typing import Any

import tiktoken
from reference_tokenizers import PROSE, QWEN2_SPLIT, Encode, write_json
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from published_rules import KIMI_SPLIT, TEKKEN_SPLIT


def train_ranks(split: str, n_learned: int) -> dict[bytes, int]:
    """Learn a byte-level BPE and return the rank of each token: bytes first, then merge results."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=n_learned, initial_alphabet=sorted(letters), show_progress=False
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    learned = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    return {bytes_of(text): rank for text, rank in learned}


def bytes_of(text: str) -> bytes:
    """Return the bytes of byte letters, by the table in transformers."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = {letter: byte for byte, letter in bytes_to_unicode().items()}
    return bytes(table[letter] for letter in text)


def make_tiktoken(folder: Path, n_learned: int = 384) -> Encode:
    """Write Kimi-K2's tiktoken.model; 256 ids follow for special tokens, of which few are named."""
    ranks = train_ranks(KIMI_SPLIT, n_learned)
    lines = "".join(f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in ranks.items())
    (folder / "tiktoken.model").write_text(lines, "utf-8")
    named = {0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 9: "[EOT]"}
    named |= {11: "<|tool_call_begin|>", 254: "[UNK]", 255: "[PAD]"}
    special = {
        named.get(i, f"<|reserved_token_{n_learned + i}|>"): n_learned + i for i in range(256)
    }
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    write_json(
        folder / "tokenizer_config.json",
        {
            "added_tokens_decoder": {
                str(n_learned + i): {"content": text, **flags, "special": "tool" not in text}
                for i, text in named.items()
            },
            "auto_map": {"AutoTokenizer": ["tokenization_kimi.TikTokenTokenizer", None]},
            "bos_token": "[BOS]",
            "clean_up_tokenization_spaces": False,
            "eos_token": "[EOS]",
            "pad_token": "[PAD]",
            "tokenizer_class": "TikTokenTokenizer",
            "unk_token": "[UNK]",
        },
    )
    encoding = tiktoken.Encoding(
        "kimi", pat_str=KIMI_SPLIT, mergeable_ranks=ranks, special_tokens=special
    )
    return lambda text: encoding.encode(text, allowed_special="all")


def make_hunyuan(folder: Path, n_learned: int = 384) -> Encode:
    """Write Hunyuan's hy.tiktoken, whose tokenizer class names the special tokens that follow."""
    ranks = train_ranks(QWEN2_SPLIT, n_learned)
    lines = "".join(f"{base64.b64encode(t).decode()} {rank}\n" for t, rank in ranks.items())
    (folder / "hy.tiktoken").write_text(lines, "utf-8")
    texts = ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"]
    texts += [f"<|extra_{i}|>" for i in range(205)]
    write_json(
        folder / "tokenizer_config.json",
        {
            "auto_map": {"AutoTokenizer": ["tokenization_hy.HYTokenizer", None]},
            "clean_up_tokenization_spaces": False,
            "tokenizer_class": "HYTokenizer",
        },
    )
    encoding = tiktoken.Encoding(
        "hunyuan",
        pat_str=QWEN2_SPLIT,
        mergeable_ranks=ranks,
        special_tokens={text: n_learned + i for i, text in enumerate(texts)},
    )
    return lambda text: encoding.encode(text, allowed_special="all")


def make_tekken(folder: Path, n_learned: int = 384, n_special: int = 24) -> Encode:
    """Write Mistral's tekken.json: special tokens first; "[INST]" in a text is plain text."""
    ranks = train_ranks(TEKKEN_SPLIT, n_learned)
    texts = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "<pad>"]
    vocab: list[dict[str, Any]] = [
        {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
        for token, rank in ranks.items()
    ]
    config = {
        "pattern": TEKKEN_SPLIT,
        "num_vocab_tokens": len(vocab),
        "default_vocab_size": n_special + n_learned,
        "default_num_special_tokens": n_special,
        "version": "v11",
    }
    special = [{"rank": i, "token_str": t, "is_control": True} for i, t in enumerate(texts)]
    write_json(
        folder / "tekken.json", {"config": config, "vocab": vocab, "special_tokens": special}
    )
    encoding = tiktoken.Encoding(
        "tekken", pat_str=TEKKEN_SPLIT, mergeable_ranks=ranks, special_tokens={}
    )
    bos = texts.index("<s>")
    return lambda text: [bos, *(n_special + i for i in encoding.encode(text))]
