"""From tokenizer files to the `tokenizer.*` keys of a GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynquant.errors import NoVocabError, VocabError
from dynquant.keys import Keys
from dynquant.vocab.added import report_added
from dynquant.vocab.bpe import read_bpe
from dynquant.vocab.chatglm import GLM4, kind_of, read_chatglm, read_glm4
from dynquant.vocab.files import TokenizerFiles
from dynquant.vocab.gemma4 import is_gemma4, read_gemma4
from dynquant.vocab.loading import Trims
from dynquant.vocab.pretokenizer import is_byte_level
from dynquant.vocab.ranks import HUNYUAN, read_hunyuan, read_tekken, read_tiktoken
from dynquant.vocab.sentencepiece import read_sentencepiece
from dynquant.vocab.spm import read_spm, read_spm_json
from dynquant.vocab.unigram import is_unigram, read_unigram, read_unigram_json
from dynquant.vocab.wordpiece import read_wordpiece

__all__ = ["VocabReport", "read_vocab"]


@dataclass
class VocabReport:
    """What the keys of a vocabulary cannot hold.

    warnings: where llama.cpp's tokens will differ from those of the tokenizer
    trims:    tokens that remove the spaces around them in a text
    """

    warnings: tuple[str, ...] = ()
    trims: Trims = field(default_factory=Trims)


def read_vocab(
    folder: Path,
    config: Mapping[str, Any],
    *,
    pre: str | None = None,
    report: VocabReport | None = None,
) -> Keys:
    """Read a model folder's tokenizer as GGUF keys, in the order of llama.cpp's converter.

    config: config.json; its vocab_size is the number of tokens, and ids without a token are padded;
            its *_token_id apply if the tokenizer's files name no such token
    pre:    llama.cpp's name of the pre-tokenizer; None to recognise it by its rules
    report: receives what the keys cannot hold

    Byte-level BPE is read from tokenizer.json, vocab.json and merges.txt, tiktoken.model,
    hy.tiktoken, tekken.json, or GLM-4-9B's tokenizer.model; SentencePiece from its model file, or a
    tokenizer.json made from one; Gemma 4 from tokenizer.json; WordPiece from tokenizer.json or
    vocab.txt. Raises VocabError if files are damaged or contradictory, or the tokenizer is not
    supported; NoVocabError if there are no files.
    """
    files = TokenizerFiles(folder, config)
    keys = _read(files, pre)
    trims = report_added(files, keys)
    if report is not None:
        report.warnings, report.trims = tuple(files.warnings), trims
    return keys


def _read(files: TokenizerFiles, pre: str | None) -> Keys:
    folder = files.folder
    kind = files.model.get("type")
    if kind == "BPE" and is_byte_level(files.tokenizer):
        return read_bpe(files, pre)
    if kind == "WordPiece":
        _refuse_pre(pre, kind)
        return read_wordpiece(files)
    if kind == "Unigram":
        _refuse_pre(pre, kind)
        return read_unigram_json(files)
    if kind == "BPE" and files.model.get("byte_fallback") is True and is_gemma4(files):
        _refuse_pre(pre, "Gemma 4")
        return read_gemma4(files)
    if own := kind_of(files):
        if own == GLM4:
            return read_glm4(files, pre)
        _refuse_pre(pre, "SentencePiece")
        return read_chatglm(files)
    if files.sentencepiece and kind in (None, "BPE"):
        _refuse_pre(pre, "SentencePiece")
        model = read_sentencepiece(files.sentencepiece)
        read = read_unigram if is_unigram(model) else read_spm
        return read(files, files.sentencepiece, model)
    if kind == "BPE" and files.model.get("byte_fallback") is True:
        _refuse_pre(pre, "SentencePiece")
        return read_spm_json(files)
    if files.tokenizer:
        described = "BPE, neither byte-level nor with byte_fallback" if kind == "BPE" else kind
        raise VocabError(
            f"{folder / 'tokenizer.json'}: a tokenizer of kind {described!r} is not supported;"
            " byte-level BPE, SentencePiece, Unigram and WordPiece are"
        )
    if files.has("vocab.json") and files.has("merges.txt"):
        return read_bpe(files, pre)
    if files.has("tiktoken.model"):
        return read_tiktoken(files, pre)
    if files.has(HUNYUAN):
        return read_hunyuan(files, pre)
    if files.has("tekken.json"):
        return read_tekken(files, pre)
    if files.has("vocab.txt"):
        _refuse_pre(pre, "WordPiece")
        return read_wordpiece(files)
    raise NoVocabError(
        f"{folder}: no tokenizer; put tokenizer.json, tokenizer.model, tiktoken.model, tekken.json,"
        " vocab.txt, or vocab.json with merges.txt there"
    )


def _refuse_pre(pre: str | None, kind: str) -> None:
    if pre is not None:
        raise VocabError(f"--pre: {kind} tokenizers have no pre-tokenizer; remove --pre {pre}")
