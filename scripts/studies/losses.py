"""What files lose against a reference, for the studies: `dynquant eval` without its reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynquant.evaluate.base import open_base
from dynquant.evaluate.complete import complete
from dynquant.evaluate.given import check_given
from dynquant.evaluate.judged import judge
from dynquant.evaluate.settings import Settings

F64 = NDArray[np.float64]

WINDOW = 512
"""Tokens of a window; those in its second half are scored."""

N_PREDICT = 64
"""Tokens of an answer, at most."""


def prompts_of(text: Path, n: int, length: int = 200) -> tuple[str, ...]:
    """Return the beginnings of n long paragraphs of a text, evenly spaced."""
    long = [p for p in text.read_text("utf-8").split("\n") if len(p) > 2 * length]
    return tuple(p.strip()[:length] for p in long[:: max(1, len(long) // n)][:n])


class Losses:
    """A reference over the beginning of a text, and what files lose against it.

    bits, perplexity: of the reference
    """

    def __init__(
        self,
        reference: Path,
        text: Path,
        windows: int,
        threads: int | None,
        cache: Path,
        prompts: tuple[str, ...] = (),
    ) -> None:
        self._settings = Settings(
            cache=cache,
            texts=(text,),
            context=WINDOW,
            tokens=windows * WINDOW,
            threads=threads,
            prompts=prompts,
            n_predict=N_PREDICT,
            chat=False,
        )
        given = check_given([reference], str(reference), [text])
        base = open_base(given, self._settings, _ignore, lambda _: None)
        self._base = complete(base, self._settings, _ignore, lambda _: None)
        self.n_windows = len(base.windows)
        nll, _ = self.of(reference)
        self.perplexity = float(np.exp(nll.mean()))

    def answers_of(self, path: Path) -> float:
        """Return the mean number of tokens before an answer differs from the reference's.

        Answers are greedy, of at most N_PREDICT tokens.
        """
        result, _ = judge(path, path.name, self._base, self._settings, _ignore)
        return result.answers[0].first_divergence.value

    def of(self, path: Path) -> tuple[F64, F64]:
        """Return -ln of the next token's probability, and KL, both [n_windows, n_scored].

        Raises EvalError for a file that llama.cpp does not load.
        """
        _, measures = judge(path, path.name, self._base, self._settings, _ignore)
        return np.stack([m.nll for m in measures]), np.stack([m.kl for m in measures])


def _ignore(what: str, done: int, total: int) -> None:
    del what, done, total
