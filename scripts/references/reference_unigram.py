"""Unigram tokenizers for scripts/references/make_references.py: T5's and XLM-RoBERTa's."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from reference_tokenizers import PROSE, Encode, write_json
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

# A small table of replacements in place of the many thousand entries of T5 and XLM-R: white space
# and wide letters become plain ones, ligatures and signs are decomposed.
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
        Path("rules.tsv").write_text(rules, "utf-8")  # a relative name, since the model records it
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
    """Return the table of replacements in a SentencePiece model, read by protobuf."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    proto.ParseFromString(model)
    return proto.normalizer_spec.precompiled_charsmap


def make_unigram(folder: Path, vocab_size: int = 240, *, xlm_r: bool = False) -> Encode:
    """T5's tokenizer, or XLM-R's with `xlm_r`: a model file and a tokenizer.json made from it.

    XLM-R adds <s> and </s> around a text, and its ids are one above those of the model file.
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
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if xlm_r:
        names |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
        names |= {"mask_token": "<mask>"}
    kind = "XLMRobertaTokenizer" if xlm_r else "T5Tokenizer"
    write_json(folder / "tokenizer_config.json", {**names, "tokenizer_class": kind})

    def encode(text: str) -> list[int]:
        """Encode as both libraries; U+2581 as sentencepiece, special tokens as tokenizers.

        tokenizers drops U+2581 in a text; sentencepiece parses no special tokens in a text.
        """
        fast = tokenizer.encode(text).ids
        slow = [
            special.index("<unk>") if i == processor.unk_id() else i + int(xlm_r)
            for i in processor.encode(text)
        ]
        slow = [*([0] if xlm_r else []), *slow, special.index("</s>")]
        if fast != slow and "\u2581" not in text and "<unk>" not in text:
            raise AssertionError(f"{text!r}: tokenizers has {fast}, sentencepiece {slow}")
        return slow if "\u2581" in text else fast

    return encode
