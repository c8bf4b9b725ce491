"""The tokenizers of ChatGLM2, ChatGLM3 and GLM-4-9B, whose own classes name tokens and splits."""

from __future__ import annotations

from typing import Any

from gguf import TokenType
from gguf.constants import Keys as Gguf

from dynquant.keys import Keys, boolean
from dynquant.vocab.files import TokenizerFiles
from dynquant.vocab.pretokenizer import check_name, named
from dynquant.vocab.ranks import read_rank_file
from dynquant.vocab.sentencepiece import read_sentencepiece
from dynquant.vocab.spm import check_model, spm_keys
from dynquant.vocab.tokens import Token

FILE = "tokenizer.model"
GLM4, CHATGLM = "ChatGLM4Tokenizer", "ChatGLMTokenizer"

# Tokens that the class has after the pieces of the SentencePiece model. Those of roles are
# ChatGLM3's; ChatGLM2, which has the same class, does not use their ids.
_AFTER = ("[MASK]", "[gMASK]", "[sMASK]", "sop", "eop")
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
_WORDS = ("sop", "eop")


def kind_of(files: TokenizerFiles) -> str | None:
    """Return the class of a tokenizer that is read here; None for any other."""
    stated: Any = files.tokenizer_config.get("tokenizer_class")
    is_read = stated in (GLM4, CHATGLM) and files.has(FILE) and not files.tokenizer
    return stated if is_read else None


def read_glm4(files: TokenizerFiles, pre: str | None) -> Keys:
    """Return the keys of GLM-4-9B's `tokenizer.model`, which has a line `base64 rank` per token.

    pre: llama.cpp's name of the pre-tokenizer; None for GLM-4's

    Raises VocabError if the file is damaged.
    """
    if pre is not None:
        check_name(pre)
    return read_rank_file(files, files.folder / FILE, pre or named("glm4"))


def read_chatglm(files: TokenizerFiles) -> Keys:
    """Return the keys of a ChatGLM2 or ChatGLM3: a SentencePiece model and the class's tokens.

    Raises VocabError if the file is damaged, or if the model has rules that llama.cpp has not.
    """
    path = files.folder / FILE
    model = read_sentencepiece(path)
    check_model(files, path, model)
    after = {
        i: Token(text, TokenType.CONTROL)
        for i, text in enumerate((*_AFTER, *_ROLES), len(model.pieces))
        if files.vocab_size is None or i < files.vocab_size
    }
    if any(token.text in _WORDS for token in after.values()):
        files.warn(
            f"{path}: the control tokens {' and '.join(map(repr, _WORDS))} are letters of words: in"
            " a text whose control tokens are parsed, such as a chat, llama.cpp finds them inside"
            " words too, and the model's own tokenizer does not"
        )
    keys = spm_keys(
        files,
        dict(enumerate(model.pieces)) | after,
        files.added_tokens,
        space_prefix=model.add_dummy_prefix,
        model_ids=model.special_ids,
    )
    return keys | {Gguf.Tokenizer.ADD_BOS: boolean(False)}
