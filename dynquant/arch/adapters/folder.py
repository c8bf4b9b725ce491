"""The folder of a PEFT adapter: its modules, each with the two factors of a change of weights.

adapter_model.safetensors holds, for a module MODULE of the model's class:

    base_model.model.MODULE.lora_A.weight    [rank, inputs]
    base_model.model.MODULE.lora_B.weight    [outputs, rank]
    base_model.model.MODULE.lora_embedding_A [rank, tokens]
    base_model.model.MODULE.lora_embedding_B [width, rank]

The change of the weight [outputs, inputs] is scale * B @ A, that of an embedding [tokens, width]
is scale * (B @ A)^T. Some programs write the adapter's name behind lora_A: `lora_A.default.weight`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dynquant.arch.adapters.settings import CONFIG, AdapterSettings, read_settings
from dynquant.arch.base import Architecture
from dynquant.arch.wrapped import SEPARATE
from dynquant.checkpoint import hub
from dynquant.checkpoint.safetensors_header import StoredTensor, read_header
from dynquant.checkpoint.source_file import hash_of_settings, reading
from dynquant.errors import AdapterError
from dynquant.name_lists import grouped
from dynquant.quants.table import FLOATS
from dynquant.tensors import TensorSource
from dynquant.transforms import read_weights, transposed

WEIGHTS = "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<factor>[AB])(\.(?P<name>[\w-]+))??(\.weight)?"
)
_COPY = re.compile(r"(?P<module>.+)\.base_layer\.weight")
_KINDS = (
    (re.compile(r".*\.lora_magnitude_vector(\..*)?"), "belongs to DoRA"),
    (re.compile(r".*\.lora_B(\..*)?\.bias"), "is a bias of the adapter"),
    (re.compile(r".*\.modules_to_save\..*"), "is a module that was trained as a whole"),
    (re.compile(r".*\.(hada|lokr|oft|boft|ia3|vera|vblora)_.*"), "belongs to another method"),
    (re.compile(r".*\.lora_[ab]"), "is in the form of MLX"),
    (re.compile(r"lora_(unet|te).*"), "is in the form of image models"),
)
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Module:
    """One module that an adapter changes.

    path:  the module's name in the class of the model
    a, b:  the stored factors
    alpha: the factor of their product, times the rank
    is_flipped: whether the weight is stored as (B @ A)^T: embeddings, and with fan_in_fan_out
    """

    path: str
    a: StoredTensor
    b: StoredTensor
    alpha: float
    is_embedding: bool
    is_flipped: bool

    @property
    def rank(self) -> int:
        """The number of columns of B and of rows of A."""
        return self.a.shape[0]

    @property
    def scale(self) -> float:
        """The factor of the product."""
        return self.alpha / self.rank

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the weight that it changes, as it is stored."""
        return (self.left.shape[0], self.right.shape[1])

    @property
    def left(self) -> TensorSource:
        """The first factor of the change, [rows of the weight, rank]."""
        return transposed(self.a.source()) if self.is_flipped else self.b.source()

    @property
    def right(self) -> TensorSource:
        """The second factor of the change, [rank, columns of the weight]."""
        return transposed(self.b.source()) if self.is_flipped else self.a.source()


@dataclass(frozen=True)
class Adapter:
    """An adapter on disk; only its settings and its header are in memory.

    copies: weights of the base that PEFT stores beside an adapter of the embedding, by module
    config_sha256, sha256: of adapter_config.json and adapter_model.safetensors
    """

    folder: Path
    name: str
    settings: AdapterSettings
    modules: tuple[Module, ...]
    copies: Mapping[str, StoredTensor]
    config_sha256: str
    sha256: str

    @property
    def where(self) -> Path:
        """The file of the factors, which begins messages."""
        return self.folder / WEIGHTS

    @property
    def of_base(self) -> str:
        """For messages about another base: the model that the adapter was made for."""
        base = self.settings.base
        return f"it was trained on {base!r}" if base else "it does not name the model it is for"


@dataclass
class Misfits:
    """Modules that do not fit the weights of a base, for messages; those of one kind in one."""

    adapter: Adapter
    _unknown: list[str] = field(default_factory=list[str])
    _shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = field(
        default_factory=dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]]
    )

    def unknown(self, module: Module) -> None:
        """Note a module that the base does not have."""
        self._unknown.append(module.path)

    def other_shape(self, module: Module, shape: tuple[int, ...]) -> None:
        """Note a module whose weight has another shape in the base."""
        self._shapes.setdefault((module.shape, shape), []).append(module.path)

    def messages(self, architecture: Architecture) -> Iterator[str]:
        """Yield a message for each kind of misfit; architecture: of the base."""
        where, of_base = self.adapter.where, self.adapter.of_base
        parts: dict[str, list[str]] = {}
        for path in self._unknown:
            parts.setdefault(_part_of(path, architecture), []).append(path)
        for path in _grouped(parts.pop("", ())):
            yield (
                f"{where}: {path} is not a linear module of the base's language model"
                f" ({architecture.name}); {of_base}"
            )
        for part, paths in parts.items():
            yield (
                f"{where}: {', '.join(_grouped(paths))}: modules of {part}, of which adapters are"
                " not supported; merge the adapter with PEFT's `merge_and_unload()` and convert the"
                " saved model"
            )
        for (ours, theirs), paths in sorted(self._shapes.items(), key=lambda s: sorted(s[1])):
            for path in _grouped(sorted(paths)):
                yield (
                    f"{where}: {path} changes a weight of shape {list(ours)}, which has the shape"
                    f" {list(theirs)} in the base; give the adapter's own base: {of_base}"
                    if len(theirs) == 2
                    else f"{where}: {path} changes a weight of shape {list(theirs)}, which is not"
                    " a linear module"
                )


def _part_of(path: str, architecture: Architecture) -> str:
    """Return the part beside the language model that has a module; "" if none has."""
    reasons = architecture.ignored.items()
    found = next((why for p, why in reasons if re.fullmatch(p, f"{path}.weight")), "")
    return found.partition(",")[0] if SEPARATE in found else ""


def _grouped(paths: Iterable[str]) -> list[str]:
    """Return the names of modules, with one entry for those that differ only in numbers."""
    return [name.removesuffix(".*") for name in grouped(f"{path}.*" for path in paths)]


def open_adapter(path: str | Path) -> Adapter:
    """Read the settings and the header of an adapter; path: a folder, or hf://ORG/ADAPTER.

    Raises AdapterError with everything that is missing, contradictory or not supported, and
    CheckpointError for damaged files.
    """
    folder, name = _folder_of(path)
    settings = read_settings(folder)
    tensors = read_header(folder / WEIGHTS)
    modules, copies, problems = _modules(folder / WEIGHTS, tensors, settings)
    problems += _not_finite(folder / WEIGHTS, modules)
    AdapterError.raise_any(problems)
    if not modules:
        raise AdapterError(
            f"{folder / WEIGHTS}: contains no factors (lora_A, lora_B); save the adapter again with"
            " PEFT's `save_pretrained`"
        )
    return Adapter(
        folder,
        name,
        settings,
        tuple(modules),
        copies,
        hash_of_settings(folder / CONFIG),
        _sha256(folder / WEIGHTS),
    )


def _folder_of(path: str | Path) -> tuple[Path, str]:
    """Return the folder of an adapter, and its name."""
    if hub.is_hub_name(str(path)):
        name = hub.parse_hub_name(str(path))
        if name.file:
            raise AdapterError(f"{path}: is a GGUF, not an adapter; write hf://ORG/ADAPTER")
        folder = hub.fetch_adapter(name, [CONFIG, WEIGHTS])
        return _complete(folder), name.repo.rpartition("/")[2]
    hub.refuse_address(str(path))
    folder = Path(path)
    if not folder.is_dir():
        raise AdapterError(
            f"{folder}: is not a folder; give the folder of a PEFT adapter, which has {CONFIG} and"
            f" {WEIGHTS}"
        )
    return _complete(folder), folder.resolve().name


def _complete(folder: Path) -> Path:
    """Return a folder that has the files of an adapter; raise AdapterError for other folders."""
    problems: list[str] = []
    if not (folder / CONFIG).exists():
        problems.append(f"{folder}: has no {CONFIG}; give the folder of a PEFT adapter")
    if not (folder / WEIGHTS).exists():
        pickled = (folder / PICKLED).exists()
        problems.append(
            f"{folder}: has {PICKLED}, and no {WEIGHTS}; load the adapter with PEFT and save it"
            " again, which writes safetensors"
            if pickled
            else f"{folder}: has no {WEIGHTS}; download the adapter again"
        )
    AdapterError.raise_any(problems)
    return folder


def _modules(
    where: Path, tensors: Mapping[str, StoredTensor], settings: AdapterSettings
) -> tuple[list[Module], dict[str, StoredTensor], list[str]]:
    """Return the modules, the copies of base weights, and everything that is wrong."""
    factors: dict[tuple[str, bool], dict[str, StoredTensor]] = {}
    copies: dict[str, StoredTensor] = {}
    names: set[str] = set()
    odd: dict[str, list[str]] = {}
    problems: list[str] = []
    for stored, tensor in tensors.items():
        plain = stored.removeprefix(_PREFIX)
        if why := _kind(plain):
            odd.setdefault(why, []).append(stored)
        elif found := _FACTOR.fullmatch(plain):
            names.add(found["name"] or "")
            pair = factors.setdefault((found["module"], bool(found["embedding"])), {})
            if found["factor"] in pair:
                problems.append(f"{where}: {stored} is a second factor of its module")
            pair[found["factor"]] = tensor
        elif found := _COPY.fullmatch(plain):
            copies[found["module"]] = tensor
        else:
            odd.setdefault("is a whole tensor", []).append(stored)
    if len(names) > 1:
        listed = ", ".join(sorted(n or "(without a name)" for n in names))
        problems.append(f"{where}: contains several adapters: {listed}; save each in a folder")
    for why, stored_names in odd.items():
        problems += [
            f"{where}: {name} {why}; merge the adapter with PEFT's `merge_and_unload()` and convert"
            " the saved model"
            for name in grouped(stored_names)
        ]
    modules: list[Module] = []
    for (module, is_embedding), pair in factors.items():
        wrong = list(_pair_problems(module, pair, settings))
        problems += [f"{where}: {module}: {w}" for w in wrong]
        if not wrong:
            flipped = is_embedding or settings.fan_in_fan_out
            alpha = settings.alpha_of(module)
            modules.append(Module(module, pair["A"], pair["B"], alpha, is_embedding, flipped))
    problems += _repeated(where, modules)
    return sorted(modules, key=lambda m: m.path), copies, problems


def _kind(name: str) -> str:
    """Return what a stored tensor of another kind of adapter is; "" for others."""
    return next((why for kind, why in _KINDS if kind.fullmatch(name)), "")


def _pair_problems(
    module: str, pair: Mapping[str, StoredTensor], settings: AdapterSettings
) -> Iterator[str]:
    if missing := {"A", "B"} - pair.keys():
        (there,) = pair
        (gone,) = missing
        yield f"has lora_{there} without lora_{gone}; save the adapter again"
        return
    a, b = pair["A"], pair["B"]
    for tensor in (a, b):
        if tensor.dtype not in FLOATS and tensor.dtype != "F64":
            yield (
                f"{tensor.name} is stored as {tensor.dtype}; supported are {', '.join(FLOATS)}, F64"
            )
    if len(a.shape) != 2 or len(b.shape) != 2:
        yield (
            f"the factors have the shapes {list(a.shape)} and {list(b.shape)}: the module is not"
            " linear (such as a convolution), which is not supported"
        )
        return
    if a.shape[0] != b.shape[1] or not a.shape[0]:
        yield (
            f"the factors have the shapes {list(a.shape)} and {list(b.shape)}, which do not belong"
            " together; save the adapter again"
        )
    elif a.shape[0] != (rank := settings.rank_of(module)):
        yield f"has rank {a.shape[0]}, but {CONFIG} says {rank}; take both from one adapter"


def _not_finite(where: Path, modules: Iterable[Module]) -> Iterator[str]:
    """Yield a message for factors with numbers that are no weights."""
    found = (t for m in modules for t in (m.a, m.b) if not _is_finite(t))
    for name in grouped(t.name for t in found):
        yield (
            f"{where}: {name} contains a NaN or an infinity; the adapter is damaged or its training"
            " diverged, use another copy of it"
        )


def _is_finite(tensor: StoredTensor) -> bool:
    source, (n, n_per_row) = tensor.source(), tensor.shape
    step = max(1, _CHUNK // n_per_row)
    return all(
        np.isfinite(read_weights(source, start, min(start + step, n))).all()
        for start in range(0, n, step)
    )


def _repeated(where: Path, modules: Iterable[Module]) -> Iterator[str]:
    seen: set[str] = set()
    for module in modules:
        if module.path in seen:
            yield f"{where}: {module.path}: is stored as a linear module and as an embedding"
        seen.add(module.path)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with reading(path) as file:
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()
