"""A folder becomes a Model: its family described, its tensors found, its keys written out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from dynquant.arch.base import Architecture, Model
from dynquant.arch.families import families
from dynquant.arch.gather import gather
from dynquant.arch.metadata import general_keys
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import ArchitectureError, DynquantError
from dynquant.vocab import read_vocab

T = TypeVar("T")

Mla = Literal["split", "merged"]


def load_model(folder: Path, *, pre: str | None = None, mla: Mla = "split") -> Model:
    """Describe the model in a folder without reading its weights.

    pre: llama.cpp's name of the pre-tokenizer, where it cannot be recognised
    mla: how latent attention is stored: "split" as today, or "merged" as in files of early 2025

    Raises DynquantError with everything that stands in the way: CheckpointError for the files,
    ArchitectureError for the family, VocabError for the tokenizer, or all their messages.
    """
    checkpoint = open_checkpoint(folder)
    where = str(folder / "config.json")
    architecture = describe(checkpoint.config, where)
    if mla == "merged":
        if architecture.merged is None:
            raise ArchitectureError(
                f"{where}: {architecture.name} has no latent attention to be merged; leave out"
                " --mla merged"
            )
        architecture = architecture.merged
    errors: list[DynquantError] = []
    found = _attempt(errors, lambda: gather(architecture, checkpoint))
    tensors, ignored, prediction = found or ((), {}, None)
    own = [t for t in tensors if not prediction or t.parts.layer not in prediction.layers]
    general = _attempt(
        errors, lambda: general_keys(folder, checkpoint.config, architecture.name, own)
    )
    vocab = _attempt(errors, lambda: read_vocab(folder, checkpoint.config, pre=pre))
    if len(errors) == 1:
        raise errors[0]
    DynquantError.raise_any(message for e in errors for message in e.messages)
    keys = (general or {}) | architecture.keys | (vocab or {})
    return Model(architecture.name, keys, tensors, ignored, prediction, architecture.deviations)


def _attempt(errors: list[DynquantError], step: Callable[[], T]) -> T | None:
    """Take a step, or note why not, so that the next one can complain as well."""
    try:
        return step()
    except DynquantError as e:
        errors.append(e)
        return None


def describe(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture of a config.json; `where` begins every message.

    The settings of a model that also sees or hears are those of its `text_config`, or
    `language_config`.
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
    text = config.get("text_config") or config.get("language_config")
    if isinstance(text, dict):
        config = {**config, **cast("dict[str, Any]", text)}
    return known[name](config, where)


def _stem(architecture: str) -> str:
    return re.sub("For(CausalLM|ConditionalGeneration)|Model", "", architecture).lower()
