"""Computes what is missing of a reference, or of a file that is compared with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import psutil

from dynquant.arrays import F32
from dynquant.evaluate.distributions import (
    Distributions,
    Measures,
    compare,
    distil,
    joined,
    stacked,
    uniforms,
)
from dynquant.evaluate.generation import GROUP, generate, group_of
from dynquant.evaluate.reference import Header, distributions_of, read_header, windows_of
from dynquant.evaluate.runtime.context import Context
from dynquant.evaluate.runtime.model import LoadedModel
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import Cost, Generation, Run
from dynquant.evaluate.texts import Windows
from dynquant.evaluate.worker.windows import each_window

T = TypeVar("T")
Progress = Callable[[str, int, int], None]
"""Called with a step, and how much of how much of it is done."""

_TIMED_PROMPT, _TIMED_TOKENS = 32, 32
"""Tokens for the measurement of generation."""


@dataclass
class _Work:
    """An open task. results: the store of the file's measures; None if it is the reference."""

    task: Run
    reference: Store
    results: Store | None
    answers: Store
    header: Header
    windows: Windows
    progress: Progress


def run(task: Run, progress: Progress) -> Cost | None:
    """Compute the windows and answers that are missing; return what it cost, if it was measured."""
    with ExitStack() as stack:
        reference = stack.enter_context(Store.open(Path(task.reference)))
        results = stack.enter_context(Store.open(Path(task.results))) if task.results else None
        answers = stack.enter_context(Store.open(Path(task.answers)))
        header = read_header(reference)
        windows = windows_of(reference, header)
        work = _Work(task, reference, results, answers, header, windows, progress)
        todo = sorted(set(range(len(windows))) - (results or reference).numbers(task.windows))
        missing = [_missing_groups(work, generation) for generation in task.generations]
        if not todo and not any(missing):
            return None
        before = psutil.Process().memory_info().rss
        started = time.perf_counter()
        model = stack.enter_context(LoadedModel(Path(task.path), n_gpu_layers=task.gpu_layers))
        cost = _score(work, model, todo, started, before) if todo else None
        for generation, groups in zip(task.generations, missing, strict=True):
            if groups:
                _continue(work, model, generation, groups)
        return cost


def _score(
    work: _Work, model: LoadedModel, todo: Sequence[int], started: float, before: int
) -> Cost:
    """Run the windows through the model and store what is asked of them.

    started: when loading began
    before:  bytes of the process before
    """
    task = work.task
    with Context(model, n_ctx=work.windows.context, n_threads=task.threads) as context:
        loaded = time.perf_counter() - started
        if work.results is None:
            _distil_windows(work, context, todo)
        else:
            _compare_windows(work, context, todo, work.results)
        speed = context.n_decoded / context.seconds
        resident = psutil.Process().memory_info().rss - before
        return Cost(
            load_seconds=loaded,
            prompt_tokens_per_second=speed,
            generated_tokens_per_second=_generation_speed(work, context),
            resident_bytes=max(resident, 0),
            threads=task.threads,
        )


def _distil_windows(work: _Work, context: Context, todo: Sequence[int]) -> None:
    windows, tail = work.windows, work.header.tail

    def work_of(number: int) -> Callable[[int, F32], Distributions]:
        targets = windows.tokens[number, windows.first + 1 :]
        random = uniforms(number, windows.n_scored)

        def block(at: int, logits: F32) -> Distributions:
            part = slice(at, at + len(logits))
            return distil(logits, targets[part], tail=tail, random=random[part])

        return block

    for number, parts in _each_window(work, context, todo, work_of):
        work.reference.put(work.task.windows, number, stacked(parts).to_bytes())


def _compare_windows(work: _Work, context: Context, todo: Sequence[int], results: Store) -> None:
    def work_of(number: int) -> Callable[[int, F32], Measures]:
        reference = distributions_of(work.reference, work.header, number)
        return lambda at, logits: compare(reference, at, logits)

    for number, parts in _each_window(work, context, todo, work_of):
        results.put(work.task.windows, number, joined(parts).to_bytes())


def _each_window(
    work: _Work,
    context: Context,
    todo: Sequence[int],
    work_of: Callable[[int], Callable[[int, F32], T]],
) -> Iterator[tuple[int, list[T]]]:
    """Yield the results of each window, and report progress after it."""
    done, total = len(work.windows) - len(todo), len(work.windows)
    task = work.task
    work.progress("text", done, total)
    for found in each_window(
        context, work.windows, todo, work_of, threads=task.threads, name=task.path
    ):
        yield found
        done += 1
        work.progress("text", done, total)


def _generation_speed(work: _Work, context: Context) -> float:
    """Return the tokens of one answer per second, after a short prompt from the text."""
    context.forget()
    prompt = work.windows.tokens[0, : min(_TIMED_PROMPT, work.windows.context // 2)]
    n = min(_TIMED_TOKENS, work.windows.context - len(prompt))
    context.decode(prompt, range(len(prompt)), [0] * len(prompt), [False] * len(prompt))
    before = context.seconds
    for i in range(n):
        token = int(work.windows.tokens[0, len(prompt) + i])
        context.decode([token], [len(prompt) + i], [0], [True])
    return n / (context.seconds - before)


def _missing_groups(work: _Work, generation: Generation) -> list[int]:
    """Return the groups of prompts of which an answer is missing."""
    found = work.answers.numbers(generation.series)
    prompts = work.task.prompts
    return [
        number
        for number in range((len(prompts) + GROUP - 1) // GROUP)
        if not found.issuperset(group_of(number, prompts))
    ]


def _continue(
    work: _Work, model: LoadedModel, generation: Generation, groups: Sequence[int]
) -> None:
    """Continue the prompts of some groups and store the answers."""
    prompts = work.task.prompts
    settings = generation.sampler
    n_ctx = max(map(len, prompts)) + generation.n_predict
    n_sequences = min(GROUP, len(prompts))
    total = (len(prompts) + GROUP - 1) // GROUP
    what = "sampled answers" if settings.temperature > 0 else "greedy answers"
    with Context(
        model, n_ctx=n_ctx, n_threads=work.task.threads, n_sequences=n_sequences
    ) as context:
        work.progress(what, total - len(groups), total)
        for done, number in enumerate(groups, total - len(groups) + 1):
            members = group_of(number, prompts)
            answers = generate(
                model,
                context,
                [prompts[i] for i in members],
                members,
                settings,
                generation.n_predict,
            )
            for i, answer in zip(members, answers, strict=True):
                work.answers.put(generation.series, i, answer.to_bytes())
            work.progress(what, done, total)
