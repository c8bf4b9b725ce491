"""SentencePiece and WordPiece tokenizers in tokenizer.json for make_references.py."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from reference_tokenizers import PROSE, Encode, write_json
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

SPACE = "\u2581"  # stands for a space in SentencePiece's tokens
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def train_pieces(n_learned: int, prefix: str) -> list[str]:
    """Learn the pieces of a SentencePiece BPE model, best first; its letters come last.

    prefix: added before every text
    """
    tokenizer = Tokenizer(models.BPE())
    # Words keep the space before them, and digits are separate, as in the published models.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(SPACE, "merged_with_next"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=n_learned, show_progress=False)
    tokenizer.train_from_iterator([prefix + text.replace(" ", SPACE) for text in PROSE], trainer)
    learned = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    texts = [text for text, _ in learned]
    return sorted(texts, key=lambda text: len(text) == 1)  # stable: letters were first


def all_merges(pieces: list[str]) -> list[list[str]]:
    """Return all pairs that form a piece, in the order of these pieces."""
    known = set(pieces)
    return [
        [piece[:k], piece[k:]]
        for piece in pieces
        for k in range(1, len(piece))
        if piece[:k] in known and piece[k:] in known
    ]


def save_spm_json(
    folder: Path,
    special: list[str],
    pieces: list[str],
    rules: dict[str, Any],
    added: dict[str, bool],
) -> Tokenizer:
    """Write a tokenizer.json as converters make it from a SentencePiece BPE model.

    special: the first tokens, all of them special
    rules:   normalizer, pre_tokenizer and decoder
    added:   further tokens that are found in a text first, and whether they are special; those
             that are not pieces come after all pieces
    """
    vocab = {text: i for i, text in enumerate(dict.fromkeys([*special, *BYTES, *pieces]))}
    plain = json.loads(Tokenizer(models.BPE()).to_str())
    plain["model"] |= {
        "vocab": vocab,
        "merges": all_merges(pieces),
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": "<unk>",
    }
    tokenizer = Tokenizer.from_str(json.dumps(plain | rules))
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    tokenizer.add_tokens(
        [AddedToken(text, normalized=False, special=s) for text, s in added.items()]
    )
    bos = tokenizer.token_to_id("<bos>") if "<bos>" in special else tokenizer.token_to_id("<s>")
    first = tokenizer.id_to_token(bos)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A", pair=f"{first} $A {first}:1 $B:1", special_tokens=[(first, bos)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    return tokenizer


GEMMA_RULES: dict[str, Any] = {
    "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
    "pre_tokenizer": {
        "type": "Split",
        "pattern": {"String": " "},
        "behavior": "MergedWithPrevious",
        "invert": False,
    },
    "decoder": {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ],
    },
}


def make_gemma_bpe(
    folder: Path, vocab_size: int = 448, *, spaces_are_added: bool = False
) -> Encode:
    """Gemma: no space before a text, runs of line ends and spaces as tokens, a tab for <0x09>.

    spaces_are_added: list runs of spaces as added tokens too, as in published files; this affects
                      only the letter U+2581 in a text
    """
    lines, spaces = ["\n" * n for n in range(1, 5)], [SPACE * n for n in range(2, 6)]
    runs = lines + spaces
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    plain = runs if spaces_are_added else lines
    turns = {"<start_of_turn>": True, "<end_of_turn>": True, **dict.fromkeys(plain, False)}
    n_learned = vocab_size - len(special) - len(BYTES) - len(runs) - 2
    pieces = [*runs, *train_pieces(n_learned, "")]
    tokenizer = save_spm_json(folder, special, pieces, GEMMA_RULES, turns)
    tab_for_byte(folder)
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<bos>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "sp_model_kwargs": {},
            "tokenizer_class": "GemmaTokenizer",
            "unk_token": "<unk>",
        },
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids


def make_gemma4_bpe(folder: Path, vocab_size: int = 480) -> Encode:
    """Gemma 4: merges over whole texts, so that tokens span words and a token has one merge.

    Runs of line ends and of spaces are merged, a tab is <0x09>, the tokens of tool calls are
    special, and a tag is an added token that is not.
    """
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    turns = ["<|turn>", "<turn|>", "<|image|>", "<|think|>"]
    tools = ["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>"]
    tools += ["<tool_response|>", '<|"|>']
    tag = "<table>"
    runs = ["\n\n", "\n\n\n", "\n\n\n\n", SPACE * 2, SPACE * 3, SPACE * 4]
    doubled = [["\n", "\n"], ["\n\n", "\n"], ["\n\n", "\n\n"]]
    doubled += [[run[0].replace("\n", SPACE), run[1].replace("\n", SPACE)] for run in doubled]
    n_learned = vocab_size - len([*special, *turns, *tools, tag, *BYTES, "\n", *runs])
    learned = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=n_learned, show_progress=False)
    # Without a pre-tokenizer a text is one word; each is cut to what the trainer takes.
    learned.train_from_iterator([text.replace(" ", SPACE) for text in PROSE], trainer)
    merges = json.loads(learned.to_str())["model"]["merges"]
    pieces = sorted(learned.get_vocab().items(), key=lambda item: item[1])
    texts = [*special, *turns, *tools, tag, *BYTES, "\n", *runs, *(text for text, _ in pieces)]
    vocab = {text: i for i, text in enumerate(texts)}
    plain = json.loads(Tokenizer(models.BPE()).to_str())
    plain["model"] |= {
        "vocab": vocab,
        "merges": [*doubled, *merges],
        "byte_fallback": True,
        "fuse_unk": True,
        "unk_token": "<unk>",
    }
    tokenizer = Tokenizer.from_str(json.dumps(plain | GEMMA_RULES))
    named = [*special, *turns, *tools]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in named])
    tokenizer.add_tokens([AddedToken(tag, normalized=False, special=False)])
    first = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", pair="<bos> $A <bos>:1 $B:1", special_tokens=[("<bos>", first)]
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    tab_for_byte(folder)
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "extra_special_tokens": [*turns, *tools],
            "mask_token": "<mask>",
            "pad_token": "<pad>",
            "tokenizer_class": "GemmaTokenizer",
            "unk_token": "<unk>",
        },
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return lambda text: tokenizer.encode(text).ids


def tab_for_byte(folder: Path) -> None:
    """Replace <0x09> by a tab, as in Gemma's newer tokenizers."""
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text("utf-8"))
    vocab = plain["model"]["vocab"]
    plain["model"]["vocab"] = {"\t" if t == "<0x09>" else t: i for t, i in vocab.items()}
    path.write_text(json.dumps(plain, ensure_ascii=False), "utf-8")


def make_spm_json(folder: Path, vocab_size: int = 448) -> Encode:
    """Llama 2 and Phi-3 without tokenizer.model: a space before every text, fallback to bytes."""
    special = ["<unk>", "<s>", "</s>"]
    rules = {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }
    pieces = train_pieces(vocab_size - len(special) - len(BYTES), SPACE)
    tokenizer = save_spm_json(folder, special, pieces, rules, {})
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "clean_up_tokenization_spaces": False,
            "eos_token": "</s>",
            "legacy": True,
            "tokenizer_class": "LlamaTokenizer",
            "unk_token": "<unk>",
        },
    )
    return lambda text: tokenizer.encode(text).ids


def frequent_pieces(normalizer: normalizers.Normalizer, n: int) -> list[str]:
    """Return `n` pieces of the prose's words: all letters, then the pieces that save most letters.

    The WordPiece trainer of tokenizers is not used, because its results vary from run to run.
    """
    split = pre_tokenizers.BertPreTokenizer().pre_tokenize_str
    counts: Counter[str] = Counter()
    for text in PROSE:
        for word, _ in split(normalizer.normalize_str(text)):
            for start in range(len(word)):
                inside = "##" if start else ""
                counts.update(inside + word[start:end] for end in range(start + 1, len(word) + 1))

    def saved(piece: str) -> tuple[int, str]:
        letters = len(piece.removeprefix("##"))
        return (-(letters - 1) * counts[piece] if letters > 1 else -(10**9), piece)

    return sorted(counts, key=saved)[:n]


def make_wordpiece(folder: Path, vocab_size: int = 448, *, lowercase: bool = True) -> Encode:
    """BERT: capitals and accents removed if `lowercase`, [CLS] before a text, [SEP] after it."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    pieces = frequent_pieces(normalizer, vocab_size - len(special))
    vocab = {text: i for i, text in enumerate(special + pieces)}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    cls, sep = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    texts = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    (folder / "vocab.txt").write_text("".join(f"{text}\n" for text, _ in texts), "utf-8")
    write_json(
        folder / "tokenizer_config.json",
        {
            "clean_up_tokenization_spaces": True,
            "cls_token": "[CLS]",
            "do_lower_case": lowercase,
            "mask_token": "[MASK]",
            "model_max_length": 512,
            "pad_token": "[PAD]",
            "sep_token": "[SEP]",
            "strip_accents": None,
            "tokenize_chinese_chars": True,
            "tokenizer_class": "BertTokenizer",
            "unk_token": "[UNK]",
        },
    )
    return lambda text: tokenizer.encode(text).ids
