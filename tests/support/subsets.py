"""Parametrizations of which `pytest -m "not slow"` runs a part."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest

FAST_FAMILIES = ("bert", "deepseek-v3", "gemma3", "gpt-oss", "llama-2", "qwen3")
"""One family of each kind: embeddings, latent attention, windows, MXFP4 experts, two plain ones."""

FAST_TYPES = ("F16", "IQ2_XS", "IQ4_NL", "NVFP4", "Q4_K", "Q8_0", "TQ1_0")
"""One type of each kind of encoder."""


def slow_except(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Return all values for `parametrize`, marked slow except those in `fast`.

    A tuple is the values of several arguments.
    """
    marked = []
    for value in values:
        each = value if isinstance(value, tuple) else (value,)
        marked.append(pytest.param(*each, marks=() if value in fast else pytest.mark.slow))
    return marked
