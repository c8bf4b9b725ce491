"""Tokens of the language model whose embeddings a projector file needs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import cast

from gguf.constants import Keys as Gguf

from dynquant.arch.base import Form, Row
from dynquant.arch.towers.whole import Whole
from dynquant.errors import ArchitectureError
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped, rows_between
from dynquant.vocab import read_vocab

NAMES = r"language_model\.(model\.)?embed_tokens\."
"""The beginning of the embedding's stored names, for `Tower.shared`."""


def token_id(text: str, whole: Whole) -> int:
    """Return the id of a token.

    Raises ArchitectureError if the vocabulary has no such token; VocabError if it is not readable.
    """
    found = read_vocab(whole.folder, whole.config)[Gguf.Tokenizer.LIST].value
    tokens = cast("Sequence[str]", found)
    if text not in tokens:
        raise ArchitectureError(
            f"{whole.folder}: the vocabulary has no token {text!r}, whose embedding the projector"
            " needs; download the tokenizer again"
        )
    return tokens.index(text)


def embedding_row(number: int, name: str) -> Row:
    """Return the row of a token's embedding, a vector.

    number: the token's id
    """
    via = partial(_one_row, number=number)
    within = "model.language_model."
    return Row(
        within + "embed_tokens.weight",
        name,
        "vocab text",
        via=via,
        forms=(Form(within + "model.embed_tokens.weight", "vocab text", via=via),),
    )


def _one_row(source: TensorSource, number: int) -> TensorSource:
    return Reshaped(rows_between(source, number, number + 1), (source.shape[1],))
