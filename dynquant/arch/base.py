"""A model: its GGUF keys and its tensors, each with a name, a shape and lazy rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from dynquant.keys import Keys
from dynquant.tensors import Kept, TensorSource, n_rows
from dynquant.vocab.loading import Trims

Via = Callable[[TensorSource], TensorSource]
"""A transform of rows on their way from the checkpoint (transforms/words.py)."""

_LAYERED = re.compile(r"(?:\w+\.)?blk\.([0-9]{1,4})\.(.+)")
"""At most four digits, as in recipes: llama.cpp has 512 layers at most, and code that counts layers
counts up to the largest number. Models in two parts have a prefix: `enc.blk.3.ffn_down.weight`,
`v.blk.3.attn_q.weight`."""

_FACTOR = re.compile(r"\.lora_[ab]$")
"""The end of the name of a factor of an adapter's change, behind that of the tensor."""


@dataclass(frozen=True)
class TensorName:
    """A parsed GGUF tensor name: `blk.3.ffn_down.weight` has role ffn_down and layer 3.

    The layer of tensors outside all layers is None: `output_norm.weight` has role output_norm. The
    factors of an adapter have the role of their tensor: `blk.3.ffn_down.weight.lora_a`.
    """

    name: str
    role: str
    layer: int | None

    @classmethod
    def parse(cls, name: str) -> TensorName:
        """Parse a GGUF tensor name."""
        whole = _FACTOR.sub("", name)
        found = _LAYERED.fullmatch(whole)
        layer, rest = (int(found[1]), found[2]) if found else (None, whole)
        return cls(name, rest.rsplit(".", 1)[0], layer)


@dataclass(frozen=True)
class ModelTensor:
    """One tensor of the output file, and where its rows come from.

    kept:         the stored blocks, if a file can keep them with a second tensor of factors
    stored_names: the tensors of the source that it is made of, experts in order. A packed weight
                  (GPTQ, FP8 …) is named as if it were not packed. Empty if the tensor is computed
    """

    name: str
    source: TensorSource
    kept: Kept | None = None
    stored_names: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """As in numpy, slowest dimension first."""
        return self.source.shape

    @property
    def n_rows(self) -> int:
        """Number of rows, over all dimensions but the last."""
        return n_rows(self.shape)

    @property
    def n_per_row(self) -> int:
        """Number of weights in a row."""
        return self.shape[-1]

    @cached_property
    def parts(self) -> TensorName:
        """The name, parsed into role and layer."""
        return TensorName.parse(self.name)

    @property
    def changes(self) -> str:
        """The name of the tensor that it is a factor of a change of; else its own."""
        return _FACTOR.sub("", self.name)


@dataclass(frozen=True)
class Form:
    """Another form in which programs store a tensor of the table.

    stored, shape, via: as in Row; a dimension `2*ffn` is twice `ffn`
    layout:   a name for the forms of several rows that occur together, such as gate, up and down
    oriented: whether the names show that rows are outputs; if not, only the shapes do
    """

    stored: str
    shape: str
    layout: str = ""
    via: Via | None = None
    oriented: bool = True

    def within(self, before: str, after: str) -> Form:
        """Return the form with another beginning of the stored name."""
        return replace(self, stored=self.stored.replace(before, after))


JOINED = "part"
"""The word in a stored name that stands for tensors whose rows are joined, `{part}`."""


@dataclass(frozen=True)
class Row:
    """A row of a family's tensor table. `{}` stands for the layer; such a row repeats per layer.

    stored:   the name in the checkpoint; `{expert}` in it stands for each expert, and the tensors
              of all experts are stacked; `{head}` and `{kv_head}` likewise, for the numbers of
              `heads` and `kv_heads` in `Architecture.sizes`; `{part}` stands for each of `parts`
              tensors, whose rows are joined
    name:     the name in the GGUF
    shape:    dimensions of a stored tensor in numpy's order, named as in `Architecture.sizes` and
              separated by spaces
    layers:   the layers that have this tensor; None for all
    optional: whether an otherwise complete checkpoint may omit it
    parts:    the number of tensors that it is stored in; 0 if `stored` has no `{part}`
    via:      the transform of its rows, by which two rows can take parts of one stored tensor;
              None for the one that `Architecture.via` has for its role
    forms:    other forms in which a checkpoint may store the tensor
    times:    the name and shape of a second stored tensor, by whose weights the first's are
              multiplied before `via`
    """

    stored: str
    name: str
    shape: str
    layers: Collection[int] | None = None
    optional: bool = False
    parts: int = 0
    via: Via | None = None
    forms: tuple[Form, ...] = ()
    times: tuple[str, str] | None = None

    def within(self, before: str, after: str) -> Row:
        """Return the row with another beginning of the stored names."""
        stored = self.stored.replace(before, after)
        return replace(
            self, stored=stored, forms=tuple(f.within(before, after) for f in self.forms)
        )


def with_bias(stored: str, name: str, n_out: str, n_in: str | None = None) -> tuple[Row, Row]:
    """Return the rows of a matrix or norm and of its bias."""
    weight = n_out if n_in is None else f"{n_out} {n_in}"
    return (
        Row(f"{stored}.weight", f"{name}.weight", weight),
        Row(f"{stored}.bias", f"{name}.bias", n_out),
    )


def on(layers: Collection[int], rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return rows that only these layers have."""
    return tuple(replace(row, layers=layers) for row in rows)


def renamed(keys: Keys, architecture: str) -> Keys:
    """Return an architecture's keys under the name of another."""
    return {f"{architecture}.{key.partition('.')[2]}": value for key, value in keys.items()}


@dataclass(frozen=True)
class Prediction:
    """Extra layers after the model's own that predict further tokens; runtimes do not need them.

    layers: their numbers, which their rows of the tensor table name as `layers`
    keys:   keys to change or add in a file that keeps these layers
    shared: roles that may copy a tensor of the model, with the name of that tensor; equal copies
            are left out of the file
    """

    layers: range
    keys: Keys
    shared: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Architecture:
    """A family's description of one config.json: the whole model except its stored tensors.

    name:       general.architecture
    keys:       `<name>.*` in llama.cpp's order
    rows:       the tensor table: every tensor that the checkpoint must hold
    sizes:      the dimensions that the rows name
    n_layers:   number of layers without those of `prediction`
    tied:       stored names of the output matrix and of the embedding that replaces it if the
                checkpoint omits it; None if both must be stored
    via:        transforms of rows, by role
    extra:      tensors that are computed, not stored
    numbers:    keys whose values, one for each layer, are stored as tensors; the rows of these are
                named `blk.{}.` and the name of the key
    integers:   keys whose values are integers that a tensor stores, and the permitted ones; the
                rows of these have the name of the key
    ignored:    patterns of stored names that the output leaves out, with the reason
    n_experts:  number of experts in a stack
    prediction: layers that a checkpoint may have beyond the model's own
    deviations: warnings about differences between llama.cpp's graph and the model's own code
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
    numbers: frozenset[str] = frozenset()
    integers: Mapping[str, range] = field(default_factory=dict[str, range])
    ignored: Mapping[str, str] = field(default_factory=dict[str, str])
    n_experts: int = 0
    prediction: Prediction | None = None
    deviations: tuple[str, ...] = ()
    merged: Architecture | None = None

    def dimensions(self, shape: str) -> tuple[int, ...]:
        """Return the shape of a row or form as numbers."""
        words = (word.rpartition("*") for word in shape.split())
        return tuple(int(times or 1) * self.sizes[name] for times, _, name in words)

    def n_parts(self, word: str, row: Row) -> int:
        """Return how many tensors a word in a row's stored name stands for: expert, head, part."""
        if word == JOINED:
            return row.parts
        return self.n_experts if word == "expert" else self.sizes[f"{word}s"]

    def via_of(self, row: Row) -> Via | None:
        """Return the transform of a row of the table: its own, else that of its role."""
        return row.via or self.via.get(TensorName.parse(row.name.replace("{}", "0")).role)


@dataclass(frozen=True)
class Model:
    """A model ready for planning; only headers and the tokenizer have been read.

    keys:       complete except for those that the plan adds (general.file_type,
                quantization_version) and those that `prediction` changes if its layers are kept
    ignored:    stored tensors that the output leaves out, with the reason
    prediction: layers that a file may leave out; their tensors are among `tensors`
    deviations: warnings about differences between llama.cpp's graph and the model's own code,
                between its tokens and the tokenizer's, and about keys that a GGUF must have and
                does not
    files:      files that belong to the model, whether or not a tensor is read from them
    is_gguf:    whether the tensors come from a GGUF, whose blocks may have been rounded before
    missing:    what prevents writing a file, though planning is possible; empty if nothing does
    trims:      tokens that remove the spaces around them; None if they are not known
    leave_out:  globs of stored names that the user leaves out
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
    trims: Trims | None = None
    leave_out: tuple[str, ...] = ()
