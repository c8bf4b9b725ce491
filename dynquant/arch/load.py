"""A folder becomes a Model: its family described, its tensors found, its keys written out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from dynquant.arch.base import Architecture, Model
from dynquant.arch.families import families
from dynquant.arch.gather import gather
from dynquant.arch.metadata import general_keys
from dynquant.arch.pooling import pooling_keys
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import ArchitectureError, DynquantError
from dynquant.vocab import read_vocab

T = TypeVar("T")


def load_model(folder: Path, *, pre: str | None = None) -> Model:
    """Describe the model in a folder without reading its weights.

    pre: llama.cpp's name of the pre-tokenizer, where it cannot be recognised

    Raises DynquantError with everything that stands in the way: CheckpointError for the files,
    ArchitectureError for the family, VocabError for the tokenizer, or all their messages.
    """
    checkpoint = open_checkpoint(folder)
    architecture = describe(checkpoint.config, str(folder / "config.json"))
    errors: list[DynquantError] = []
    found = _attempt(errors, lambda: gather(architecture, checkpoint))
    tensors, ignored, prediction = found or ((), {}, None)
    general = _attempt(
        errors, lambda: general_keys(folder, checkpoint.config, architecture.name, tensors)
    )
    # A family may know the number of tokens where config.json leaves it out.
    config = {**checkpoint.config, "vocab_size": architecture.sizes["vocab"]}
    vocab = _attempt(errors, lambda: read_vocab(folder, config, pre=pre))
    pooling = _attempt(errors, lambda: pooling_keys(folder, architecture.name))
    if len(errors) == 1:
        raise errors[0]
    DynquantError.raise_any(message for e in errors for message in e.messages)
    keys = (general or {}) | architecture.keys | (pooling or {}) | (vocab or {})
    return Model(architecture.name, keys, tensors, ignored, prediction)


def _attempt(errors: list[DynquantError], step: Callable[[], T]) -> T | None:
    """Take a step, or note why not, so that the next one can complain as well."""
    try:
        return step()
    except DynquantError as e:
        errors.append(e)
        return None


def describe(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture of a config.json; `where` begins every message.

    The settings of a model that also sees or hears are those of its `text_config`.
    Raises ArchitectureError for an unknown family, and for what is not supported of a known one.
    """
    listed = config.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed else None  # type: ignore[reportUnknownVariableType]
    known = families()
    if not isinstance(name, str):
        raise ArchitectureError(f"{where}: names no architectures; known are {', '.join(known)}")
    if name not in known:
        stems = {_stem(other): other for other in known}
        near = [stems[s] for s in difflib.get_close_matches(_stem(name), stems, 3, 0.7)]
        hint = f"near it are {', '.join(near)}" if near else f"known are {', '.join(known)}"
        raise ArchitectureError(
            f"{where}: architecture {name!r} is not known; {hint}; if llama.cpp's"
            " convert_hf_to_gguf.py knows it, give the GGUF that it makes"
        )
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized  # type: ignore[reportUnknownVariableType]
        raise ArchitectureError(
            f"{where}: quantization_config ({method}): quantized checkpoints are not read yet; take"
            " the one it was made from"
        )
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **cast("dict[str, Any]", text)}
    return known[name](config, where)


def _stem(architecture: str) -> str:
    return re.sub("For(CausalLM|ConditionalGeneration)|Model", "", architecture).lower()
