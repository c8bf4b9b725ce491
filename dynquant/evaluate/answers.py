"""Answers of a file and of the reference to the same prompts, compared."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynquant.arrays import I64
from dynquant.errors import EvalError
from dynquant.evaluate.distributions import F64
from dynquant.evaluate.generation import Answer
from dynquant.evaluate.intervals import intervals, share_interval
from dynquant.evaluate.results import Answers, Estimate, Example
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import SamplerPart

_EXAMPLES = 4
_EXAMPLE_CHARACTERS = 2000


@dataclass(frozen=True)
class PromptSet:
    """Prompts as texts and as the tokens that all files continue.

    chat: whether a chat template rendered them
    """

    texts: tuple[str, ...]
    tokens: tuple[tuple[int, ...], ...]
    chat: bool

    @property
    def sha256(self) -> str:
        """Return the hash of the tokens, each prompt preceded by its length, as int32."""
        digest = hashlib.sha256()
        for tokens in self.tokens:
            digest.update(np.array([len(tokens), *tokens], "<i4").tobytes())
        return digest.hexdigest()


def series_of(prompts: PromptSet, sampler: SamplerPart, n_predict: int) -> str:
    """Return the name of the series of answers to some prompts."""
    key = f"{prompts.sha256} {sampler.model_dump_json()} {n_predict}"
    return f"answers {hashlib.sha256(key.encode()).hexdigest()}"


def read_answers(store: Store, series: str, n: int, n_tokens: int) -> list[Answer] | None:
    """Return the stored answers to n prompts, which anybody may have written.

    Returns None if one is missing; raises EvalError if one is damaged or has tokens outside of the
    vocabulary of n_tokens.
    """
    found: list[Answer] = []
    for i in range(n):
        if (content := store.get(series, i)) is None:
            return None
        try:
            answer = Answer.from_bytes(content)
        except ValueError as e:
            raise EvalError(f"{store.path}: answer {i} is damaged; make it again") from e
        if not all(0 <= token < n_tokens for token in answer.tokens):
            raise EvalError(f"{store.path}: answer {i} has tokens outside of the vocabulary")
        found.append(answer)
    return found


def compared(
    prompts: PromptSet,
    sampler: SamplerPart,
    n_predict: int,
    reference: Sequence[Answer],
    answers: Sequence[Answer],
    pieces: Sequence[bytes],
) -> Answers:
    """Compare the answers of a file with those of the reference.

    pieces: the bytes of each token of the vocabulary
    """
    n = len(prompts.tokens)
    pairs = list(zip(reference, answers, strict=True))
    texts = [[_bytes_of(a, pieces) for a in both] for both in pairs]
    same = np.array([r == a for r, a in pairs], np.float64)
    places = np.array([_first_difference(r.tokens, a.tokens) for r, a in pairs], np.float64)

    def place(numbers: I64) -> F64:
        return places[numbers].mean(axis=-1)[None]

    middle, low, high = intervals(place, n)
    return Answers(
        prompts=n,
        prompts_sha256=prompts.sha256,
        chat=prompts.chat,
        sampler=sampler,
        n_predict=n_predict,
        identical=_share(int(same.sum()), n),
        first_divergence=Estimate(value=float(middle[0]), low=float(low[0]), high=float(high[0])),
        loops=_share(sum(a.loop is not None for a in answers), n),
        reference_loops=_share(sum(a.loop is not None for a in reference), n),
        dead_ends=sum(_is_dead_end(b) for _, b in texts),
        reference_dead_ends=sum(_is_dead_end(a) for a, _ in texts),
        replacement_characters=sum(_is_broken(b) for _, b in texts),
        reference_replacement_characters=sum(_is_broken(a) for a, _ in texts),
        not_finite=sum(not a.is_finite for a in answers),
        examples=[
            Example(
                prompt=prompts.texts[i],
                reference=_shown(texts[i][0]),
                answer=_shown(texts[i][1]),
                loops=answers[i].loop is not None,
            )
            for i in _chosen(answers)
        ],
    )


def _chosen(answers: Sequence[Answer]) -> list[int]:
    """Return which answers are shown: two loops and the first two others, or more of one kind."""
    is_loop = [answer.loop is not None for answer in answers]
    loops = [i for i, is_so in enumerate(is_loop) if is_so]
    others = [i for i, is_so in enumerate(is_loop) if not is_so]
    half = _EXAMPLES // 2
    return sorted([*loops[:half], *others, *loops[half:]][:_EXAMPLES])


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two answers have in common at their beginning."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def _bytes_of(answer: Answer, pieces: Sequence[bytes]) -> bytes:
    return b"".join(pieces[token] for token in answer.tokens)


def _is_dead_end(text: bytes) -> bool:
    return not text.decode(errors="replace").strip()


def _is_broken(text: bytes) -> bool:
    """Return whether a text has bytes that are not UTF-8; its last character may be incomplete."""
    try:
        text.decode()
    except UnicodeDecodeError as e:
        return e.reason != "unexpected end of data"
    return "\ufffd" in text.decode()


def _shown(text: bytes) -> str:
    return text.decode(errors="replace")[:_EXAMPLE_CHARACTERS]


def _share(n: int, total: int) -> Estimate:
    low, high = share_interval(n, total)
    return Estimate(value=n / total, low=low, high=high)
