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


class Losses:
    """A reference over the beginning of a text, and what files lose against it.

    bits, perplexity: of the reference
    """

    def __init__(
        self, reference: Path, text: Path, windows: int, threads: int | None, cache: Path
    ) -> None:
        self._settings = Settings(
            cache=cache, texts=(text,), context=WINDOW, tokens=windows * WINDOW, threads=threads
        )
        given = check_given([reference], str(reference), [text])
        base = open_base(given, self._settings, _ignore, lambda _: None)
        self._base = complete(base, self._settings, _ignore, lambda _: None)
        self.n_windows = len(base.windows)
        nll, _ = self.of(reference)
        self.perplexity = float(np.exp(nll.mean()))

    def of(self, path: Path) -> tuple[F64, F64]:
        """Return -ln of the next token's probability, and KL, both [n_windows, n_scored].

        Raises EvalError for a file that llama.cpp does not load.
        """
        _, measures = judge(path, path.name, self._base, self._settings, _ignore)
        return np.stack([m.nll for m in measures]), np.stack([m.kl for m in measures])


def _ignore(what: str, done: int, total: int) -> None:
    del what, done, total
