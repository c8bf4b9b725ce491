"""The checkpoints that make_references.py makes, a module for each of dynquant's families.

Hidden size 32, and everything else as odd as the family allows: a row out of its place, a head too
many or a wrong rope frequency changes every log-probability by far more than the tests allow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

import torch
import transformers
from reference_tokenizers import Encode

COMMON = {"hidden_size": 32, "rms_norm_eps": 1e-5, "max_position_embeddings": 512}

# llama.cpp's CPU looks GELU up in a table of half-floats: 11 bits, and a weight's last bit may pick
# the next entry. Of log-probabilities spread as widely as those of other families that is 4e-3 to
# 7e-3, so that families with GELU have smaller embeddings.
GELU = {"weights": 0.15, "embedding": 0.05}


class Composed(Protocol):
    """A model put together of parts that transformers has."""

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with any weights."""
        ...

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights as the family's published checkpoints have them."""
        ...

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with the plain attention."""
        ...


@dataclass(frozen=True)
class Family:
    """One checkpoint to make.

    published: config keys spelled as the family's published files spell them, where transformers
               writes another form today; None removes a key
    norms:     the mean of the norms' factors as stored
    weights:   the standard deviation of matrices; embedding: of the embedding
    draw:      another number, other weights: one where the prompts use every expert
    model:     how to make and load the model, where transformers has no class for it
    """

    config: transformers.PretrainedConfig
    tokenizer: Callable[[Path], Encode]
    dtype: torch.dtype = torch.bfloat16
    shard_size: str = "1GB"
    published: dict[str, Any] = field(default_factory=dict)
    norms: float = 1.0
    weights: float = 0.25
    embedding: float = 0.25
    draw: int = 0
    adapt: Callable[[transformers.PreTrainedModel], None] | None = None
    model: Composed | None = None


def families() -> dict[str, Family]:
    """Return all checkpoints by name; each module here has its own as FAMILIES."""
    found: dict[str, Family] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").FAMILIES
    return found
