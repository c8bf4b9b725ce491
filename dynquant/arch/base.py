"""What a model is: its GGUF keys and its tensors, each with a name, a shape and lazy rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dynquant.keys import Keys
from dynquant.tensors import Kept, TensorSource, n_rows

Via = Callable[[TensorSource], TensorSource]
"""How rows change on their way from the checkpoint (transforms.py)."""

_LAYERED = re.compile(r"(?:\w+\.)?blk\.([0-9]{1,4})\.(.+)")
"""Four digits, as in recipes: llama.cpp has 512 layers at most, and layers are counted up to the
last. Also of models in two parts: `enc.blk.3.ffn_down.weight`, `v.blk.3.attn_q.weight`."""


@dataclass(frozen=True)
class TensorName:
    """A GGUF tensor name taken apart: `blk.3.ffn_down.weight` is role ffn_down of layer 3.

    Tensors outside the layers have layer None: `output_norm.weight` is role output_norm.
    """

    name: str
    role: str
    layer: int | None

    @classmethod
    def parse(cls, name: str) -> TensorName:
        """Take a GGUF tensor name apart."""
        found = _LAYERED.fullmatch(name)
        layer, rest = (int(found[1]), found[2]) if found else (None, name)
        return cls(name, rest.rsplit(".", 1)[0], layer)


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of the output file, and where its rows come from.

    kept: the blocks that it is stored in, where a file that keeps them has another tensor beside
    """

    name: str
    source: TensorSource
    kept: Kept | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """As in numpy, slowest dimension first."""
        return self.source.shape

    @property
    def n_rows(self) -> int:
        """Rows over all dimensions but the last."""
        return n_rows(self.shape)

    @property
    def n_per_row(self) -> int:
        """Weights in a row."""
        return self.shape[-1]

    @cached_property
    def parts(self) -> TensorName:
        """The name taken apart into role and layer."""
        return TensorName.parse(self.name)


@dataclass(frozen=True)
class Row:
    """A line of a family's tensor table; `{}` stands for the layer, and repeats the line for each.

    stored: the name in the checkpoint; with `{expert}` in it, the tensors of all experts, stacked
    name:   the name in the GGUF
    shape:  dimensions of a stored tensor as in numpy, named as in `Architecture.sizes`, separated
            by spaces; two lines may take parts of one stored tensor (see `Architecture.via`)
    layers: the layers that have the line; None for all
    may_lack: whether checkpoints leave it out that have all else
    """

    stored: str
    name: str
    shape: str
    layers: Collection[int] | None = None
    may_lack: bool = False


def on(layers: Collection[int], rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return lines that only some layers have."""
    return tuple(replace(row, layers=layers) for row in rows)


def renamed(keys: Keys, architecture: str) -> Keys:
    """Return keys of one architecture as those of another."""
    return {f"{architecture}.{key.partition('.')[2]}": value for key, value in keys.items()}


@dataclass(frozen=True)
class Prediction:
    """Layers after a model's own that predict tokens further ahead; runtimes do without them.

    layers: their numbers; their lines in the tensor table have them as `layers`
    keys:   what changes in a file that keeps them
    shared: roles of theirs that copy a tensor of the model, with its name; left out where equal
    stored: of each of their tensors, the names in the checkpoint
    """

    layers: range
    keys: Keys
    shared: Mapping[str, str] = field(default_factory=dict[str, str])
    stored: Mapping[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])


@dataclass(frozen=True)
class Architecture:
    """What a family makes of one config.json: all of a model but its stored tensors.

    name:       general.architecture; keys: `<name>.*` in llama.cpp's order
    rows:       every tensor that the checkpoint must hold; sizes: the dimensions they speak of
    n_layers:   layers, those of `prediction` not counted; n_experts: experts in a stack
    tied:       stored names of the output matrix and of the embedding that stands in where the
                checkpoint leaves the former out; None where both must be there
    via:        how rows change on the way, by role; extra: tensors that no file holds
    ignored:    patterns of stored names that the output leaves out, with the reason
    prediction: layers that a checkpoint may have beyond the model's own
    deviations: what llama.cpp computes otherwise than the model's own code; people are told
    merged:     the same model with keys and values of latent attention in one matrix
    """

    name: str
    keys: Keys
    rows: tuple[Row, ...]
    sizes: Mapping[str, int]
    n_layers: int
    tied: tuple[str, str] | None
    via: Mapping[str, Via] = field(default_factory=dict[str, Via])
    extra: tuple[ModelTensor, ...] = ()
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    n_experts: int = 0
    prediction: Prediction | None = None
    deviations: tuple[str, ...] = ()
    merged: Architecture | None = None


@dataclass(frozen=True)
class Model:
    """A model ready to be planned: nothing read but headers and the tokenizer.

    keys:       complete but for what the plan adds (general.file_type, quantization_version), and
                for what a file changes that keeps the layers of `prediction`
    ignored:    stored tensors that the output leaves out, with the reason
    prediction: layers that a file may leave out, among `tensors`
    deviations: what llama.cpp computes otherwise than the model's own code
    files:      files that belong to the model, whether or not a tensor is read from them
    is_gguf:    its tensors come from a GGUF, where those in blocks may have been rounded once
    missing:    why no file can be written of it, only planned; empty where nothing is missing
    """

    architecture: str
    keys: Keys
    tensors: tuple[ModelTensor, ...]
    ignored: dict[str, str]
    prediction: Prediction | None = None
    deviations: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()
    is_gguf: bool = False
    missing: tuple[str, ...] = ()
