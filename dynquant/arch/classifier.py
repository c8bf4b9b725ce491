"""Classifiers after an encoder: rerankers, if they have one label (llama.cpp's rank pooling)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, read_config
from dynquant.errors import ArchitectureError
from dynquant.keys import strings, u32
from dynquant.untrusted import shown

_RANK = 4
"""LLAMA_POOLING_TYPE_RANK."""


@dataclass(frozen=True)
class _Labels:
    """The labels of a classifier; transformers has two labels if none is stated."""

    id2label: dict[str, str] | None = None
    num_labels: Count | None = None

    def names(self, where: str) -> list[str]:
        """Return the labels in the order of their numbers."""
        stated = self.id2label
        if stated is None:
            return [f"LABEL_{i}" for i in range(self.num_labels or 2)]
        if sorted(stated) != sorted(str(i) for i in range(len(stated))):
            raise ArchitectureError(
                f"{where}: id2label has labels {', '.join(map(shown, stated))}, not 0, 1, 2 …"
            )
        return [stated[str(i)] for i in range(len(stated))]


def with_classifier(
    found: Architecture, head: tuple[Row, ...], config: Mapping[str, Any], where: str
) -> Architecture:
    """Return the model with a classifier of the first token.

    head: its rows, in which `labels` is the number of labels
    """
    labels = read_config(_Labels, config, where).names(where)
    ignored = {k: v for k, v in found.ignored.items() if "pooler" not in k}
    return replace(
        found,
        keys=found.keys
        | {
            f"{found.name}.pooling_type": u32(_RANK),
            f"{found.name}.classifier.output_labels": strings(labels),
        },
        rows=found.rows + head,
        sizes={**found.sizes, "labels": len(labels)},
        ignored=ignored,
    )
