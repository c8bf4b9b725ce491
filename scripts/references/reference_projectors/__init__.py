"""The checkpoints that make_projector_references.py makes, one module per page of projectors.

Each module has a dict CASES of its checkpoints by name. Towers are tiny and all their sizes odd: a
misplaced row or a wrong key changes every embedding.

To add a case, write a Case with
- its model, which knows the published form of its checkpoint: OfTransformers if transformers reads
  that form, else a class with the methods of Model;
- its tokenizer and the processor's settings, which are files of the checkpoint;
- a few pictures or sounds, and what the model makes of each;
- the tokens that llama.cpp adds around them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from make_references import change_config, load, model_class
from numpy.typing import NDArray
from PIL import Image
from reference_families import COMMON
from reference_tokenizers import Encode
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer

Inputs = dict[str, torch.Tensor]
Media = NDArray[np.uint8] | NDArray[np.float32]
Tensors = dict[str, torch.Tensor]

SMALL_TEXT: dict[str, Any] = {
    **COMMON,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 3,
    "intermediate_size": 72,
}
"""Sizes of a small language model."""

LLAMA3_TEXT: dict[str, Any] = {
    **SMALL_TEXT,
    "vocab_size": 456,
    "bos_token_id": 442,
    "eos_token_id": 447,
}
"""The same with the vocabulary of make_llama3_bpe, and room for further tokens."""

QWEN_TEXT: dict[str, Any] = {
    **SMALL_TEXT,
    "rms_norm_eps": 1e-6,
    "vocab_size": 416,
    "bos_token_id": 400,
    "eos_token_id": 402,
}
"""The same with the vocabulary of make_qwen_bpe, and room for further tokens."""

SMALL_ENCODER: dict[str, Any] = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
}
"""Sizes of a small encoder."""

CLIP_COLOURS: dict[str, Any] = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
SIGLIP_COLOURS: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


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


def processed(*names: str, **options: Any) -> Callable[[Path, Media], Inputs]:
    """Return what gives the named outputs of a checkpoint's image processor for a picture."""

    def inputs(folder: Path, one: Media) -> Inputs:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
        found = processor(images=[Image.fromarray(one)], return_tensors="pt", **options)
        return {name: found[name] for name in names}

    return inputs


def image_features(model: transformers.PreTrainedModel, inputs: Inputs) -> list[torch.Tensor]:
    """Return the embeddings of each piece of a picture, by transformers' own function."""
    return list(model.model.get_image_features(**inputs).pooler_output)


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Replace the tensors of a checkpoint; change: returns the new ones by name."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})


def renamed(names: dict[str, str]) -> Callable[[Tensors], Tensors]:
    """Return what renames tensors; names: see new_name."""
    return lambda tensors: {new_name(name, names): tensor for name, tensor in tensors.items()}


def new_name(name: str, names: dict[str, str]) -> str:
    """Return a tensor's name with some parts replaced, in turn; names: what each part becomes."""
    for before, after in names.items():
        name = name.replace(before, after)
    return name


in_vision_model = renamed({"vision_tower.": "vision_tower.vision_model."})
"""Renames an encoder of CLIP or SigLIP as published files do: a model within the tower."""


class Model(Protocol):
    """A model, and the published form of its checkpoint."""

    def make(self) -> torch.nn.Module:
        """Return the model with arbitrary weights."""
        ...

    def save(self, model: Any, folder: Path) -> None:
        """Write config.json and model.safetensors in the published form."""
        ...

    def load(self, folder: Path) -> torch.nn.Module:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        ...


@dataclass(frozen=True)
class OfTransformers:
    """A model whose published form transformers reads.

    config:       of the whole model
    published:    keys of config.json in the form of published files if transformers writes another
                  form; None removes a key
    tensors:      returns the tensors as in published files, given those that transformers writes
    reads_config: whether transformers reads the published config.json; `config` replaces it if not
    adapt:        changes a model that was read, where llama.cpp computes something else
    """

    config: transformers.PretrainedConfig
    published: dict[str, Any] = field(default_factory=dict)
    tensors: Callable[[Tensors], Tensors] | None = None
    reads_config: bool = True
    adapt: Callable[[transformers.PreTrainedModel], None] | None = None

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        return model_class(self.config).from_config(self.config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and model.safetensors in the published form."""
        model.save_pretrained(folder)
        if self.tensors:
            change_tensors(folder, self.tensors)
        change_config(folder, self.published)

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        model = load(folder, None if self.reads_config else self.config)
        if self.adapt:
            self.adapt(model)
        return model


@dataclass(frozen=True, kw_only=True)
class Case:
    """One checkpoint with a projector, and what its model is given.

    model:        makes the model, writes its checkpoint, and reads it
    tokenizer:    writes the tokenizer, with the tokens around pictures or sounds
    processor:    what is written to preprocessor_config.json
    media:        pictures or sounds, each in a separate prompt
    inputs:       the model's inputs for one of them: what its processor makes of it
    features:     the projector's output for these inputs: of each piece float32 [n_tokens, width]
    prompt:       the prompt for llama.cpp
    in_prompt:    what stands for `<__media__>` in the model's prompt: the tokens that llama.cpp
                  adds, and a placeholder for each piece; a function of the inputs if it varies
    placeholders: ids of placeholders
    more:         further inputs of the model, given the prompt's ids
    norms:        the mean of the factors of the language model's norms, as stored
    weights:      the standard deviation of its matrices
    """

    model: Model
    tokenizer: Callable[[Path], Encode]
    processor: dict[str, Any]
    media: tuple[Media, ...]
    inputs: Callable[[Path, Media], Inputs]
    features: Callable[[Any, Inputs], list[torch.Tensor]] = image_features
    prompt: str = "The whale<__media__> was white"
    in_prompt: str | Callable[[Inputs], str]
    placeholders: tuple[int, ...]
    more: Callable[[torch.Tensor], Inputs] | None = None
    norms: float = 1.0
    weights: float = 0.25

    def prompt_of_model(self, inputs: Inputs) -> str:
        """Return the prompt for the model, with a placeholder for each piece of the medium."""
        found = self.in_prompt if isinstance(self.in_prompt, str) else self.in_prompt(inputs)
        return self.prompt.replace("<__media__>", found)


def cases() -> dict[str, Case]:
    """Return all cases by name; each module has a dict CASES."""
    found: dict[str, Case] = {}
    for module in iter_modules(__path__):
        found |= import_module(f"{__name__}.{module.name}").CASES
    return found
