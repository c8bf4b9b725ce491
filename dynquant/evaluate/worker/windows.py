"""The windows of a text through a model, several rows of logits at a time in each thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from dynquant.arrays import F32
from dynquant.errors import EvalError
from dynquant.evaluate.distributions import NotFiniteError
from dynquant.evaluate.runtime.context import Context
from dynquant.evaluate.texts import Windows

T = TypeVar("T")

_BLOCK = 1 << 19
"""Logits that one thread works on at a time: 2 MB stay in its cache."""


def each_window(
    context: Context,
    windows: Windows,
    numbers: Sequence[int],
    work_of: Callable[[int], Callable[[int, F32], T]],
    *,
    threads: int,
    name: str,
) -> Iterator[tuple[int, list[T]]]:
    """Run windows through a model, and work on the logits of all scored positions.

    work_of: returns the work on a window, by its number; it is called in threads with the first
             position, counted from the first scored one, and float32 [n_positions, n_tokens]
    name:    what errors call the file

    Yields the number of each window, and the results in the order of positions.
    """
    with ThreadPoolExecutor(threads) as pool:
        for number in numbers:
            work = work_of(number)
            found: list[T] = []
            for start, logits in context.logits(windows.tokens[number], windows.first):
                n, n_tokens = logits.shape
                rows = max(1, _BLOCK // n_tokens)
                jobs = [
                    pool.submit(work, start - windows.first + at, logits[at : at + rows])
                    for at in range(0, n, rows)
                ]
                try:
                    found += [job.result() for job in jobs]
                except NotFiniteError:
                    raise EvalError(
                        f"{name}: llama.cpp computes logits that are not finite in window"
                        f" {number}; the file or its model is damaged"
                    ) from None
            yield number, found
