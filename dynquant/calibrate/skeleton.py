"""A model of transformers without weights, and where each stored tensor belongs in it.

The model is made on torch's device `meta`, where tensors have shapes and no memory. Transformers
knows which stored names its parameters have; the weights come through dynquant's own readers, so
that packed checkpoints (FP8, NVFP4, GPTQ …) are read as they are, a layer at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from dynquant.arrays import U8
from dynquant.checkpoint.packed import Weight
from dynquant.errors import CalibrationError
from dynquant.quants import decode
from dynquant.tensors import n_rows, row_bytes

_LISTS = ("layers", "h", "blocks")
"""Names that decoders have for their layers."""


@dataclass
class Skeleton:
    """A model without weights.

    model:   transformers' model, its parameters on the device `meta`
    decoder: the part of it that turns token ids into hidden states
    layers:  its layers
    prefix:  the layers' name in the model, with a dot at the end
    stored:  the checkpoint's weights by stored name
    places:  for each stored name, the parameter that it is, or is a part of
    unknown: stored names that no parameter is made of
    """

    model: Any
    decoder: Any
    layers: Any
    prefix: str
    stored: Mapping[str, Weight]
    places: dict[str, str] = field(default_factory=dict[str, str])
    unknown: list[str] = field(default_factory=list[str])

    def layer_of(self, parameter: str) -> int | None:
        """Return the layer that a parameter belongs to; None if it is outside of all."""
        if not parameter.startswith(self.prefix):
            return None
        return int(parameter[len(self.prefix) :].partition(".")[0])

    def names_of(self, layer: int | None, *, without: Iterable[str] = ()) -> list[str]:
        """Return the stored names of a layer, or of what is outside of all layers.

        without: beginnings of the parameters to leave out
        """
        left_out = tuple(without)
        return [
            name
            for name, place in self.places.items()
            if self.layer_of(place) == layer and not place.startswith(left_out)
        ]

    def load(self, names: Iterable[str]) -> None:
        """Give parameters their weights as float32, from the stored tensors of these names."""
        wanted = {name: _Lazy(self.stored[name]) for name in names}
        done, _ = convert_and_load_state_dict_in_model(
            self.model,
            wanted,
            LoadStateDictConfig(
                dtype=torch.float32, weight_mapping=get_model_conversion_mapping(self.model)
            ),
        )
        problems = [
            f"{name}: has shape {list(found)} in the checkpoint, and transformers wants"
            f" {list(expected)}"
            for name, found, expected in done.mismatched_keys
        ]
        problems += [f"{name}: {error}" for name, error in done.conversion_errors.items()]
        CalibrationError.raise_any(problems)

    def unload(self, module: Any) -> None:
        """Free the weights of a module."""
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    part._parameters[name] = torch.nn.Parameter(
                        torch.empty_like(value, device="meta"), requires_grad=False
                    )


def skeleton(folder: Path, stored: Mapping[str, Weight]) -> Skeleton:
    """Make the model of a checkpoint without its weights.

    stored: its weights, by stored name

    Raises CalibrationError if transformers does not know the family.
    """
    logging.disable_progress_bar()
    config = _config(folder)
    model = _empty(folder, config)
    model.eval().requires_grad_(requires_grad=False)
    _fill_buffers(model)
    decoder = model.get_decoder()
    prefix, layers = _layers(folder, model, decoder)
    found = Skeleton(model, decoder, layers, prefix, stored)
    _place(found)
    return found


def _empty(folder: Path, config: Any) -> Any:
    """Return a model on the device `meta`; of one that also sees or hears, all of it."""
    autos = (AutoModelForCausalLM, AutoModelForMultimodalLM)
    known = [auto for auto in autos if type(config) in auto._model_mapping]
    if not known:
        raise CalibrationError(
            f"{folder}: transformers has no language model of {config.model_type}; {_INSTEAD}"
        )
    try:
        with torch.device("meta"):
            return known[0].from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, ImportError, AttributeError) as e:
        raise CalibrationError(
            f"{folder}: transformers cannot make a language model of {config.model_type}:"
            f" {str(e).splitlines()[0]}; {_INSTEAD}"
        ) from e


_INSTEAD = (
    "write an F16 GGUF (`dynquant convert -r f16`), run llama-imatrix on it, and give its file as"
    " --imatrix"
)


def _config(folder: Path) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError) as e:
        raise CalibrationError(
            f"{folder}: transformers cannot read its config.json: {str(e).splitlines()[0]};"
            f" {_INSTEAD}"
        ) from e
    # The weights are decoded by our readers.
    for part in (config, config.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config
    return config


def _fill_buffers(model: Any) -> None:
    """Give values to what modules compute from the config, such as the frequencies of RoPE."""
    for module in model.modules():
        own = {name: b for name, b in module._buffers.items() if b is not None and b.is_meta}
        for name, value in own.items():
            module._buffers[name] = torch.zeros_like(value, device="cpu")
        if own:
            model._init_weights(module)


def _layers(folder: Path, model: Any, decoder: Any) -> tuple[str, Any]:
    n = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if module is decoder:
            for own, part in module.named_children():
                if own in _LISTS and isinstance(part, torch.nn.ModuleList) and len(part) == n:
                    return f"{name}.{own}.".lstrip("."), part
    raise CalibrationError(
        f"{folder}: {type(model).__name__} of transformers has no list of {n} layers; {_INSTEAD}"
    )


def _place(found: Skeleton) -> None:
    """Find the parameter of each stored tensor."""
    mapping = get_model_conversion_mapping(found.model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    own = found.model.state_dict()
    for name in found.stored:
        place, _ = rename_source_key(
            name, renamings, converters, found.model.base_model_prefix, own
        )
        if place not in own and name in own:
            place = name
        if place in own:
            found.places[name] = place
        else:
            found.unknown.append(name)


class _Lazy:
    """A stored tensor that is read when transformers asks for it."""

    def __init__(self, weight: Weight) -> None:
        self._weight = weight

    def __getitem__(self, _: object) -> Any:
        return read(self._weight)


def read(weight: Weight) -> Any:
    """Return a stored tensor, decoded to float32; integers stay integers."""
    source = weight.source()
    content: U8 = np.empty(n_rows(source.shape) * row_bytes(source), np.uint8)
    source.read(0, n_rows(source.shape), content)
    whole = decode(content.reshape(n_rows(source.shape), -1), source.stored, source.shape[-1])
    return torch.from_numpy(whole.reshape(source.shape))


def blocks(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the mixtures of a model whose experts are in one parameter, with their names."""
    for name, module in model.named_modules():
        if hasattr(module, "is_concatenated") and hasattr(module, "is_transposed"):
            yield name, module
