"""What the stages of `dynquant auto` take: seconds and bytes of disk, before any of them starts.

The seconds come from counts (weights, tokens, types) and from the speed of this machine's matrix
products, measured in a moment. They are good to a factor of about two: they say whether a run takes
minutes or days.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import cast

import numpy as np

from dynquant.arch.base import Model, ModelTensor
from dynquant.auto.stages import Asked, Stage
from dynquant.budget.damage import label_of, layers_in
from dynquant.budget.errors import WEIGHTS
from dynquant.budget.groups import Group
from dynquant.calibrate.shipped import shipped_texts
from dynquant.conversion.estimate import EXPECTED, PER_CHANNEL
from dynquant.importance.audit import with_same_inputs
from dynquant.importance.moments import Input
from dynquant.plan.plan import Plan

START = 6.0
"""Seconds until torch and transformers, or llama.cpp, have begun."""

BYTES_PER_TOKEN = 3.5
"""Of a text, about."""

ANSWER = 256
"""Tokens of an answer in `dynquant eval`, at most."""

ANSWER_SLOWER = 4
"""A token of an answer beside one of a text."""

ANSWER_SECONDS = 0.004
"""Of a token of an answer besides, however small the model is."""

RUN = 3.0
"""The time of a model's run by llama.cpp beside that of its matrix products."""

CANDIDATES = 4
"""What `solve --verify` compares, at most."""

CONTEXT = 512
"""Tokens of a window of `dynquant imatrix`."""

KEPT = 4_000
"""Bytes of a scored token's probabilities in the cache of `dynquant eval`."""

_COPIED = 5e8
"""Bytes of a projector that are written in a second: most of its tensors keep their floats."""

_SIDE = 1024


@dataclass(frozen=True)
class Expected:
    """What a stage takes, about.

    n_bytes: of the files that it leaves in the folders of the output and of the model
    cached:  bytes that it leaves in the user's cache folder
    """

    seconds: float
    n_bytes: int = 0
    cached: int = 0


@dataclass(frozen=True)
class Counts:
    """Numbers of a model.

    weights:  of its matrices
    active:   of those that a token is multiplied by
    squares:  of the channels of the inputs of all matrices, for second moments
    moments:  bytes of the second moments
    stored:   bytes of a file that keeps all numbers of the checkpoint
    """

    weights: int
    active: int
    squares: int
    moments: int
    stored: int

    @classmethod
    def of(cls, model: Model) -> Counts:
        """Count the tensors of a model."""
        used = _share_of_experts(model)
        matrices = [t for t in model.tensors if len(t.shape) > 1]
        is_tied = all(t.name != "output.weight" for t in matrices)
        active = sum(
            int(_weights(t) * (used if "_exps." in t.name else 1))
            for t in matrices
            if t.name != "token_embd.weight" or is_tied
        )
        seen: set[str] = set()
        inputs: list[Input] = []
        for t in matrices:
            if seen.isdisjoint({t.name, *with_same_inputs(t)}):
                seen.add(t.name)
                inputs.append(Input(t.name, (t.name,), t.n_per_row, prod(t.shape[:-2])))
        # The reference keeps floats of 16 bits; all else is about as large, or becomes F32.
        halves = ("BF16", "F16")
        stored = sum(
            _weights(t) * (2 if t.source.stored.name in halves else 4) for t in model.tensors
        )
        return cls(
            sum(map(_weights, matrices)),
            active,
            sum(i.n**2 for i in inputs),
            sum(i.n_bytes for i in inputs),
            stored,
        )


def _weights(tensor: ModelTensor) -> int:
    return tensor.n_rows * tensor.n_per_row


def _share_of_experts(model: Model) -> float:
    """Return the part of the experts that a token chooses; 1.0 for what is not known."""
    counts: list[int] = []
    for name in ("expert_used_count", "expert_count"):
        key = model.keys.get(f"{model.architecture}.{name}")
        value = key.value if key is not None else 0
        many = cast("tuple[int, ...]", value if isinstance(value, tuple) else (value,))
        counts.append(max(many))
    used, n = counts
    return used / n if n else 1.0


def products_per_second() -> float:
    """Return the multiply-adds of float32 that this machine does in a second, in large products."""
    a = np.ones((_SIDE, _SIDE), np.float32)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        np.matmul(a, a)
        best = min(best, time.perf_counter() - started)
    return _SIDE**3 / best


@dataclass(frozen=True)
class Job:
    """What is to be done.

    plan:   with the types of the most bits where they are open
    groups: tensors whose types are open
    limit:  bytes of the output
    speed:  multiply-adds in a second, of all threads together
    """

    asked: Asked
    model: Model
    plan: Plan
    groups: tuple[Group, ...]
    limit: int
    threads: int
    speed: float

    @property
    def has_moments(self) -> bool:
        """Whether there are second moments, or will be."""
        if self.asked.imatrix:
            return self.asked.moments is not None
        return not self.asked.skip & {"importance", "feedback"}

    @property
    def tokens(self) -> int:
        """Tokens that the model reads for its importance, about."""
        if self.asked.chunks is not None:
            return CONTEXT * self.asked.chunks
        if files := self.asked.calibration:
            n_bytes = sum(file.stat().st_size for file in files)
        else:
            n_bytes = sum(len(text.content) for text in shipped_texts())
        return int(n_bytes / BYTES_PER_TOKEN)

    def encoding(self, name: str, n_per_row: int) -> float:
        """Return the seconds for a weight that a type takes, on all threads."""
        feedback = PER_CHANNEL * n_per_row / self.speed if self.has_moments else 0.0
        return EXPECTED[name] / self.threads + feedback

    @property
    def samples(self) -> float:
        """Seconds in which samples of all tensors are encoded with all types."""
        times = 3 if self.has_moments else 1
        return times * sum(
            min(t.n_weights, WEIGHTS) * self.encoding(c.name, t.n_per_row)
            for group in self.groups
            for t in group.tensors
            for c in group.types
        )

    @property
    def conversion(self) -> float:
        """Seconds of a conversion, with the mean of the types that tensors may have."""
        return sum(
            t.n_weights * self.encoding(c.name, t.n_per_row) / len(group.types)
            for group in self.groups
            for t in group.tensors
            for c in group.types
        )

    @property
    def projector(self) -> Expected:
        """What writing the projector takes; nearly all of it is copied."""
        asked = self.asked.projector
        n_bytes = asked.n_bytes if asked else 0
        return Expected(1 + n_bytes / _COPIED, n_bytes)


def forecast(job: Job, stages: Iterable[Stage]) -> dict[str, Expected]:
    """Return what stages take, by name."""
    asked, counts = job.asked, Counts.of(job.model)
    tuned, judged = (min(asked.tokens, _tokens(files)) for files in (asked.tuning, asked.texts))
    run = RUN / job.speed * counts.active
    squares = counts.squares if job.has_moments else 0
    measures = START + _changes(job) * tuned * run if asked.measures else 0.0
    verifies = START + CANDIDATES * (job.conversion + tuned * run) if asked.verifies else 0.0
    samples = 0.0 if asked.makes_sensitivity else job.samples
    answers = asked.n_prompts * ANSWER * (ANSWER_SECONDS + ANSWER_SLOWER * run)
    cached = counts.stored if not job.model.is_gguf else 0
    cached += KEPT * judged // 2
    known = {
        "importance": Expected(
            START + job.tokens * 2 * (counts.active + squares) / job.speed,
            (counts.moments if job.has_moments else 0) + counts.weights // 500,
        ),
        "sensitivity": Expected(job.samples + measures, 1_000 * len(job.plan.tensors)),
        "solve": Expected(1 + samples + verifies, 10_000),
        "convert": Expected(1 + job.conversion, job.limit),
        "projector": job.projector,
        "evaluate": Expected(START + 2 * (judged * run + answers), 1_000_000, cached),
        "report": Expected(1 + samples, 1_000_000),
    }
    return {stage.name: known[stage.name] for stage in stages}


def _tokens(files: Iterable[Path]) -> int:
    return int(sum(file.stat().st_size for file in files) / BYTES_PER_TOKEN)


def _changes(job: Job) -> int:
    """Return the number of groups that `sensitivity --measure` changes in turn."""
    n_layers = layers_in(t.name for t in job.plan.tensors)
    return len({label_of(name, n_layers) for group in job.groups for name in group.names})
