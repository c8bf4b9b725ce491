"""Computes what is missing of a reference: its distributions and its answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from dynquant.conversion.disk import free_bytes
from dynquant.errors import EvalError
from dynquant.evaluate.answers import PromptSet, read_answers, series_of
from dynquant.evaluate.base import Base
from dynquant.evaluate.process import run
from dynquant.evaluate.reference import WINDOWS
from dynquant.evaluate.settings import Progress, Settings
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import Generation, Run
from dynquant.figures import size_text


def complete(
    base: Base, settings: Settings, progress: Progress, say: Callable[[str], None]
) -> Base:
    """Compute the windows and answers of the reference that are missing.

    Raises EvalError if the disk has too little space for them.
    """
    if base.gguf is not None:
        _compute(base, base.gguf, settings, progress, say)
    with Store.open(base.path) as store:
        base = replace(base, sha256=store.sha256(WINDOWS))
        n = len(base.prompts.tokens)
        if n and not all(
            read_answers(
                store,
                series_of(base.prompts, sampler, settings.n_predict),
                n,
                base.header.model.n_tokens,
            )
            for sampler in settings.samplers
        ):
            warning = (
                f"{base.path.name} has no answers to these prompts, which are skipped; give its"
                " model as --reference to generate them"
            )
            nothing = PromptSet((), (), base.prompts.chat)
            return replace(base, prompts=nothing, warnings=(*base.warnings, warning))
    return base


def _compute(
    base: Base, gguf: Path, settings: Settings, progress: Progress, say: Callable[[str], None]
) -> None:
    with Store.open(base.path) as store:
        is_said = len(store.numbers(WINDOWS)) == len(base.windows)

    def report(step: str, done: int, total: int) -> None:
        nonlocal is_said
        if done and not is_said:
            is_said = True
            say(_size(base.path, done, total))
        progress(f"{gguf.name}: {step}", done, total)

    generations = [
        Generation(
            series=series_of(base.prompts, sampler, settings.n_predict),
            sampler=sampler,
            n_predict=settings.n_predict,
        )
        for sampler in settings.samplers
        if base.prompts.tokens
    ]
    task = Run(
        path=str(gguf),
        threads=settings.n_threads,
        gpu_layers=settings.gpu_layers,
        reference=str(base.path),
        results=None,
        windows=WINDOWS,
        answers=str(base.path),
        prompts=[list(tokens) for tokens in base.prompts.tokens],
        generations=generations,
    )
    run(task, report)


def _size(path: Path, done: int, total: int) -> str:
    """Return a message with the size that a reference will have.

    Raises EvalError if the disk has too little space for it.
    """
    so_far = path.stat().st_size
    needed = round(so_far * total / done)
    if needed - so_far > (free := free_bytes(path.parent)):
        raise EvalError(
            f"{path}: needs about {size_text(needed)}, but the disk has {size_text(free)} free;"
            " use fewer --tokens, a larger --tail, or another --cache"
        )
    return f"{path}: the reference will have about {size_text(needed)}"
