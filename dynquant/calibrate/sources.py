"""The models that can be run: checkpoints, and GGUFs that transformers reads."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from math import prod
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
)

from dynquant.arch.base import Model, ModelTensor
from dynquant.arch.load import fetch_model, load_model
from dynquant.arrays import I32, U8
from dynquant.calibrate.chats import Chat
from dynquant.calibrate.skeleton import INSTEAD, Reader, Skeleton, skeleton
from dynquant.calibrate.tokens import bos_of, by_llama_cpp, by_transformers
from dynquant.checkpoint.hub import is_hub_name
from dynquant.checkpoint.packed import unpack
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import CalibrationError
from dynquant.name_lists import grouped
from dynquant.quants import decode
from dynquant.quants.table import KEPT, QuantType
from dynquant.tensors import TensorSource, n_rows, row_bytes
from dynquant.texts import Text

Tokenize = Callable[[Sequence[Text | Chat]], list[I32]]


@dataclass(frozen=True)
class Source:
    """A model that can be run.

    name:     in reports and in the file
    model:    as it is converted
    skeleton: as transformers runs it
    parts:    for each tensor of the GGUF, the stored names that it is made of
    tokenize: returns the token ids of each text, with those that begin a prompt
    """

    path: Path
    name: str
    model: Model
    skeleton: Skeleton
    parts: Mapping[str, tuple[str, ...]]
    tokenize: Tokenize

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files of the weights and of the settings."""
        if self.path.is_dir():
            return tuple(sorted([*self.path.glob("*.safetensors"), *self.path.glob("*.json")]))
        return self.model.files

    @property
    def has_scores(self) -> bool:
        """Whether attention keeps the scores of all pairs of tokens in memory."""
        config = self.skeleton.model.config.get_text_config()
        roles = {tensor.parts.role for tensor in self.model.tensors}
        by_parts = any(role in ("attn_k_b", "attn_kv_b") or "indexer" in role for role in roles)
        return by_parts or getattr(config, "_attn_implementation", "eager") != "sdpa"

    @property
    def bos(self) -> int | None:
        """Return the token that runtimes put before a text, or None."""
        return bos_of(self.model.keys)


def open_source(given: str | Path, device: Any = None) -> Source:
    """Open a checkpoint or a GGUF; a model of the Hub is fetched first.

    given:  a folder, a GGUF or any of its shards, or hf://...

    device: where it will run; None is the CPU

    Raises DynquantError for a damaged model, CalibrationError if transformers cannot run it.
    """
    device = torch.device("cpu") if device is None else device
    if is_hub_name(str(given)):
        path, name = fetch_model(str(given))
        return replace(_open(path, device), name=str(name))
    return _open(Path(given), device)


def _open(path: Path, device: Any) -> Source:
    return _checkpoint(path, device) if path.is_dir() else _gguf(path, device)


def _checkpoint(folder: Path, device: Any) -> Source:
    model = load_model(folder)
    config = _config(folder, folder)
    # The weights are decoded by our readers.
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    weights = unpack(open_checkpoint(folder)).tensors
    readers = {name: _Stored(weight.source()) for name, weight in weights.items()}
    parts = {tensor.name: tensor.stored_names for tensor in model.tensors}
    empty = skeleton(folder, config, lambda _: readers, device)
    _check_known(folder, model, empty)
    tokenize = partial(by_transformers, folder, model.keys)
    return Source(folder, folder.resolve().name, model, empty, parts, tokenize)


def _check_known(folder: Path, model: Model, empty: Skeleton) -> None:
    """Raise CalibrationError if transformers leaves out tensors that llama.cpp computes with."""
    ahead = model.prediction.layers if model.prediction else ()
    used = {n for t in model.tensors if t.parts.layer not in ahead for n in t.stored_names}
    if left_out := sorted(used & set(empty.unknown)):
        raise CalibrationError(
            f"{folder}: transformers' {type(empty.model).__name__} has no parameters for"
            f" {', '.join(grouped(left_out))}, so that it computes another model; {INSTEAD}"
        )


SETTINGS_KEPT = ("bloom", "falcon", "lfm2", "llama", "mamba", "qwen2")
"""Architectures of GGUFs of which transformers reads all settings: their imatrix is that of the
checkpoint (tests/calibrate). Of others it replaces some by defaults, without a word."""


def _check_settings(path: Path, model: Model) -> None:
    """Raise CalibrationError if transformers would compute another model than a GGUF is."""
    scaling = f"{model.architecture}.rope.scaling."
    why = ""
    if model.architecture not in SETTINGS_KEPT:
        why = f"transformers does not read all settings of a GGUF of {model.architecture}"
    elif any(name.startswith(scaling) for name in model.keys):
        why = "transformers does not read the scaling of positions of a GGUF"
    if why:
        raise CalibrationError(
            f"{path}: {why}, so that it computes another model; give the checkpoint, or run"
            " llama-imatrix on this file, and give its file as --imatrix"
        )


def _gguf(path: Path, device: Any) -> Source:
    model = load_model(path)
    path = model.files[0]  # of shards, the one with the settings
    _check_settings(path, model)
    config = _config(path, path.parent, gguf_file=path.name)
    kind = TENSOR_PROCESSORS.get(model.architecture, TensorProcessor)
    processor = kind(config=config.to_dict())
    parts: dict[str, tuple[str, ...]] = {}

    def readers(empty: Any) -> dict[str, Reader]:
        with _names_kept():
            names: dict[str, str] = get_gguf_hf_weights_map(empty, processor)
        found: dict[str, Reader] = {}
        for tensor in model.tensors:
            if name := names.get(tensor.name):
                parts[tensor.name] = (name,)
                found[name] = _OfGguf(processor, tensor, names)
        return found

    empty = skeleton(path, config, readers, device)
    if left_out := [tensor.name for tensor in model.tensors if tensor.name not in parts]:
        raise CalibrationError(
            f"{path}: transformers does not read {', '.join(grouped(left_out))} of a GGUF, so that"
            " it computes another model; give the checkpoint, or run llama-imatrix on this file,"
            " and give its file as --imatrix"
        )
    return Source(
        path,
        path.name,
        model,
        empty,
        parts,
        partial(by_llama_cpp, path, model.keys),
    )


@contextmanager
def _names_kept() -> Generator[None]:
    """Let gguf make its table of names once: transformers asks for it again for each module."""
    table: Callable[..., Any] = gguf.get_tensor_name_map
    gguf.get_tensor_name_map = cache(table)
    try:
        yield
    finally:
        gguf.get_tensor_name_map = table


def _config(path: Path, folder: Path, **options: str) -> Any:
    try:
        return AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **options
        )
    except (ValueError, KeyError, OSError, StrictDataclassError) as e:
        why = " ".join(str(e).split())
        raise CalibrationError(
            f"{path}: transformers cannot read its settings: {why}; {INSTEAD}"
        ) from e


def floats(content: U8, stored: QuantType, n_per_row: int) -> Any:
    """Return stored rows as a tensor, float32 [n_rows, n_per_row]; without a copy if they are."""
    if stored.name == "F32":
        return torch.from_numpy(content.view(np.float32))
    return torch.from_numpy(decode(content, stored, n_per_row))


@dataclass(frozen=True)
class _Stored:
    """A tensor of a checkpoint, decoded to float32; integers stay integers."""

    source: TensorSource

    def __call__(self) -> Any:
        """Return the whole tensor."""
        source = self.source
        n = n_rows(source.shape)
        content: U8 = np.empty(n * row_bytes(source), np.uint8)
        source.read(0, n, content)
        if source.stored.name in KEPT:
            numbers = content.view(source.stored.name.lower().replace("i", "int"))
            return torch.from_numpy(numbers.reshape(source.shape))
        whole = floats(content.reshape(n, -1), source.stored, prod(source.shape[-1:]))
        return whole.reshape(source.shape)

    def rows(self, numbers: Sequence[int]) -> Any:
        """Return some rows of a matrix, float32 [n, n_per_row]."""
        size = row_bytes(self.source)
        content: U8 = np.empty((len(numbers), size), np.uint8)
        for into, number in zip(content, numbers, strict=True):
            self.source.read(number, number + 1, into)
        return floats(content, self.source.stored, self.source.shape[-1])


@dataclass(frozen=True)
class _OfGguf:
    """A tensor of a GGUF in the form that transformers has."""

    processor: Any
    tensor: ModelTensor
    names: Mapping[str, str]

    def __call__(self) -> Any:
        """Return the whole tensor."""
        found = self.processor.process(
            weights=_Stored(self.tensor.source)().numpy(),
            name=self.tensor.name,
            tensor_key_mapping=self.names,
            parsed_parameters={"tensors": {}},
        )
        return torch.from_numpy(np.ascontiguousarray(found.weights))

    def rows(self, numbers: Sequence[int]) -> Any:
        """Return some rows of a table, which have the same form in both."""
        return _Stored(self.tensor.source).rows(numbers)
