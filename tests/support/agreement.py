"""References stored by make_references.py, and measures of agreement with them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from places import TESTS

F32 = NDArray[np.float32]

TINY_BOOKS = "tiny-books"
FAMILIES = tuple(
    sorted(p.stem for p in (TESTS / "references").glob("*.npy") if p.stem != TINY_BOOKS)
)

F32_TOLERANCE = 1e-3
"""Largest permitted difference between a log-probability of an F32 file and transformers."""


@dataclass(frozen=True)
class Reference:
    """Results of transformers and of the checkpoint's tokenizer.

    prompts:           token ids
    tokens:            token ids of each text
    log_probabilities: float32 [n_prompts, n_vocab], of the token after each prompt; for embedding
                       models (`embeds`) [n_prompts, n_embd], the vector of each prompt; for
                       classifiers [n_prompts, n_labels], its scores
    """

    folder: Path
    prompts: list[list[int]]
    tokens: dict[str, list[int]]
    log_probabilities: F32

    @property
    def embeds(self) -> bool:
        """Return whether it is an embedding model or a classifier, which predicts no tokens."""
        config = json.loads((self.folder / "config.json").read_text("utf-8"))
        classifies = config["architectures"][0].endswith("ForSequenceClassification")
        return classifies or (self.folder / "modules.json").exists()

    @property
    def parses_special(self) -> bool:
        """Return whether its tokenizer parses the text of a control token as that token."""
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


def config_of(name: str) -> dict[str, Any]:
    """Return the config.json of a reference; a new object each time, which tests may change."""
    text = (TESTS / "references" / name / "config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    return config


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
    """Return them in float64, normalized: with float32 rounding a KL could be negative."""
    x = log_probabilities.astype(np.float64)
    normalized: NDArray[np.float64] = x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
    return normalized
