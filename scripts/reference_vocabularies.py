"""Tokenizers of other kinds for scripts/make_references.py: Gemma's, T5's, XLM-R's and BERT's."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import sentencepiece
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

    prefix: what stands before every text
    """
    tokenizer = Tokenizer(models.BPE())
    # Words keep the space before them, and numbers fall apart, as in the published models.
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
    """Return every way to make a piece of two, in the order of the pieces they make."""
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
    """Write a tokenizer.json as converters make it of a SentencePiece BPE model.

    special: the first tokens, all of them special
    rules:   normalizer, pre_tokenizer and decoder
    added:   further tokens that are taken out of a text first, and whether they are special;
             those that are no pieces come after all pieces
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
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer


def make_gemma_bpe(
    folder: Path, vocab_size: int = 448, *, spaces_are_added: bool = False
) -> Encode:
    """Gemma: no space before a text, runs of line ends and spaces as tokens, a tab for <0x09>.

    spaces_are_added: list the runs of spaces among the added tokens too, as published files do;
                      it changes what becomes of the letter U+2581 in a text, and nothing else
    """
    lines, spaces = ["\n" * n for n in range(1, 5)], [SPACE * n for n in range(2, 6)]
    runs = lines + spaces
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    plain = runs if spaces_are_added else lines
    turns = {"<start_of_turn>": True, "<end_of_turn>": True, **dict.fromkeys(plain, False)}
    rules = {
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
    n_learned = vocab_size - len(special) - len(BYTES) - len(runs) - 2
    pieces = [*runs, *train_pieces(n_learned, "")]
    tokenizer = save_spm_json(folder, special, pieces, rules, turns)
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


def tab_for_byte(folder: Path) -> None:
    """Spell the byte of a tab as a tab, as Gemma's newer tokenizers do."""
    path = folder / "tokenizer.json"
    plain = json.loads(path.read_text("utf-8"))
    vocab = plain["model"]["vocab"]
    plain["model"]["vocab"] = {"\t" if t == "<0x09>" else t: i for t, i in vocab.items()}
    path.write_text(json.dumps(plain, ensure_ascii=False), "utf-8")


def make_spm_json(folder: Path, vocab_size: int = 448) -> Encode:
    """Llama 2 and Phi-3 without tokenizer.model: a space before every text, bytes to fall back."""
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


def make_wordpiece(folder: Path, vocab_size: int = 448, *, lowercase: bool = True) -> Encode:
    """BERT: words apart, capitals and accents gone if `lowercase`, [CLS] before, [SEP] after."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, normalized=False) for t in special],
        show_progress=False,
    )
    tokenizer.train_from_iterator(PROSE, trainer)
    cls, sep = (tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
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


# What the small table of replacements does, for a T5's and XLM-R's of many thousand entries: white
# space and wide letters become plain ones, ligatures and signs fall apart.
REPLACEMENTS = {
    **dict.fromkeys("\t\n\r\u00a0\u3000", " "),
    **{chr(0xFEE0 + code): chr(code) for code in range(0x21, 0x7F)},
    "\ufb01": "fi",
    "\u2122": "TM",
    "\u00bd": "1\u20442",
    "\u2026": "...",
}


def train_unigram(vocab_size: int, **ids: int) -> bytes:
    """Train a SentencePiece unigram model with a table of replacements, and return it."""
    rules = "".join(
        f"{ord(a):X}\t{' '.join(f'{ord(c):X}' for c in b)}\n" for a, b in REPLACEMENTS.items()
    )
    model = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("rules.tsv").write_text(rules, "utf-8")  # a relative name: the model notes it
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(PROSE),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            normalization_rule_tsv="rules.tsv",
            num_threads=1,
            minloglevel=2,
            **ids,
        )
    return model.getvalue()


def charsmap_of(model: bytes) -> bytes:
    """Return the table of replacements that a SentencePiece model holds, asked from protobuf."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    return proto.normalizer_spec.precompiled_charsmap


def make_unigram(folder: Path, vocab_size: int = 240, *, xlm_r: bool = False) -> Encode:
    """T5's tokenizer, or XLM-R's with `xlm_r`: a model file and a tokenizer.json made of it.

    XLM-R puts <s> and </s> around a text and has every piece one id further than the model file.
    """
    model = (
        train_unigram(vocab_size)
        if xlm_r
        else train_unigram(vocab_size, pad_id=0, eos_id=1, unk_id=2, bos_id=-1)
    )
    (folder / ("sentencepiece.bpe.model" if xlm_r else "spiece.model")).write_bytes(model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    pieces = [
        (processor.id_to_piece(i), processor.get_score(i)) for i in range(processor.vocab_size())
    ]
    special = ["<pad>", "</s>", "<unk>"]
    if xlm_r:
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        pieces = [*((text, 0.0) for text in special[:4]), *pieces[3:], ("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, special.index("<unk>"), False))
    charsmap = base64.b64encode(charsmap_of(model)).decode()
    plain = json.loads(tokenizer.to_str())
    plain["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    tokenizer = Tokenizer.from_str(json.dumps(plain))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False) for text in special])
    ends = [(text, tokenizer.token_to_id(text)) for text in ("<s>", "</s>") if text in special]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>" if xlm_r else "$A </s>",
        pair="<s> $A </s> </s> $B </s>" if xlm_r else "$A </s> $B </s>",
        special_tokens=ends,
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if xlm_r:
        names |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
        names |= {"mask_token": "<mask>"}
    kind = "XLMRobertaTokenizer" if xlm_r else "T5Tokenizer"
    write_json(folder / "tokenizer_config.json", {**names, "tokenizer_class": kind})
    return lambda text: tokenizer.encode(text).ids
