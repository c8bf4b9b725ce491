"""Write tokenizer files for tests, and GGUFs with the keys made from them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from dynquant.keys import Keys
from dynquant.vocab import pretypes
from dynquant.vocab.tokens import SPACE

# Scripts, digits, spaces and marks that pre-tokenizers treat differently.
TEXTS = (
    "",
    " ",
    "\n\n \t x",
    "Hello, world! It's HE'LL and I'd've done 3 33 333 3333 33333.33",
    "    def f(x):\r\n\treturn x**2  # naïve café\n\n\n",
    "Größe, нещо на Български, 日本語のテキスト、한국어 ٣٤٥ ab",
    "🚀 (normal) 😶‍🌫️ ✅ 3½ ²³ x=1; y<=z^2 ~~ ``a`` $5+$6",
    "camelCase HTTPServer ABCdef  trailing   ",
)
MARKS = "កាន់តែពិសេសអាច नमस्ते"  # letters with combining marks


def tokenize(
    model: Path, texts: Sequence[str], *, add_special: bool = True, parse_special: bool = True
) -> list[list[int]]:
    """Return llama.cpp's ids of each text, parsing control tokens; skip without llama.cpp."""
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    return llamacpp.tokenize(model, texts, add_special=add_special, parse_special=parse_special)


def ends(model: Path) -> list[int]:
    """Return the ids at which llama.cpp stops; skip without llama.cpp."""
    llamacpp: Any = pytest.importorskip("llamacpp", reason="needs xllamacpp", exc_type=ImportError)
    return llamacpp.ends(model)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def words(seed: int, n: int) -> list[str]:
    """Return lines of made-up words with digits, capitals, accents and signs, for training."""
    rng = random.Random(seed)
    syllables = ("ba", "ce", "di", "fo", "gu", "la", "é", "ß", "ан", "ба", "日", "本", "'")
    lexicon = ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(300)]
    signs = ["", ",", ".", "!?", "\n", "  ", " 12", " 2024", "'s", " (x)", "="]
    return [
        " ".join(rng.choice(lexicon).capitalize() + rng.choice(signs) for _ in range(20))
        for _ in range(n)
    ]


def write_model(path: Path, keys: Keys) -> Path:
    """Write the smallest Llama with this vocabulary that llama.cpp loads: one layer of zeros."""
    n, n_vocab = 32, len(keys["tokenizer.ggml.tokens"].value)  # type: ignore[arg-type]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(n)
    writer.add_feed_forward_length(n)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    for name, key in keys.items():
        if key.sub_type is None:
            writer.add_key_value(name, key.value, key.type)
        else:
            writer.add_key_value(name, list(key.value), key.type, sub_type=key.sub_type)  # type: ignore[arg-type]
    zeros = np.zeros((n, n), np.float32)
    writer.add_tensor("token_embd.weight", np.zeros((n_vocab, n), np.float16))
    writer.add_tensor("output_norm.weight", zeros[0])
    for role in ("attn_norm", "ffn_norm"):
        writer.add_tensor(f"blk.0.{role}.weight", zeros[0])
    for role in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
        writer.add_tensor(f"blk.0.{role}.weight", zeros)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sentencepiece(
    pieces: Iterable[tuple[str, float, int]], model_type: int = 2, dummy_prefix: bool = True
) -> bytes:
    """Return a tokenizer.model with these pieces (text, score, type)."""

    def varint(value: int) -> bytes:
        out = bytearray()
        while value > 0x7F:
            out.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*out, value])

    def block(number: int, content: bytes) -> bytes:
        return varint(number << 3 | 2) + varint(len(content)) + content

    out = b"".join(
        block(1, block(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + varint(t))
        for text, score, t in pieces
    )
    no_pad = varint(43 << 3) + varint(2**64 - 1)
    # A unigram model has the default, which merges spaces; one as in Llama does not.
    spaces = b"" if model_type == 1 else bytes([0x20, False])
    return (
        out
        + block(2, b"\x18" + varint(model_type) + no_pad)
        + block(3, bytes([0x18, dummy_prefix]) + spaces)
    )


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def pre_tokenizer(splits: Iterable[str]) -> dict[str, Any]:
    """Return regexes in the form of a tokenizer.json."""
    spelled: dict[str, dict[str, Any]] = {
        pretypes.GPT_2: {**BYTE_LEVEL, "use_regex": True},
        pretypes.EACH_DIGIT: {"type": "Digits", "individual_digits": True},
        pretypes.DIGITS: {"type": "Digits", "individual_digits": False},
        pretypes.PUNCTUATION_RUNS: {"type": "Punctuation", "behavior": "Contiguous"},
    }
    steps = [
        spelled.get(regex)
        or {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
        for regex in splits
    ]
    if pretypes.GPT_2 not in splits:
        steps.append({**BYTE_LEVEL, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps}


def train(folder: Path, splits: Iterable[str], *, ignore_merges: bool = False) -> Tokenizer:
    """Write the tokenizer.json of a small byte-level BPE; return it loaded by tokenizers."""
    plain = json.loads(Tokenizer(models.BPE()).to_str())
    plain["pre_tokenizer"] = pre_tokenizer(splits)
    plain["decoder"] = {**BYTE_LEVEL, "use_regex": True}
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([*words(0, 60), *TEXTS], trainer)
    trained = json.loads(tokenizer.to_str())
    trained["model"]["ignore_merges"] = ignore_merges
    write_json(folder / "tokenizer.json", trained)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<|start|>", "eos_token": "<|end|>"})
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def edit(folder: Path, name: str, **changes: Any) -> None:
    """Change entries of a JSON file; create the file if it does not exist."""
    path = folder / name
    value = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, value | changes)


def edit_model(folder: Path, **changes: Any) -> None:
    """Change entries of a tokenizer.json's model."""
    value = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    edit(folder, "tokenizer.json", model=value["model"] | changes)


def pieces() -> list[tuple[str, float, int]]:
    """Return the pieces of a small SentencePiece model as in Llama, in the order of ids."""
    text = [line.replace(" ", SPACE) for line in words(1, 60)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=300, show_progress=False, max_token_length=8)
    )
    vocab = [token for token, _ in sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])]
    merged = [token for token in vocab if len(token) > 1]
    letters = [token for token in vocab if len(token) == 1]
    fixed = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    fixed += [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    return fixed + [(token, -float(i), 1) for i, token in enumerate(merged + letters)]


def write_spm_json(folder: Path) -> Tokenizer:
    """Write the pieces as a tokenizer.json, with all pairs that form a piece as merges."""
    vocab = {text: i for i, (text, _, _) in enumerate(pieces())}
    merges = [
        [text[:k], text[k:]]
        for text, _, kind in pieces()
        if kind == 1
        for k in range(1, len(text))
        if text[:k] in vocab and text[k:] in vocab
    ]
    plain = json.loads(Tokenizer(models.BPE()).to_str())
    plain["model"] |= {
        "vocab": vocab,
        "merges": merges,
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": "<unk>",
    }
    plain["normalizer"] = {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        ],
    }
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    plain["added_tokens"] = [
        {"id": i, "content": text, "special": True, **flags}
        for i, text in enumerate(("<unk>", "<s>", "</s>"))
    ]
    plain["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    write_json(folder / "tokenizer.json", plain)
    write_json(folder / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    return Tokenizer.from_str(json.dumps(plain))
