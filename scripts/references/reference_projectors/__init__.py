"""The checkpoints that make_projector_references.py makes, one module per page of projectors.

Towers are tiny and all their sizes odd: a misplaced row or a wrong key changes every embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from reference_tokenizers import Encode
from tokenizers import AddedToken, Tokenizer

Inputs = dict[str, torch.Tensor]
Media = NDArray[np.uint8] | NDArray[np.float32]


def picture(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """Return a smooth picture, uint8 [height, width, 3]: waves of three colours.

    Programs resize smooth pictures nearly alike, whatever their filters.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    colours = []
    for _ in range(3):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        wave = np.sin(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        colours.append(128 + 110 * wave)
    return np.stack(colours, axis=-1).round().astype(np.uint8)


def sound(seconds: float, seed: int, rate: int = 16000) -> NDArray[np.float32]:
    """Return a sound, float32 [samples]: a few tones that rise and fall."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    found = np.zeros_like(t)
    for _ in range(4):
        base, depth, speed, phase = rng.uniform((120, 0.1, 0.5, 0), (1500, 0.4, 3, 6))
        found += np.sin(2 * np.pi * base * t + depth * np.sin(2 * np.pi * speed * t) + phase)
    return (0.2 * found).astype(np.float32)


def with_marks(make: Callable[[Path], Encode], *marks: str) -> Callable[[Path], Encode]:
    """Return what writes a tokenizer with further control tokens, such as those around pictures."""

    def write(folder: Path) -> Encode:
        make(folder)
        path = str(folder / "tokenizer.json")
        tokenizer = Tokenizer.from_file(path)
        tokenizer.add_special_tokens([AddedToken(m, normalized=False, special=True) for m in marks])
        tokenizer.save(path)
        return lambda text: tokenizer.encode(text).ids

    return write


def _no_more(_ids: torch.Tensor, _token: int) -> Inputs:
    return {}


def _saved(model: transformers.PreTrainedModel, folder: Path) -> None:
    model.save_pretrained(folder)


@dataclass(frozen=True)
class Case:
    """One checkpoint with a projector, and what its model is given.

    config:    of the whole model
    tokenizer: writes the tokenizer, with the tokens around pictures
    processor: what is written to preprocessor_config.json
    media:     pictures or sounds, each of which is seen alone
    inputs:    what the image processor or feature extractor makes of one of them
    features:  the projector's output for these inputs, float32 [n_tokens, width]
    before, after: texts of the prompt around the placeholder, with the tokens that llama.cpp adds
    prompt:    the prompt for llama.cpp, with `<__media__>` in place of the medium
    token:     the placeholder's id
    ids:       the ids of a medium's tokens, given the inputs and features; `token` by default
    more:      further inputs of the model, given the ids and the placeholder's id
    factors:   endings of names of weights that are near one
    norms:     the mean of factors in the language model, as stored
    weights:   the standard deviation of matrices
    published: config keys in the form of published files; None removes a key
    write:     writes the model's weights and config.json; transformers does it by default
    read:      loads the model; needed for published forms that transformers does not read
    renamed:   stored names that published files spell otherwise: beginnings, and what they become
    """

    config: transformers.PretrainedConfig
    tokenizer: Callable[[Path], Encode]
    processor: dict[str, Any]
    media: tuple[Media, ...]
    inputs: Callable[[Path, Media], Inputs]
    features: Callable[[transformers.PreTrainedModel, Inputs], torch.Tensor]
    before: str
    after: str
    prompt: str
    token: int
    more: Callable[[torch.Tensor, int], Inputs] = _no_more
    ids: Callable[[Inputs, torch.Tensor], list[int]] | None = None
    norms: float = 1.0
    weights: float = 0.25
    published: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    dtype: torch.dtype = torch.bfloat16
    write: Callable[[transformers.PreTrainedModel, Path], None] = _saved
    read: Callable[[Path], transformers.PreTrainedModel] | None = None


def cases() -> dict[str, Case]:
    """Return all cases by name; each module has a dict CASES."""
    found: dict[str, Case] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").CASES
    return found
