"""The checkpoints that make_projector_references.py makes, one module per page of projectors.

Towers are tiny and all their sizes odd: a misplaced row or a wrong key changes every embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

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
    """Return a sound, float32 [samples]: a few tones that rise and fall, in steps of 16 bits."""
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * rate)) / rate
    found = np.zeros_like(t)
    for _ in range(4):
        base, depth, speed, phase = rng.uniform((120, 0.1, 0.5, 0), (1500, 0.4, 3, 6))
        found += np.sin(2 * np.pi * base * t + depth * np.sin(2 * np.pi * speed * t) + phase)
    return (np.round(0.2 * found * 2**15) / 2**15).astype(np.float32)


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


class Own(Protocol):
    """A model that transformers has no class for."""

    def make(self) -> torch.nn.Module:
        """Return the model with arbitrary weights."""
        ...

    def save(self, model: torch.nn.Module, folder: Path) -> None:
        """Write config.json and the weights."""
        ...

    def load(self, folder: Path) -> torch.nn.Module:
        """Return the model with the weights of a folder, in float32."""
        ...


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
    features:  the projector's output for these inputs, float32 [n_tokens, width], or of each piece
    before, after: texts of the prompt around the placeholder, with the tokens that llama.cpp adds
    prompt:    the prompt for llama.cpp, with `<__media__>` in place of the medium
    token:     the placeholder's id
    text:      for prompts with texts between the pieces of a medium: the whole prompt, with the
               placeholder's text in place of each embedding
    ids:       the ids of a medium's tokens, given the inputs and features; `token` by default
    more:      further inputs of the model, given the ids and the placeholder's id
    factors:   endings of names of weights that are near one
    norms:     the mean of factors in the language model, as stored
    weights:   the standard deviation of matrices
    published: config keys in the form of published files; None removes a key
    rewrite:   brings the checkpoint into a published form that transformers does not read, when
               its results are known
    write:     writes the model's weights and config.json; transformers does it by default
    read:      loads the model; needed for published forms that transformers does not read
    renamed:   stored names that published files spell otherwise: beginnings, and what they become
    of_sounds: fields of the case that differ for sounds, if there are pictures too
    model:     makes and loads the model if transformers has none of this class
    around:    the texts around a picture that is cut into so many pieces; its features are a list
    own_config: whether transformers cannot read the published config.json, but needs `config`
    """

    config: transformers.PretrainedConfig
    tokenizer: Callable[[Path], Encode]
    processor: dict[str, Any]
    media: tuple[Media, ...]
    inputs: Callable[[Path, Media], Inputs]
    features: Callable[[transformers.PreTrainedModel, Inputs], torch.Tensor | list[torch.Tensor]]
    before: str
    after: str
    prompt: str
    token: int
    text: Callable[[Path, Media], str] | None = None
    more: Callable[[torch.Tensor, int], Inputs] = _no_more
    ids: Callable[[Inputs, torch.Tensor], list[int]] | None = None
    norms: float = 1.0
    weights: float = 0.25
    published: dict[str, Any] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    rewrite: Callable[[Path], None] | None = None
    dtype: torch.dtype = torch.bfloat16
    write: Callable[[transformers.PreTrainedModel, Path], None] = _saved
    read: Callable[[Path], transformers.PreTrainedModel] | None = None
    of_sounds: dict[str, Any] = field(default_factory=dict)
    own_config: bool = False
    around: Callable[[int], list[str]] | None = None
    model: Own | None = None

    def texts(self, n_pieces: int) -> list[str]:
        """Return the prompt's texts before, between and after the pieces of a picture."""
        return self.around(n_pieces) if self.around else [self.before, self.after]

    def of(self, one: Media) -> Case:
        """Return the case for one of its media."""
        return replace(self, **self.of_sounds) if one.ndim == 1 else self


def cases() -> dict[str, Case]:
    """Return all cases by name; each module has a dict CASES."""
    found: dict[str, Case] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").CASES
    return found
