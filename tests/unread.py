"""Models of published sizes that no file holds: names and shapes of the output, from config.json."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Model, ModelTensor, TensorName
from dynquant.arch.load import describe
from dynquant.arrays import U8
from dynquant.quants import ALL, QuantType


@dataclass(frozen=True)
class Unread:
    """A source of which only the shape is wanted."""

    shape: tuple[int, ...]
    stored: QuantType = ALL["BF16"]

    def read(self, start: int, stop: int, into: U8) -> None:
        raise AssertionError(f"matching read rows {start}..{stop} into {into.shape}")


def model_of(config: dict[str, Any]) -> Model:
    """Return a model without the layers that predict further ahead."""
    architecture = describe(config, "config.json")
    tensors = tuple(_tensors(architecture))
    return Model(architecture.name, architecture.keys, tensors, {})


def _tensors(architecture: Architecture) -> Iterator[ModelTensor]:
    tied = architecture.tied[:1] if architecture.tied else ()
    for row in architecture.rows:
        if row.stored in tied:
            continue
        shape = tuple(architecture.sizes[size] for size in row.shape.split())
        if "{expert}" in row.stored:
            shape = (architecture.n_experts, *shape)
        layers = range(architecture.n_layers) if row.layers is None else row.layers
        for layer in layers if "{}" in row.name else (0,):
            if layer < architecture.n_layers:
                name = row.name.replace("{}", str(layer))
                via = architecture.via.get(TensorName.parse(name).role)
                yield ModelTensor(name, via(Unread(shape)) if via else Unread(shape))
