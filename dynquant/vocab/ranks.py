"""Byte-level BPE in tiktoken's form, ranks of byte strings: the files of Kimi, Hunyuan and Mistral.

Such files have no merges: any two neighbours that together are a token are joined, the pair whose
token has the lowest rank first.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gguf import TokenType

from dynquant.errors import VocabError
from dynquant.keys import Keys
from dynquant.untrusted import shown
from dynquant.vocab.bpe import BpeModel, Merge, bpe_keys, contradictions
from dynquant.vocab.files import TokenizerFiles, as_id, as_list, as_object, read_text
from dynquant.vocab.pretokenizer import Traits, check_name, named, recognise_splits
from dynquant.vocab.pretypes import PreType
from dynquant.vocab.special import read_special
from dynquant.vocab.tokens import MAX_TOKENS, Token, added_type, lay_out

# GPT-2's letter for each byte: the character itself if it is a letter or sign in Latin-1, and for
# the other bytes, in order, the letters from U+0100 on.
_PLAIN = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PLAIN]
_LETTERS = {byte: chr(byte) for byte in _PLAIN} | {b: chr(256 + i) for i, b in enumerate(_OTHERS)}

# Kimi's tokenizer class, whose code contains the rules of the pre-tokenizer, reserves this many ids
# after the ranks for special tokens and names those in no file <|reserved_token_ID|>.
_KIMI_CLASS, _KIMI_SPECIAL = "TikTokenTokenizer", 256

# Hunyuan's tokenizer class has these special tokens after the ranks. config.json of the published
# models has another id of BOS, of a letter; llama.cpp's converter takes this one.
HUNYUAN = "hy.tiktoken"
_HUNYUAN_SPECIAL = (
    *("<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>", "<|pad|>"),
    *(f"<|extra_{i}|>" for i in range(205)),
)

# Special tokens of a tekken.json that does not list them, by id (mistral-common).
_TEKKEN_SPECIAL = """
    <unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS]
    [/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE] [SUFFIX]
    [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]
"""
_TEKKEN_NAMES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}


def read_tiktoken(files: TokenizerFiles, pre: str | None) -> Keys:
    """Return the keys of a `tiktoken.model`, with a line `base64 rank` per token.

    pre: llama.cpp's name of the pre-tokenizer; None for Kimi's, the only class that is supported

    Raises VocabError if the file is damaged, or without `pre` if tokenizer_class is another.
    """
    path = files.folder / "tiktoken.model"
    stated: Any = files.tokenizer_config.get("tokenizer_class")
    if pre is not None:
        check_name(pre)
    elif stated != _KIMI_CLASS:
        raise VocabError(
            f"{path}: tokenizer_class {stated!r} is not supported, only {_KIMI_CLASS} (Kimi's): its"
            " code splits the text; if you know llama.cpp's name for the splits, give --pre NAME"
        )
    ranks = _tiktoken_ranks(path)
    vocab = {letters(token): rank for token, rank in ranks.items()}
    VocabError.raise_any(contradictions(path, vocab, files))
    laid = {rank: Token(text, TokenType.NORMAL) for text, rank in vocab.items()}
    if stated == _KIMI_CLASS:
        first = len(ranks)
        laid |= {
            i: Token(f"<|reserved_token_{i}|>", TokenType.CONTROL)
            for i in range(first, first + _KIMI_SPECIAL)
            if files.vocab_size is None or i < files.vocab_size
        }
    laid |= {i: Token(token.text, added_type(token)) for i, token in files.added_tokens.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)
    special = read_special(files, tokens)
    special.add.setdefault("bos", False)
    model = BpeModel(path, vocab, merges_of_ranks(ranks), ignore_merges=True)
    return bpe_keys(files, model, tokens, special, named("kimi-k2") if pre is None else pre)


def read_rank_file(files: TokenizerFiles, path: Path, pre: PreType | str) -> Keys:
    """Return the keys of a file with a line `base64 rank` per token; others are added tokens.

    pre: the pre-tokenizer, or llama.cpp's name of it

    Raises VocabError if the file is damaged.
    """
    ranks = _tiktoken_ranks(path)
    vocab = {letters(token): rank for token, rank in ranks.items()}
    VocabError.raise_any(contradictions(path, vocab, files))
    laid = {rank: Token(text, TokenType.NORMAL) for text, rank in vocab.items()}
    laid |= {i: Token(token.text, added_type(token)) for i, token in files.added_tokens.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)
    special = read_special(files, tokens)
    special.add.setdefault("bos", False)
    model = BpeModel(path, vocab, merges_of_ranks(ranks), ignore_merges=True)
    return bpe_keys(files, model, tokens, special, pre)


def read_hunyuan(files: TokenizerFiles, pre: str | None) -> Keys:
    """Return the keys of a `hy.tiktoken`, a file as `tiktoken.model`.

    pre: llama.cpp's name of the pre-tokenizer; None for Hunyuan's

    Raises VocabError if the file is damaged.
    """
    path = files.folder / HUNYUAN
    if pre is not None:
        check_name(pre)
    ranks = _tiktoken_ranks(path)
    vocab = {letters(token): rank for token, rank in ranks.items()}
    VocabError.raise_any(contradictions(path, vocab, files))
    laid = {rank: Token(text, TokenType.NORMAL) for text, rank in vocab.items()}
    laid |= {
        i: Token(text, TokenType.CONTROL)
        for i, text in enumerate(_HUNYUAN_SPECIAL, len(ranks))
        if files.vocab_size is None or i < files.vocab_size
    }
    laid |= {i: Token(token.text, added_type(token)) for i, token in files.added_tokens.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)
    special = read_special(files, tokens)
    if not files.tokenizer_config.get("bos_token"):
        special.ids["bos"] = len(ranks) + _HUNYUAN_SPECIAL.index("<|bos|>")
    special.add.setdefault("bos", False)
    model = BpeModel(path, vocab, merges_of_ranks(ranks), ignore_merges=True)
    return bpe_keys(files, model, tokens, special, pre or "hunyuan")


def read_tekken(files: TokenizerFiles, pre: str | None) -> Keys:
    """Return the keys of Mistral's `tekken.json`, in which special tokens have the first ids.

    Raises VocabError if the file is damaged, or if llama.cpp does not have its pattern.
    """
    path = files.folder / "tekken.json"
    if pre is not None:
        check_name(pre)
    tekken = files.read(path.name)
    config = files.part(tekken, "config", path.name)
    n_special = as_id(config.get("default_num_special_tokens"), f"{path}: special tokens")
    size = as_id(config.get("default_vocab_size"), f"{path}: 'default_vocab_size'")
    if not n_special <= size <= MAX_TOKENS:
        raise VocabError(
            f"{path}: 'default_num_special_tokens' is {n_special} of {size} tokens in total; at"
            f" most {MAX_TOKENS} are read"
        )
    ranks = _tekken_ranks(path, tekken, size - n_special)
    listed: Any = tekken.get("special_tokens")
    texts = {i: f"<SPECIAL_{i}>" for i in range(n_special)}
    if listed is None:
        texts |= dict(enumerate(_TEKKEN_SPECIAL.split()[:n_special]))
    for item in as_list(listed or [], f"{path}: 'special_tokens'"):
        entry = as_object(item, f"{path}: 'special_tokens'")
        texts[as_id(entry.get("rank"), f"{path}: {shown(entry)}")] = str(entry.get("token_str"))
    vocab = {letters(token): n_special + rank for token, rank in ranks.items()}
    laid = {i: Token(text, TokenType.NORMAL) for text, i in vocab.items()}
    laid |= {i: Token(text, TokenType.CONTROL) for i, text in texts.items()}
    tokens = lay_out(files.folder, laid, files.vocab_size)
    ids = {text: i for i, text in texts.items()}
    known = {name: ids[text] for name, text in _TEKKEN_NAMES.items() if text in ids}
    special = read_special(files, tokens, known)
    special.add = {"bos": "bos" in special.ids, "eos": False} | special.add
    model = BpeModel(path, vocab, merges_of_ranks(ranks), ignore_merges=True)
    if pre is None:
        pattern = config.get("pattern")
        traits = Traits(ignore_merges=True, clean_spaces=False, has_bos=True)
        found = recognise_splits(path, json.dumps(pattern), (str(pattern),), traits)
        return bpe_keys(files, model, tokens, special, found)
    return bpe_keys(files, model, tokens, special, pre)


def letters(token: bytes) -> str:
    """Spell bytes as in byte-level BPE, one letter per byte."""
    return token.decode("latin-1").translate(_LETTERS)


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[Merge]:
    """Return merges, best first, equivalent to joining by rank: one per token of several bytes.

    The bytes of a token are joined in the same order inside a longer piece as in the token itself,
    unless a join crosses the token's edge; so its last two parts are always the same. A token that
    joining does not produce has no merge.
    """
    merges: list[Merge] = []
    spelled = {token: letters(token) for token in ranks}
    for token in sorted(ranks, key=ranks.__getitem__):
        parts = _last_parts(ranks, token)
        if len(parts) == 2:
            merges.append((spelled[parts[0]], spelled[parts[1]]))
    return merges


def _last_parts(ranks: Mapping[bytes, int], token: bytes) -> list[bytes]:
    """Join the bytes of a token by tokens of lower rank until two parts are left, if possible.

    Of several pairs with the lowest rank the first is joined. A heap finds it, since a file may
    have a token of a million bytes.
    """
    n, none = len(token), ranks[token]
    ends = list(range(1, n + 1))  # end of the part that begins at a byte
    begins = list(range(-1, n))  # begin of the part before the one at a byte
    n_parts = n

    def pair(at: int) -> tuple[int, int, int] | None:
        """Return rank, begin and end of a part joined with the next one, if it is a token."""
        if at < 0 or ends[at] >= n:
            return None
        rank = ranks.get(token[at : ends[ends[at]]], none)
        return (rank, at, ends[ends[at]]) if rank < none else None

    heap = [found for at in range(n - 1) if (found := pair(at))]
    heapq.heapify(heap)
    alive = [True] * n
    while heap and n_parts > 2:
        _, at, end = heapq.heappop(heap)
        middle = ends[at]
        if not alive[at] or middle >= n or ends[middle] != end:
            continue  # one of the two has been joined with another part
        alive[middle] = False
        ends[at] = end
        if end < n:
            begins[end] = at
        n_parts -= 1
        for begin in (begins[at], at):
            if (found := pair(begin)) is not None:
                heapq.heappush(heap, found)
    starts = [at for at in range(n) if alive[at]]
    return [token[at : ends[at]] for at in starts]


def _tiktoken_ranks(path: Path) -> dict[bytes, int]:
    found: list[tuple[str, str, int]] = []
    wrong: list[str] = []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if match := re.fullmatch(r"(\S+) (\d{1,9})\r?", line):
            found.append((match[1], f"{path}:{number}", int(match[2])))
        elif line.strip():
            wrong.append(f"{path}:{number}: {shown(line)} is not a token in base64 and its rank")
    VocabError.raise_any(wrong[:5])
    return _ranks(path, found)


def _tekken_ranks(path: Path, tekken: dict[str, Any], n: int) -> dict[bytes, int]:
    """Return the ranks of the first `n` tokens; the file may hold more, for larger vocabularies."""
    where = f"{path}: 'vocab'"
    entries = [as_object(item, where) for item in as_list(tekken.get("vocab"), where)]
    if len(entries) < n:
        raise VocabError(
            f"{where}: has {len(entries)} tokens, but 'config' declares {n}; download the file"
            " again"
        )
    return _ranks(
        path,
        [
            (str(entry.get("token_bytes")), where, as_id(entry.get("rank"), where))
            for entry in entries[:n]
        ],
    )


def _ranks(path: Path, entries: list[tuple[str, str, int]]) -> dict[bytes, int]:
    """Return the rank of each token; entries are (base64, place in the file, rank)."""
    ranks: dict[bytes, int] = {}
    wrong: list[str] = []
    for text, where, rank in entries:
        try:
            token = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            wrong.append(f"{where}: {shown(text)} is not base64; download the file again")
            continue
        if not token or ranks.setdefault(token, rank) != rank:
            wrong.append(
                f"{where}: token {shown(token)} is repeated or empty; download the file again"
            )
    missing = sum(bytes([byte]) not in ranks for byte in range(256))
    if not wrong and missing:
        wrong.append(f"{path}: {missing} of the 256 bytes are not tokens; download the file again")
    if not wrong and set(ranks.values()) != set(range(len(ranks))):
        wrong.append(
            f"{path}: the ranks of {len(ranks)} tokens are not 0 to {len(ranks) - 1}; download the"
            " file again"
        )
    VocabError.raise_any(wrong[:5])
    return ranks
