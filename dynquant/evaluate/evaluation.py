"""Compares files with a reference: `dynquant eval`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

from dynquant.distribution import our_version
from dynquant.errors import EvalError, Problems
from dynquant.evaluate.base import open_base
from dynquant.evaluate.complete import complete
from dynquant.evaluate.figures import differences
from dynquant.evaluate.given import check_given, check_names
from dynquant.evaluate.intervals import LEVEL, RESAMPLES
from dynquant.evaluate.judged import judge
from dynquant.evaluate.results import Evaluation, Pair
from dynquant.evaluate.settings import Progress, Settings


def evaluate(
    files: Sequence[Path],
    reference: str,
    settings: Settings,
    *,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> Evaluation:
    """Compare GGUFs with a reference.

    files:     GGUFs; of a model in shards, any one
    reference: a GGUF, a checkpoint as `convert` reads it, or the file of an earlier reference
    command:   what the result records as the command that repeats it
    say:       called with messages, such as the size of the reference before it is made

    What is computed is stored window by window in the cache; the same call resumes from there. A
    file that llama.cpp cannot run does not keep the others from being computed.

    Raises DynquantError with all faults of the inputs before anything is computed, and with all
    files that llama.cpp could not run after the others.
    """
    report: Progress = progress or _no_progress
    say = say or (lambda _: None)
    check_names([*files, reference, *settings.texts, settings.cache])
    given = check_given(files, reference, settings.texts)
    base = complete(open_base(given, settings, report, say), settings, report, say)
    problems = Problems()
    attempts = [
        problems.attempt(lambda f=file: judge(*f, base, settings, report), EvalError)
        for file in given.files
    ]
    if any(attempts) and not all(attempts):
        say("the other files are computed; without these, the same command shows them at once")
    problems.raise_any(EvalError)
    judged = [judgement for judgement in attempts if judgement is not None]
    return Evaluation(
        evaluation=1,
        dynquant=our_version(),
        command=list(command),
        reference=base.header,
        distributions_sha256=base.sha256,
        system=base.system,
        level=LEVEL,
        resamples=RESAMPLES,
        files=[result for result, _ in judged],
        pairs=[
            Pair(a=a.name, b=b.name, **differences(of_a, of_b))
            for (a, of_a), (b, of_b) in combinations(judged, 2)
        ],
        warnings=list(base.warnings),
    )


def _no_progress(what: str, done: int, total: int) -> None:
    """Show nothing."""
    del what, done, total
