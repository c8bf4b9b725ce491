"""Measured errors that may only go down, stored in JSON files beside the tests.

scripts/checks/compare_ceilings.py compares the files with those of an earlier commit, and measures
the divergences of the families again.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from agreement import divergence, load_reference
from places import REFERENCES, TESTS

import dynquant

TYPE_CEILINGS = TESTS / "quants" / "ceilings.json"
KL_CEILINGS = REFERENCES / "kl_ceilings.json"

RECIPES = ("dynamic-4bit", "dynamic-3bit")
"""Recipes whose divergence has a ceiling for each family."""

MARGIN = 1.02
"""A ceiling is this many times the measured divergence, because llama.cpp's kernels for different
CPUs add in different orders."""


def type_ceilings() -> dict[str, tuple[float, float]]:
    """Return the largest permitted error of each type, with and without importance.

    The unit is 1e-6 of the weighted sum of squares.
    """
    stored = json.loads(TYPE_CEILINGS.read_text("utf-8"))
    return {name: (c["importance"], c["no importance"]) for name, c in stored.items()}


def kl_ceilings() -> dict[str, dict[str, float]]:
    """Return the largest permitted distance from transformers of each family and recipe."""
    stored: dict[str, dict[str, float]] = json.loads(KL_CEILINGS.read_text("utf-8"))
    return stored


def distance_from_transformers(family: str, recipe: str, out: Path) -> float:
    """Convert a family's reference into `out` and return its distance from transformers.

    That is KL(transformers || ours) in nats, the mean over the prompts; for embedding models the
    norm of the difference over the norm of transformers' vectors.
    """
    import llamacpp

    reference = load_reference(family)
    dynquant.convert(reference.folder, out, recipe=recipe, threads=2)
    expected = reference.log_probabilities
    if reference.embeds:
        found = llamacpp.embeddings(out, reference.prompts, expected.shape[1])
        return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return divergence(expected, llamacpp.log_probabilities(out, reference.prompts))


def ceiling_of(measured: float) -> float:
    """Return a measured divergence with the margin, rounded up to three digits."""
    digit = 10.0 ** (math.floor(math.log10(measured * MARGIN)) - 2)
    return float(f"{math.ceil(measured * MARGIN / digit) * digit:.3g}")
