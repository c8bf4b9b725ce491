"""Rerankers that look like language models: their scores need tensors and keys that are not made.

Qwen3-Reranker is stored as a Qwen3ForCausalLM whose answer is the probability of "yes" against
"no". As a reranker, llama.cpp needs those two rows of the output matrix (cls.output), rank pooling
and a template; as a language model the file loads, and its scores are meaningless.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynquant.untrusted import MAX_CONFIG, read_regular

_NAME = re.compile(r"qwen3-(vl-)?reranker", re.IGNORECASE)
_CARD = re.compile(
    r"^(#+\s*|base_model:\s*[\"'\[]*)([\w.-]+/)?qwen3-(vl-)?reranker",
    re.IGNORECASE | re.MULTILINE,
)
"""A heading or the base model in README.md: the model's config.json is that of any Qwen3."""


def reranker_problems(folder: Path, config: Mapping[str, Any]) -> Iterator[str]:
    """Yield the problem of a Qwen3-Reranker, which its name or its README.md shows."""
    listed = config.get("architectures")
    if listed is not None and "Qwen3ForCausalLM" not in str(listed):
        return
    names = f"{folder.absolute().name}\n{config.get('_name_or_path')}"
    if _NAME.search(names) or _CARD.search(_readme(folder)):
        yield (
            f"{folder}: is a Qwen3-Reranker, whose scores dynquant does not convert; convert it"
            " with llama.cpp's convert_hf_to_gguf.py (--outtype bf16), which makes a reranker of"
            " it, and give the resulting GGUF"
        )


def _readme(folder: Path) -> str:
    try:
        return read_regular(folder / "README.md", MAX_CONFIG).decode("utf-8", "replace")
    except (OSError, ValueError):
        return ""
