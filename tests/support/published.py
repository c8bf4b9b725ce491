"""Published models as names and shapes, without files."""

from __future__ import annotations

import re
from collections.abc import Iterator

from published_configs import Config
from unread import Unread

from dynquant.arch.base import Architecture, Model, ModelTensor
from dynquant.arch.load import describe


def model_of(config: Config) -> Model:
    """Return names and shapes of the model of a configuration, without prediction layers."""
    architecture = describe(config, "config.json")
    tensors = (*_tensors(architecture), *architecture.extra)
    return Model(architecture.name, architecture.keys, tensors, {})


def _tensors(architecture: Architecture) -> Iterator[ModelTensor]:
    tied = architecture.tied[:1] if architecture.tied else ()
    for row in architecture.rows:
        if row.stored in tied:
            continue
        shape = tuple(architecture.sizes[size] for size in row.shape.split())
        if found := re.search(r"\{(\w+)\}", row.stored):
            shape = (architecture.n_parts(found[1], row), *shape)
        layers = range(architecture.n_layers) if row.layers is None else row.layers
        for layer in layers if "{}" in row.name else (0,):
            if layer < architecture.n_layers:
                name = row.name.replace("{}", str(layer))
                via = architecture.via_of(row)
                yield ModelTensor(name, via(Unread(shape)) if via else Unread(shape))
