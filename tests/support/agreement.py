"""What make_references.py stored, and how far a file's numbers may be from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from places import TESTS

F32 = NDArray[np.float32]

TINY_BOOKS = "tiny-books"
FAMILIES = tuple(
    sorted(p.stem for p in (TESTS / "references").glob("*.npy") if p.stem != TINY_BOOKS)
)

F32_TOLERANCE = 1e-3
"""Largest difference of a log-probability of an F32 file from transformers' float32."""


@dataclass(frozen=True)
class Reference:
    """What transformers and a checkpoint's own tokenizer say of it.

    prompts:           token ids
    tokens:            of each text, its own tokenizer's ids
    log_probabilities: float32 [n_prompts, n_vocab], of the token after each prompt; if it `embeds`,
                       [n_prompts, n_embd]: the vector of each prompt
    """

    folder: Path
    prompts: list[list[int]]
    tokens: dict[str, list[int]]
    log_probabilities: F32

    @property
    def embeds(self) -> bool:
        """Whether it makes vectors of texts instead of predicting tokens."""
        return (self.folder / "modules.json").exists()

    @property
    def parses_special(self) -> bool:
        """Whether its tokenizer reads the text of a control token as that token."""
        return any((self.folder / n).exists() for n in ("tokenizer.json", "tiktoken.model"))


def load_reference(name: str) -> Reference:
    """Return the reference of a family, or of tiny-books."""
    references = TESTS / "references"
    stored = json.loads((references / f"{name}.json").read_text("utf-8"))
    return Reference(
        TESTS / "data" / name if name == TINY_BOOKS else references / name,
        stored["prompts"],
        {entry["text"]: entry["tokens"] for entry in stored["texts"]},
        np.load(references / f"{name}.npy"),
    )


def max_difference(reference: F32, ours: F32) -> float:
    """Return the largest difference of any log-probability."""
    return float(np.abs(reference - ours).max())


def divergence(reference: F32, ours: F32) -> float:
    """Return KL(reference || ours) in nats, the mean over the prompts.

    reference, ours: float32 [n_prompts, n_vocab], log-probabilities
    """
    p = _normalized(reference)
    return float((np.exp(p) * (p - _normalized(ours))).sum(axis=-1).mean())


def _normalized(log_probabilities: F32) -> NDArray[np.float64]:
    """Return them in float64, summing to one: float32 rounding alone could make a KL negative."""
    x = log_probabilities.astype(np.float64)
    normalized: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return normalized
