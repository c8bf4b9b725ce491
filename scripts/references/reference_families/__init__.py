"""The checkpoints that make_references.py makes, one module per family of dynquant.

The hidden size is 32, and all other sizes are as odd as the family allows. A misplaced row, an
extra head or a wrong rope frequency changes every log-probability by far more than the tests allow.
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

# On CPU llama.cpp looks GELU up in a table indexed by half-floats (11 bits), so that the last bit
# of a weight may select the next entry. With log-probabilities spread as widely as in other
# families the error would be 4e-3 to 7e-3; families with GELU therefore have smaller embeddings.
GELU = {"weights": 0.15, "embedding": 0.05}


class GeluTable(torch.nn.Module):
    """GELU as llama.cpp computes it on CPU: by a table of half-floats, indexed by half-floats."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return GELU's tanh form; beyond 10 it is the identity or zero."""
        found = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, found))


def with_gelu_table(model: transformers.PreTrainedModel) -> None:
    """Compute the activation of a model as llama.cpp does, where its rounding alone is too much."""
    for module in model.modules():
        for name in ("act_fn", "activation_fn"):
            if hasattr(module, name):
                setattr(module, name, GeluTable())


class Composed(Protocol):
    """A model built from parts of transformers."""

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        ...

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights in the form of published checkpoints."""
        ...

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        ...


@dataclass(frozen=True)
class Family:
    """One checkpoint to make.

    published: config keys in the form of published files if transformers now writes another form;
               None removes a key
    norms:     the mean of the norms' factors as stored
    spread:    the standard deviation of these factors
    weights:   the standard deviation of matrices
    embedding: the standard deviation of the embedding
    draw:      the seed of the weights, chosen so that the prompts use every expert
    stacks:    whether each layer's experts are stored as stacks; one by one if not
    model:     how to make and load the model if transformers has no class for it
    long:      tokens of one more prompt, for layers that act in longer texts only
    by:        what computed the results, if not a class of transformers; stored with them
    """

    config: transformers.PretrainedConfig
    tokenizer: Callable[[Path], Encode]
    dtype: torch.dtype = torch.bfloat16
    shard_size: str = "1GB"
    published: dict[str, Any] = field(default_factory=dict)
    norms: float = 1.0
    spread: float = 0.3
    weights: float = 0.25
    embedding: float = 0.25
    draw: int = 0
    adapt: Callable[[transformers.PreTrainedModel], None] | None = None
    stacks: bool = False
    model: Composed | None = None
    long: int = 0
    by: str = ""


def families() -> dict[str, Family]:
    """Return all checkpoints by name; each module has a dict FAMILIES of its checkpoints."""
    found: dict[str, Family] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").FAMILIES
    return found
