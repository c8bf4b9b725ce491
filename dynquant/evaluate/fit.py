"""Whether files can be compared with a reference: the same tokens, of the same texts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynquant.errors import EvalError
from dynquant.evaluate.given import Given
from dynquant.evaluate.settings import Settings
from dynquant.evaluate.texts import Windows, cut
from dynquant.evaluate.vocabulary import Vocabulary


@dataclass(frozen=True)
class Expected:
    """What all files must have in common with the reference.

    name:          what messages call the reference
    tokens_sha256: of the windows; None if the texts are not given
    """

    name: str
    n_tokens: int
    vocabulary_sha256: str
    tokens_sha256: str | None


def windows_for(vocabulary: Vocabulary, given: Given, settings: Settings) -> Windows:
    """Return the windows of the texts by the tokens of a file."""
    return cut(
        given.texts,
        vocabulary.texts,
        context=settings.context,
        limit=settings.tokens,
        bos=vocabulary.facts.bos,
    )


def check_fit(
    files: Sequence[Vocabulary], expected: Expected, given: Given, settings: Settings
) -> None:
    """Raise EvalError with all files that cannot be compared with the reference."""
    EvalError.raise_any(
        problem for file in files for problem in _differences(file, expected, given, settings)
    )


def _differences(
    file: Vocabulary, expected: Expected, given: Given, settings: Settings
) -> Iterator[str]:
    n_tokens = file.facts.n_tokens
    if n_tokens != expected.n_tokens:
        yield (
            f"{file.path}: has {n_tokens:,} tokens, the reference {expected.name} has"
            f" {expected.n_tokens:,}; they are different models"
        )
    elif file.facts.vocabulary_sha256 != expected.vocabulary_sha256:
        yield (
            f"{file.path}: has other tokens than the reference {expected.name}; they are different"
            " models"
        )
    elif (
        expected.tokens_sha256 is not None
        and windows_for(file, given, settings).sha256 != expected.tokens_sha256
    ):
        yield (
            f"{file.path}: splits the texts into other tokens than the reference {expected.name};"
            " compare the tokenizer keys of both with `dynquant inspect`"
        )
