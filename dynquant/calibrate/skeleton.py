"""A model of transformers without weights, and where each stored tensor belongs in it.

The model is made on torch's device `meta`, where tensors have shapes and no memory. Transformers
knows which stored names its parameters have; the weights come through dynquant's own readers, so
that packed checkpoints (FP8, NVFP4, GPTQ …) are read as they are, a layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    rename_source_key,
)
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import logging

from dynquant.errors import CalibrationError
from dynquant.name_lists import grouped


class Reader(Protocol):
    """Reads a stored tensor: float32, or integers as they are stored."""

    def __call__(self) -> Any:
        """Return the whole tensor."""
        ...

    def rows(self, numbers: Sequence[int]) -> Any:
        """Return some rows of a matrix, float32 [n, n_per_row]."""
        ...


_LISTS = ("layers", "h", "blocks")
"""Names that decoders have for their layers."""


@dataclass
class Skeleton:
    """A model without weights.

    model:   transformers' model, its parameters on the device `meta`
    decoder: the part of it that turns token ids into hidden states
    layers:  its layers
    device:  where it runs
    name:    the decoder's name in the model
    prefix:  the layers' name in the model, with a dot at the end
    readers: for each stored name, a function that reads the tensor
    places:  for each stored name, the parameter that it is, or is a part of
    unknown: stored names that no parameter is made of
    """

    model: Any
    decoder: Any
    layers: Any
    device: Any
    name: str
    prefix: str
    readers: Mapping[str, Reader]
    places: dict[str, str] = field(default_factory=dict[str, str])
    unknown: list[str] = field(default_factory=list[str])

    def layer_of(self, parameter: str) -> int | None:
        """Return the layer that a parameter belongs to; None if it is outside of all."""
        if not parameter.startswith(self.prefix):
            return None
        return int(parameter[len(self.prefix) :].partition(".")[0])

    def names_of(self, layer: int | None, *, without: Iterable[str] = ()) -> list[str]:
        """Return the stored names of a layer, or of the rest of the decoder.

        without: beginnings of the parameters to leave out
        """
        left_out = tuple(without)
        return [
            name
            for name, place in self.places.items()
            if self.layer_of(place) == layer and place.startswith(f"{self.name}.")
            if not place.startswith(left_out)
        ]

    @contextmanager
    def rest_loaded(self, tokens: Sequence[int]) -> Generator[None]:
        """Give the rest of the decoder its weights; of tables of tokens, only the rows of some.

        tokens: ascending ids of all tokens that the model will read

        Raises CalibrationError if a parameter has no weights.
        """
        tables = self._tables()
        names = self.names_of(None)
        self.load(name for name in names if self.places[name] not in tables)
        handles: list[Any] = []
        for name in names:
            if table := tables.get(self.places[name]):
                own = [token for token in tokens if token < table.num_embeddings]
                weight = self.readers[name].rows(own).to(self.device)
                table.weight = torch.nn.Parameter(weight, requires_grad=False)
                table.padding_idx = None  # of the row that training leaves out
                handles.append(
                    table.register_forward_pre_hook(
                        _renumber(torch.tensor(own, device=self.device))
                    )
                )
        self._check_complete(
            f"{self.name}.{own}"
            for own, value in self.decoder.named_parameters()
            if value.is_meta and self.layer_of(f"{self.name}.{own}") is None
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tables(self) -> dict[str, Any]:
        """Return the tables that have a row for each token, by the names of their parameters."""
        main = self.decoder.get_input_embeddings()
        return {
            f"{name}.weight": module
            for name, module in self.model.named_modules()
            if name.startswith(f"{self.name}.") and isinstance(module, torch.nn.Embedding)
            if module is main or "embed_tokens" in name  # Gemma 3n has one for the layers, too
        }

    def load(self, names: Iterable[str]) -> None:
        """Give parameters their weights as float32, from the stored tensors of these names."""
        wanted = {name: _Lazy(self.readers[name]) for name in names}
        done, _ = convert_and_load_state_dict_in_model(
            self.model,
            wanted,
            LoadStateDictConfig(
                dtype=torch.float32,
                device_map={"": self.device},
                weight_mapping=get_model_conversion_mapping(self.model),
            ),
        )
        problems = [
            f"{name}: has shape {list(found)} in the checkpoint, and transformers wants"
            f" {list(expected)}"
            for name, found, expected in sorted(done.mismatched_keys)
        ]
        problems += [f"{name}: {error}" for name, error in sorted(done.conversion_errors.items())]
        if problems:
            problems[-1] += f"; {INSTEAD}"
        CalibrationError.raise_any(problems)

    def load_layer(self, number: int, mixtures: Collection[str]) -> None:
        """Give a layer its weights.

        mixtures: names of the modules whose experts are read elsewhere

        Raises CalibrationError if a parameter has no weights.
        """
        name = f"{self.prefix}{number}"
        self.load(self.names_of(number, without=[f"{mixture}." for mixture in mixtures]))
        self._check_complete(
            f"{name}.{own}"
            for own, value in self.layers[number].named_parameters()
            if value.is_meta and f"{name}.{own}".rpartition(".")[0] not in mixtures
        )

    def _check_complete(self, missing: Iterable[str]) -> None:
        if empty := list(missing):
            raise CalibrationError(
                f"{', '.join(grouped(empty))}: transformers needs them, and the checkpoint has no"
                f" tensors of these names; {INSTEAD}"
            )

    def unload(self, module: Any) -> None:
        """Free the weights of a module."""
        for part in module.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    part._parameters[name] = torch.nn.Parameter(
                        torch.empty_like(value, device="meta"), requires_grad=False
                    )


def skeleton(
    where: Path, config: Any, readers: Callable[[Any], Mapping[str, Reader]], device: Any
) -> Skeleton:
    """Make a model without its weights.

    where:   what messages begin with
    device:  where it will run
    readers: returns a reader for each stored name, given the model

    Raises CalibrationError if transformers does not know the family.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # its warnings are for programs
    model = _empty(where, config)
    model.eval().requires_grad_(requires_grad=False)
    _fill_buffers(model, device)
    decoder = model.get_decoder()
    if decoder is model:  # whose class names another part than it has
        decoder = model.model
    prefix, layers = _layers(where, model, decoder)
    name = prefix.removesuffix(".").rpartition(".")[0]
    found = Skeleton(model, decoder, layers, device, name, prefix, readers(model))
    _place(found)
    return found


def _empty(where: Path, config: Any) -> Any:
    """Return a model on the device `meta`; of one that also sees or hears, all of it."""
    autos = (AutoModelForCausalLM, AutoModelForMultimodalLM)
    known = [auto for auto in autos if type(config) in auto._model_mapping]
    if not known:
        raise CalibrationError(
            f"{where}: transformers has no language model of {config.model_type}; {INSTEAD}"
        )
    try:
        with torch.device("meta"):
            return known[0].from_config(config, dtype=torch.float32)
    except (ValueError, KeyError, ImportError, AttributeError) as e:
        raise CalibrationError(
            f"{where}: transformers cannot make a language model of {config.model_type}:"
            f" {str(e).splitlines()[0]}; {INSTEAD}"
        ) from e


INSTEAD = (
    "write an F16 GGUF (`dynquant convert -r f16`), run llama-imatrix on it, and give its file as"
    " --imatrix"
)


def _fill_buffers(model: Any, device: Any) -> None:
    """Give values to what modules compute from the config, such as the frequencies of RoPE."""
    for module in model.modules():
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = torch.zeros_like(value, device=device)
    model.initialize_weights()  # has no effect on parameters, which have no memory


def _layers(where: Path, model: Any, decoder: Any) -> tuple[str, Any]:
    n = model.config.get_text_config().num_hidden_layers
    for name, module in model.named_modules():
        if module is decoder:
            for own, part in module.named_children():
                if own in _LISTS and isinstance(part, torch.nn.ModuleList) and len(part) == n:
                    return f"{name}.{own}.".lstrip("."), part
    raise CalibrationError(
        f"{where}: {type(model).__name__} of transformers has no list of {n} layers; {INSTEAD}"
    )


def _place(found: Skeleton) -> None:
    """Find the parameter of each stored tensor."""
    mapping = get_model_conversion_mapping(found.model)
    renamings = [m for m in mapping if isinstance(m, WeightRenaming)]
    converters = [m for m in mapping if isinstance(m, WeightConverter)]
    own = found.model.state_dict()
    for name in found.readers:
        place, _ = rename_source_key(
            name, renamings, converters, found.model.base_model_prefix, own
        )
        if place not in own and name in own:
            place = name
        if place in own:
            found.places[name] = place
        else:
            found.unknown.append(name)


def _renumber(known: Any) -> Callable[..., tuple[Any, ...]]:
    """Return a hook that replaces ids of tokens by their places among the given ones."""

    def renumbered(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, *rest = inputs
        return torch.searchsorted(known, ids.contiguous()), *rest

    return renumbered


class _Lazy:
    """A stored tensor that is read when transformers asks for it."""

    def __init__(self, read: Reader) -> None:
        self._read = read

    def __getitem__(self, _: object) -> Any:
        return self._read()


def blocks(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield the mixtures of a model whose experts are in one parameter, with their names."""
    for name, module in model.named_modules():
        if hasattr(module, "is_concatenated") and hasattr(module, "is_transposed"):
            yield name, module
