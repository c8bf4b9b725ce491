"""A folder becomes a Model: its family described, its tensors found, its keys written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from dynquant.arch.base import Architecture, Model
from dynquant.arch.gather import gather
from dynquant.arch.llama import llama
from dynquant.arch.metadata import general_keys
from dynquant.arch.qwen import qwen2, qwen3
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import ArchitectureError, DynquantError
from dynquant.vocab import read_vocab

FAMILIES: dict[str, Callable[[Mapping[str, Any], str], Architecture]] = {
    "LlamaForCausalLM": llama,
    "LLaMAForCausalLM": llama,  # as the first conversions spelled it
    "MistralForCausalLM": llama,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
}
"""Who describes which of config.json's `architectures`."""

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
    tensors, ignored = found or ((), {})
    general = _attempt(
        errors, lambda: general_keys(folder, checkpoint.config, architecture.name, tensors)
    )
    vocab = _attempt(errors, lambda: read_vocab(folder, checkpoint.config, pre=pre))
    if len(errors) == 1:
        raise errors[0]
    DynquantError.raise_any(message for e in errors for message in e.messages)
    keys = (general or {}) | architecture.keys | (vocab or {})
    return Model(architecture.name, keys, tensors, ignored)


def _attempt(errors: list[DynquantError], step: Callable[[], T]) -> T | None:
    """Take a step, or note why not, so that the next one can complain as well."""
    try:
        return step()
    except DynquantError as e:
        errors.append(e)
        return None


def describe(config: Mapping[str, Any], where: str) -> Architecture:
    """Return the architecture of a config.json; `where` begins every message.

    Raises ArchitectureError for an unknown family, and for what is not supported of a known one.
    """
    listed = config.get("architectures")
    name = listed[0] if isinstance(listed, list) and listed else None  # type: ignore[reportUnknownVariableType]
    family = FAMILIES.get(name) if isinstance(name, str) else None
    problems: list[str] = []
    known = ", ".join(FAMILIES)
    if name is None:
        problems.append(f"{where}: names no architectures; known are {known}")
    elif family is None:
        problems.append(f"{where}: architecture {name!r} is not known; known are {known}")
    quantized = config.get("quantization_config")
    if quantized is not None:
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized  # type: ignore[reportUnknownVariableType]
        problems.append(
            f"{where}: quantization_config ({method}): quantized checkpoints are not read yet; take"
            " the one it was made from"
        )
    experts = next((k for k in ("num_local_experts", "num_experts") if config.get(k)), None)
    if experts is not None:
        problems.append(
            f"{where}: {experts} is {config[experts]}: mixtures of experts are not known yet"
        )
    if problems or family is None:
        raise ArchitectureError(*problems)
    return family(config, where)
