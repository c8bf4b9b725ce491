"""Free-running generation: a model continues prompts, several at a time.

Prompts are continued in groups of `GROUP`. The results of a group depend on nothing but the group:
llama.cpp's arithmetic differs in the last bits with the number of tokens in a batch, and a resumed
run must give the same tokens as one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dynquant.evaluate.loops import loop_of
from dynquant.evaluate.runtime.context import PIECE, Context
from dynquant.evaluate.runtime.model import LoadedModel
from dynquant.evaluate.tasks import SamplerPart

GROUP = 8


@dataclass(frozen=True)
class Answer:
    """What a model generated after a prompt.

    tokens:    without the end token
    is_ended:  whether an end token followed
    is_finite: whether all logits were numbers; generation stops where one is not, except that a
               model may exclude tokens with minus infinity
    """

    tokens: tuple[int, ...]
    is_ended: bool
    is_finite: bool = True

    def to_bytes(self) -> bytes:
        """Return int32: the two flags, then the tokens."""
        return np.array([self.is_ended, self.is_finite, *self.tokens], "<i4").tobytes()

    @classmethod
    def from_bytes(cls, content: bytes) -> Answer:
        """Read what `to_bytes` wrote; raise ValueError if it is damaged."""
        is_ended, is_finite, *tokens = np.frombuffer(content, "<i4").tolist()
        return cls(tuple(tokens), bool(is_ended), bool(is_finite))

    @property
    def loop(self) -> int | None:
        """Return the length of the pattern that the answer repeats at its end, or None."""
        return None if self.is_ended else loop_of(self.tokens)


def group_of(number: int, prompts: Sequence[Sequence[int]]) -> range:
    """Return the numbers of the prompts of a group."""
    return range(number * GROUP, min((number + 1) * GROUP, len(prompts)))


def generate(
    model: LoadedModel,
    context: Context,
    prompts: Sequence[Sequence[int]],
    streams: Sequence[int],
    settings: SamplerPart,
    n_predict: int,
) -> list[Answer]:
    """Continue at most GROUP prompts at once.

    context:   has a sequence for each prompt, with room for it and its answer
    streams:   for each prompt, the number of its random numbers
    n_predict: tokens of an answer, at most
    """
    context.forget()
    chains = context.samplers(settings, streams)
    try:
        return _generate(model, context, prompts, chains, n_predict)
    finally:
        context.free(chains)


def _generate(
    model: LoadedModel,
    context: Context,
    prompts: Sequence[Sequence[int]],
    chains: Sequence[int],
    n_predict: int,
) -> list[Answer]:
    answers: list[list[int]] = [[] for _ in prompts]
    ended, finite = [False] * len(prompts), [True] * len(prompts)

    def choose(sequence: int, index: int) -> bool:
        """Add the next token of a sequence; return whether another one follows."""
        if not np.isfinite(context.logits_at(index).max()):
            finite[sequence] = False
            return False
        token = context.sample(chains[sequence], index)
        if model.is_end(token):
            ended[sequence] = True
            return False
        answers[sequence].append(token)
        return len(answers[sequence]) < n_predict

    active: list[int] = []
    for sequence, prompt in enumerate(prompts):
        last = _read(context, sequence, prompt)
        if choose(sequence, last):
            active.append(sequence)
    while active:
        context.decode(
            [answers[s][-1] for s in active],
            [len(prompts[s]) + len(answers[s]) - 1 for s in active],
            active,
            [True] * len(active),
        )
        active = [s for index, s in enumerate(active) if choose(s, index)]
    return [
        Answer(tuple(tokens), is_ended, is_finite)
        for tokens, is_ended, is_finite in zip(answers, ended, finite, strict=True)
    ]


def _read(context: Context, sequence: int, prompt: Sequence[int]) -> int:
    """Process a prompt; return the index of its last token in the last batch."""
    last = 0
    for start in range(0, len(prompt), PIECE):
        piece = prompt[start : start + PIECE]
        last = len(piece) - 1
        is_end = start + len(piece) == len(prompt)
        context.decode(
            piece,
            range(start, start + len(piece)),
            [sequence] * len(piece),
            [is_end and i == last for i in range(len(piece))],
        )
    return last
