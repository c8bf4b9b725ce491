"""Logits, references and texts for the tests of `dynquant eval`."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynquant.arrays import F32, I32
from dynquant.evaluate.answers import PromptSet, compared
from dynquant.evaluate.distributions import (
    Distributions,
    Measures,
    compare,
    distil,
    uniforms,
)
from dynquant.evaluate.figures import differences, figures_of
from dynquant.evaluate.generation import Answer
from dynquant.evaluate.reference import TOKENS, WINDOWS, FilePart, Header
from dynquant.evaluate.results import Domain, Evaluation, FileResult, Pair
from dynquant.evaluate.store import Store
from dynquant.evaluate.tasks import Cost, SamplerPart
from dynquant.evaluate.texts import Windows

F64 = NDArray[np.float64]


def random_logits(n: int, n_tokens: int, seed: int, spread: float = 3.0) -> F32:
    """Return Gaussian logits; at a spread of 3 a few tokens have most of the probability."""
    rng = np.random.default_rng(seed)
    return (spread * rng.standard_normal((n, n_tokens))).astype(np.float32)


def changed(logits: F32, seed: int, by: float = 0.3) -> F32:
    """Return logits as of a quantized file: with noise."""
    rng = np.random.default_rng(seed)
    return (logits + by * rng.standard_normal(logits.shape)).astype(np.float32)


def random_targets(n: int, n_tokens: int, seed: int = 5) -> I32:
    return np.random.default_rng(seed).integers(0, n_tokens, n).astype(np.int32)


def exact_logs(logits: F32) -> F64:
    """Return log-probabilities in double precision."""
    x = logits.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    logs: F64 = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return logs


def exact_kl(reference: F32, file: F32) -> F64:
    """Return the KL divergence at each position, over all tokens, in double precision."""
    p, q = exact_logs(reference), exact_logs(file)
    is_possible = np.isfinite(p)
    gaps = np.where(is_possible, np.where(is_possible, p, 0) - q, 0)
    divergence: F64 = (np.exp(p) * gaps).sum(axis=1)
    return divergence


def distilled(logits: F32, *, tail: float, window: int = 0) -> Distributions:
    """Return the stored form of logits, with random targets."""
    n, n_tokens = logits.shape
    random = uniforms(window, n)
    return distil(logits, random_targets(n, n_tokens), tail=tail, random=random)


def measures(n_windows: int, n: int, seed: int, by: float = 0.3) -> list[Measures]:
    """Return the measures of some windows of a changed file, of 40 tokens."""
    found: list[Measures] = []
    for window in range(n_windows):
        logits = random_logits(n, 40, 1000 + window)
        reference = distilled(logits, tail=0, window=window)
        found.append(compare(reference, 0, changed(logits, seed + window, by)))
    return found


def same(a: Any, b: Any) -> bool:
    """Return whether all arrays of two dataclasses are equal, with their types."""
    pairs = [(getattr(a, name), getattr(b, name)) for name in vars(a)]
    return all(np.array_equal(x, y) and x.dtype == y.dtype for x, y in pairs)


def header_of(windows: Windows, n_tokens: int, **changes: Any) -> dict[str, Any]:
    """Return the header of a reference, with some members changed."""
    sha = "0" * 64
    return {
        "reference": 1,
        "model": {
            "name": "model.gguf",
            "architecture": "llama",
            "files": [{"name": "model.gguf", "bytes": 1, "sha256": sha}],
            "n_tokens": n_tokens,
            "vocabulary_sha256": sha,
        },
        "texts": [
            {"name": f"{i}.txt", "sha256": f"{i:064x}", "windows": windows.texts.count(i)}
            for i in sorted(set(windows.texts))
        ],
        "context": windows.context,
        "tokens_sha256": windows.sha256,
        "tail": 0.0,
        "engine": {"wheel": "xllamacpp 1", "version": "2", "commit": "3", "gpu_layers": 0},
    } | changes


def reference_store(
    path: Path, windows: Windows, n_tokens: int = 50, **changes: Any
) -> dict[str, Any]:
    """Write a reference with random distributions; return its header."""
    header = header_of(windows, n_tokens, **changes)
    with Store.create(path, header) as store:
        store.put(TOKENS, 0, windows.tokens.astype("<i4").tobytes())
        for number in range(len(windows)):
            logits = random_logits(windows.n_scored, n_tokens, number)
            store.put(WINDOWS, number, distilled(logits, tail=0, window=number).to_bytes())
    return header


def evaluation_of(*files: tuple[str, float], loops: int = 0) -> Evaluation:
    """Return an evaluation of files by their names and noise, with greedy answers to 4 prompts.

    loops: how many answers of each file loop; one of the reference's does
    """
    windows = Windows(np.zeros((20, 16), np.int32), (0,) * 10 + (1,) * 10)
    of_files = {name: measures(20, 7, seed=50, by=by) for name, by in files}
    fine, looping = Answer((1, 2, 3), is_ended=True), Answer((1,) * 80, is_ended=False)
    prompts = PromptSet(tuple("abcd"), ((1,), (2,), (3,), (4,)), chat=True)
    answers = compared(
        prompts,
        SamplerPart(),
        80,
        [looping] + [fine] * 3,
        [looping] * loops + [fine] * (4 - loops),
        [b"a", b"b", b"c", b"d"],
    )
    results = [
        FileResult(
            name=name,
            files=[FilePart(name=name, bytes=1000, sha256="1" * 64)],
            bytes=1000,
            bits_per_weight=4.5,
            figures=figures_of(found),
            domains=[
                Domain(text=f"{i}.txt", figures=figures_of(found[10 * i :][:10])) for i in (0, 1)
            ],
            answers=[answers],
            cost=Cost(
                load_seconds=0.5,
                prompt_tokens_per_second=100.0,
                generated_tokens_per_second=10.0,
                resident_bytes=2000,
                threads=2,
            ),
        )
        for name, found in of_files.items()
    ]
    return Evaluation(
        evaluation=1,
        dynquant="0.1.0",
        command=["dynquant", "eval"],
        reference=Header.model_validate(header_of(windows, 40)),
        distributions_sha256="2" * 64,
        system="CPU",
        level=0.95,
        resamples=1000,
        files=results,
        pairs=[
            Pair(a=a, b=b, **differences(of_files[a], of_files[b]))
            for a, b in combinations(of_files, 2)
        ],
        warnings=["a warning"],
    )
