"""Handmade documents of evaluations, with figures and names that a test chooses."""

from __future__ import annotations

from typing import Any

from dynquant.evaluate.reference import EnginePart, FilePart, Header, ModelPart, TextPart
from dynquant.evaluate.results import (
    Answers,
    Domain,
    Estimate,
    Evaluation,
    Example,
    Figures,
    FileResult,
    Pair,
)
from dynquant.evaluate.tasks import Cost, SamplerPart


def sha(letter: str) -> str:
    return letter * 64


def estimate(value: float, spread: float = 0.1) -> Estimate:
    width = abs(value) * spread
    return Estimate(value=value, low=value - width, high=value + width)


def figures(kld: float, windows: int = 4) -> Figures:
    e = estimate
    return Figures(
        windows=windows,
        tokens=255 * windows,
        ppl=e(12.5),
        ppl_base=e(12.25),
        ppl_ratio=e(1.0204),
        mean_kld=e(kld),
        median_kld=e(kld / 4),
        kld_90=e(kld * 2),
        kld_95=e(kld * 3),
        kld_99=e(kld * 6),
        kld_999=e(kld * 12),
        maximum_kld=kld * 20,
        same_top=e(0.875, 0.01),
        mean_dp=e(-0.01),
        rms_dp=e(0.05),
        sampling_error=1e-6,
    )


def answers(*examples: Example, temperature: float = 0.0, loops: float = 0.25) -> Answers:
    return Answers(
        prompts=16,
        prompts_sha256=sha("9"),
        chat=False,
        sampler=SamplerPart(temperature=temperature),
        n_predict=128,
        identical=estimate(0.5),
        first_divergence=estimate(40.5),
        loops=estimate(loops),
        reference_loops=estimate(0.125),
        dead_ends=0,
        reference_dead_ends=0,
        replacement_characters=0,
        reference_replacement_characters=0,
        not_finite=0,
        examples=list(examples),
    )


COST = Cost(
    load_seconds=0.25,
    prompt_tokens_per_second=4321.0,
    generated_tokens_per_second=765.0,
    resident_bytes=43_000_000,
    threads=2,
)


def result(name: str, size: int, kld: float, sha256: str = sha("f"), **more: Any) -> FileResult:
    file = FilePart(name=name.rpartition("/")[2], bytes=size, sha256=sha256)
    rest: dict[str, Any] = {"domains": [], "answers": [], "cost": None} | more
    return FileResult(
        name=name, files=[file], bytes=size, bits_per_weight=4.5, figures=figures(kld), **rest
    )


def two_texts(kld: float, *texts: str) -> list[Domain]:
    return [Domain(text=text, figures=figures(kld * (1 + i))) for i, text in enumerate(texts)]


def evaluation(
    *files: FileResult, texts: tuple[str, ...] = ("wiki.txt",), **more: Any
) -> Evaluation:
    """Return the document of some files; more: members that replace the default ones."""
    model = ModelPart(
        name=more.pop("reference_name", "base-f32.gguf"),
        architecture="llama",
        files=[FilePart(name="base-f32.gguf", bytes=1000, sha256=sha("a"))],
        n_tokens=512,
        vocabulary_sha256=sha("b"),
    )
    header = Header(
        reference=1,
        model=model,
        texts=[TextPart(name=text, sha256=sha("c"), windows=4) for text in texts],
        context=512,
        tokens_sha256=sha("d"),
        tail=0.0,
        engine=EnginePart(wheel="xllamacpp 1.2.3", version="b4567", commit="unknown", gpu_layers=0),
    )
    document: dict[str, Any] = {
        "evaluation": 1,
        "dynquant": "0.1.0",
        "command": ["dynquant", "eval", "x.gguf", "--reference", "base-f32.gguf"],
        "reference": header,
        "distributions_sha256": sha("e"),
        "system": "CPU : AVX2 = 1",
        "level": 0.95,
        "resamples": 1000,
        "files": list(files),
        "pairs": [
            Pair(
                a=a.name,
                b=b.name,
                mean_kld=estimate(a.figures.mean_kld.value - b.figures.mean_kld.value),
                ln_ppl=estimate(0.01),
                same_top=estimate(-0.01),
            )
            for i, a in enumerate(files)
            for b in files[i + 1 :]
        ],
        "warnings": [],
    }
    return Evaluation(**(document | more))
