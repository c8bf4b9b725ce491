"""One file, compared with a reference."""

from __future__ import annotations

from pathlib import Path

from dynquant.errors import EvalError
from dynquant.evaluate.answers import compared, read_answers, series_of
from dynquant.evaluate.base import Base
from dynquant.evaluate.distributions import Measures
from dynquant.evaluate.figures import figures_of
from dynquant.evaluate.files import hashed
from dynquant.evaluate.generation import Answer
from dynquant.evaluate.process import run
from dynquant.evaluate.results import Answers, Domain, FileResult
from dynquant.evaluate.settings import Progress, Settings
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import Cost, Generation, Run


def judge(
    path: Path, name: str, base: Base, settings: Settings, progress: Progress
) -> tuple[FileResult, list[Measures]]:
    """Compare a file with a reference; return its result and the measures of each window.

    name: what reports call it
    """
    gguf = hashed(path, lambda done, total: progress(f"{name}: hashing", done, total))
    series = gguf.identity
    results = settings.cache / f"{base.sha256[:16]}.results"
    with Store.create(results, {"results": 1, "reference": base.sha256}) as store:
        n, n_tokens = len(base.prompts.tokens), base.header.model.n_tokens
        with Store.open(base.path) as of_base:
            theirs = [
                (sampler, read_answers(of_base, key, n, n_tokens))
                for sampler in settings.samplers
                if base.prompts.tokens
                for key in [series_of(base.prompts, sampler, settings.n_predict)]
            ]
        generations = [
            Generation(
                series=f"{series} {series_of(base.prompts, sampler, settings.n_predict)}",
                sampler=sampler,
                n_predict=settings.n_predict,
            )
            for sampler, answers in theirs
            if answers is not None
        ]
        cost = run(
            Run(
                path=str(path),
                threads=settings.n_threads,
                gpu_layers=settings.gpu_layers,
                reference=str(base.path),
                results=str(results),
                windows=series,
                answers=str(results),
                prompts=[list(tokens) for tokens in base.prompts.tokens],
                generations=generations,
            ),
            lambda step, done, total: progress(f"{name}: {step}", done, total),
        )
        if cost is not None:
            store.put(f"{series} cost", 0, cost.model_dump_json().encode())
        measures = [_measures(store, series, i) for i in range(len(base.windows))]
        costs = store.get(f"{series} cost", 0)
        answers = [
            _answers(base, store, generation, known)
            for generation, known in zip(
                generations, [a for _, a in theirs if a is not None], strict=True
            )
        ]
    return (
        FileResult(
            name=name,
            files=list(gguf.files),
            bytes=gguf.n_bytes,
            bits_per_weight=gguf.bits_per_weight,
            figures=figures_of(measures),
            domains=_domains(base, measures),
            answers=answers,
            cost=Cost.model_validate_json(costs) if costs else None,
        ),
        measures,
    )


def _measures(store: Store, series: str, number: int) -> Measures:
    content = store.get(series, number)
    assert content is not None, "a run without an error computes all windows"
    try:
        return Measures.from_bytes(content)
    except ValueError as e:
        raise EvalError(f"{store.path}: window {number} is damaged: {e}; remove this file") from e


def _domains(base: Base, measures: list[Measures]) -> list[Domain]:
    """Return the figures of each text; none if there is only one."""
    texts = base.header.texts
    if len(texts) == 1:
        return []
    return [
        Domain(
            text=text.name,
            figures=figures_of(
                [m for m, t in zip(measures, base.windows.texts, strict=True) if t == i]
            ),
        )
        for i, text in enumerate(texts)
        if text.windows
    ]


def _answers(base: Base, store: Store, generation: Generation, theirs: list[Answer]) -> Answers:
    own = read_answers(store, generation.series, len(theirs), base.header.model.n_tokens)
    assert own is not None, "a run without an error computes all answers"
    return compared(
        base.prompts, generation.sampler, generation.n_predict, theirs, own, base.pieces
    )
