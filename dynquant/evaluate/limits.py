"""Limits that a user sets for the figures of files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dynquant.evaluate.results import Evaluation, FileResult


@dataclass(frozen=True)
class Limits:
    """Limits; None is no limit.

    max_kl:        of the mean KLD, nats
    max_ppl_ratio: of the perplexity divided by the reference's
    min_same_top:  of the share of tokens after which both choose the same
    no_loops:      whether answers may not loop more often than the reference's
    """

    max_kl: float | None = None
    max_ppl_ratio: float | None = None
    min_same_top: float | None = None
    no_loops: bool = False


def exceeded(evaluation: Evaluation, limits: Limits) -> Iterator[str]:
    """Yield a message for each limit that a file exceeds."""
    for file in evaluation.files:
        yield from _of_file(file, limits)


def _of_file(file: FileResult, limits: Limits) -> Iterator[str]:
    figures = file.figures
    kld = figures.mean_kld.value
    if limits.max_kl is not None and kld > limits.max_kl:
        yield f"{file.name}: mean KLD is {kld:.6g}, the limit is {limits.max_kl:g}"
    if limits.max_ppl_ratio is not None and figures.ppl_ratio.value > limits.max_ppl_ratio:
        yield (
            f"{file.name}: perplexity is {figures.ppl_ratio.value:.6g} times the reference's, the"
            f" limit is {limits.max_ppl_ratio:g}"
        )
    if limits.min_same_top is not None and figures.same_top.value < limits.min_same_top:
        yield (
            f"{file.name}: same top p is {figures.same_top.value:.3%}, the limit is"
            f" {limits.min_same_top:.3%}"
        )
    for answers in file.answers if limits.no_loops else ():
        if answers.loops.value > answers.reference_loops.value:
            how = "sampled" if answers.sampler.temperature > 0 else "greedy"
            yield (
                f"{file.name}: {answers.loops.value:.1%} of {answers.prompts} {how} answers loop,"
                f" {answers.reference_loops.value:.1%} of the reference's"
            )
