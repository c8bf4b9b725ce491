"""A finished GGUF, in one file or in shards, with its manifest if there is one."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from dynquant.checkpoint.gguf import GGUFTensor
from dynquant.checkpoint.gguf_shards import NAME, Shards, first_file, open_gguf
from dynquant.conversion.losses import Loss, MeasuredError, loss_of
from dynquant.conversion.manifest import Manifest, manifest_beside, read_manifest
from dynquant.errors import CheckpointError, ReleaseError
from dynquant.keys import Keys
from dynquant.name_lists import grouped
from dynquant.plan.plan import TensorPlan
from dynquant.quants.table import ALL, KEPT, QuantType
from dynquant.report.picture import Picture, model_name, text_of

UNKNOWN_RULE = "not recorded"

_HUB = re.compile(r"(?:https?://huggingface\.co|hf:/)/([\w.-]+/[\w.-]+?)(?:[@/].*)?", re.ASCII)


@dataclass(frozen=True)
class Finished:
    """A complete GGUF.

    paths:   its files, in order; sizes: their bytes
    tensors: in the order of the file; without a manifest, their rules are UNKNOWN_RULE
    measured: errors by tensor, for a file without a manifest
    """

    paths: tuple[Path, ...]
    sizes: tuple[int, ...]
    keys: Keys = field(repr=False)
    tensors: tuple[TensorPlan, ...] = field(repr=False)
    manifest: Manifest | None = field(default=None, repr=False)
    manifest_path: Path | None = None
    measured: Mapping[str, MeasuredError] = field(
        default_factory=dict[str, MeasuredError], repr=False
    )

    @property
    def path(self) -> Path:
        """The first file, which runtimes load."""
        return self.paths[0]

    @property
    def stem(self) -> str:
        """The file name without `.gguf` and without the number of a shard."""
        return _unsharded(self.path).name.removesuffix(".gguf")

    @property
    def name(self) -> str:
        """The model's name."""
        return model_name(self.keys, self.architecture)

    @property
    def architecture(self) -> str:
        """Its general.architecture."""
        return text_of(self.keys, "general.architecture") or "unknown"

    @property
    def recipe(self) -> str:
        """The recipe's name, or "unknown"."""
        if self.manifest:
            return self.manifest.recipe.name
        return text_of(self.keys, "dynquant.recipe") or "unknown"

    @property
    def repository(self) -> str | None:
        """The source's name on the Hub, ORG/NAME; None if it is not known."""
        recorded = self.manifest.model.repository if self.manifest else None
        keys = (
            "dynquant.source",
            "general.source.repo_url",
            "general.source.huggingface.repository",
        )
        for text in (recorded, *(text_of(self.keys, key) for key in keys)):
            if text and (found := _HUB.fullmatch(text)):
                return found[1]
            if text and re.fullmatch(r"[\w.-]+/[\w.-]+", text, re.ASCII):
                return text
        return None

    @property
    def file_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.sizes)

    @property
    def n_weights(self) -> int:
        """Weights of all tensors."""
        return sum(t.n_weights for t in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits per weight of all tensors."""
        return 8 * sum(t.n_bytes for t in self.tensors) / self.n_weights

    @property
    def type_counts(self) -> dict[str, int]:
        """Number of tensors of each type, the most frequent first."""
        return dict(Counter(t.type.name for t in self.tensors).most_common())

    @cached_property
    def errors(self) -> Mapping[str, MeasuredError]:
        """The errors that were measured, by tensor."""
        if self.manifest is None:
            return self.measured
        listed = self.manifest.tensors
        return {t.name: t.error for t in listed if t.error is not None}

    @property
    def loss(self) -> Loss | None:
        """The errors of all tensors together; None if they were not measured."""
        return loss_of(self.tensors, self.errors)

    def sha256(self, say: Callable[[str], None] | None = None) -> tuple[str, ...]:
        """Return the SHA-256 of each file, from the manifest or computed from the file.

        It is computed for files that are newer than the manifest.
        say: called with a message for each file that is read
        """
        known: dict[str, str] = {}
        if self.manifest and self.manifest_path:
            made = self.manifest_path.stat().st_mtime_ns
            newer = {p.name for p in self.paths if p.stat().st_mtime_ns > made}
            files = self.manifest.output.files
            known = {f.name: f.sha256 for f in files if f.name not in newer}
        return tuple(known.get(path.name) or _read_sha256(path, say) for path in self.paths)


def open_finished(path: Path) -> Finished:
    """Read a finished GGUF's header and manifest.

    path: the file, any of its shards, or the name of the shards without their number (OUT.gguf)

    Raises ReleaseError if the manifest belongs to another file, ManifestError if it is damaged, and
    CheckpointError if the file is not a complete GGUF.
    """
    shards = open_gguf(first_file(path))
    paths = tuple(f.path for f in shards.files)
    place = manifest_beside(paths[0])
    beside = place if place.exists() else None
    manifest = read_manifest(beside) if beside else None
    sizes = tuple(p.stat().st_size for p in paths)
    if manifest:
        ReleaseError.raise_any(
            f"{beside}: {what}; it belongs to another file, or the file was changed: convert again"
            for what in _disagreements(manifest, shards, sizes)
        )
    found = Finished(
        paths,
        sizes,
        shards.keys,
        _tensors(shards, manifest),
        manifest,
        beside,
    )
    if not found.tensors:
        raise ReleaseError(f"{path}: has no tensors; name the GGUF of a model")
    return found


def picture_of_file(model: Finished) -> Picture:
    """Return the contents of the page of a plan, for a finished file."""
    manifest = model.manifest
    importance = manifest.importance if manifest else None
    rules = {t.rule.rpartition(":")[0] for t in model.tensors if not t.type.is_float}
    return Picture(
        model=model.name,
        architecture=model.architecture,
        recipe=model.recipe,
        description="",
        recipe_path=min(rules, default="") or model.recipe,
        recipe_text=manifest.recipe.text if manifest else "",
        effort=manifest.effort if manifest else text_of(model.keys, "dynquant.effort") or "unknown",
        imatrix=importance.file if importance else text_of(model.keys, "quantize.imatrix.file"),
        tensors=model.tensors,
        n_shards=len(model.paths),
        file_bytes=model.file_bytes,
        version=version_of(model),
        unweighted=frozenset(
            t.name for t in model.tensors if not (t.type.is_float or t.importance)
        ),
        ignored=manifest.ignored if manifest else {},
        moments=text_of(model.keys, "dynquant.moments"),
    )


def version_of(model: Finished) -> str:
    """Return the version of dynquant that made a file, or "unknown"."""
    if model.manifest:
        return model.manifest.dynquant.version
    return text_of(model.keys, "dynquant.version") or "unknown"


def _unsharded(path: Path) -> Path:
    """Return the path without the number of a shard: OUT.gguf for OUT-00001-of-00003.gguf."""
    found = NAME.fullmatch(path.name)
    return path.with_name(f"{found['prefix']}.gguf") if found else path


def _read_sha256(path: Path, say: Callable[[str], None] | None) -> str:
    if say:
        say(f"{path}: its SHA-256 is not known; reading {path.stat().st_size:,} bytes")
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read: {e.strerror}") from e


def _disagreements(manifest: Manifest, shards: Shards, sizes: tuple[int, ...]) -> Iterator[str]:
    """Yield where a manifest and the headers differ: files, sizes, and the tensor table."""
    listed_files = [(f.name, f.bytes) for f in manifest.output.files]
    files = [(f.path.name, n) for f, n in zip(shards.files, sizes, strict=True)]
    if listed_files != files:
        wrong = [f"{name} of {n:,} bytes" for name, n in files if (name, n) not in listed_files]
        yield f"does not list {', '.join(wrong)}" if wrong else "lists other files"
    numbers = {id(f): i for i, f in enumerate(shards.files)}
    table = {
        t.name: (t.type_name, [*t.shape], t.n_bytes, numbers[id(f)], f.data_offset + t.offset)
        for f, t in shards.tensors()
    }
    listed = {t.name: (t.type, t.shape, t.bytes, t.file, t.offset) for t in manifest.tensors}
    if differ := [n for n in dict.fromkeys((*table, *listed)) if table.get(n) != listed.get(n)]:
        names = grouped(differ)
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"disagrees about {names[0]}{more}"


def _tensors(shards: Shards, manifest: Manifest | None) -> tuple[TensorPlan, ...]:
    recorded = {t.name: t for t in manifest.tensors} if manifest else {}
    found: list[TensorPlan] = []
    for number, file in enumerate(shards.files):
        for t in file.tensors:
            known = recorded.get(t.name)
            wanted = known.instead_of if known else None
            found.append(
                TensorPlan(
                    name=t.name,
                    shape=t.shape,
                    type=_type_of(t),
                    offset=t.offset,
                    n_bytes=t.n_bytes,
                    rule=(known.rule if known else None) or UNKNOWN_RULE,
                    instead_of=ALL.get(wanted) if wanted else None,
                    importance=known.importance if known else None,
                    shard=number,
                )
            )
    return tuple(found)


def _type_of(tensor: GGUFTensor) -> QuantType:
    """Return a tensor's type; types that only the gguf package knows have no description."""
    found = (ALL | KEPT).get(tensor.type_name)
    if found is not None:
        return found
    block_size, type_size = GGML_QUANT_SIZES[GGMLQuantizationType(tensor.ggml_type)]
    return QuantType(tensor.type_name, tensor.ggml_type, block_size, type_size, "")


def check_same_model(models: Sequence[Finished], projectors: Sequence[Finished] = ()) -> None:
    """Raise ReleaseError unless all files are of one model and have different names.

    projectors: for the model, with another architecture
    """
    first = models[0]
    problems: list[str] = []
    for other in models[1:]:
        what = [
            f"{name} {theirs!r} instead of {ours!r}"
            for name, theirs, ours in (
                ("architecture", other.architecture, first.architecture),
                ("source", other.repository, first.repository),
                ("embedding", _embedding(other), _embedding(first)),
            )
            if theirs != ours
        ]
        if what:
            problems.append(
                f"{other.path}: is not of the same model as {first.path}: {', '.join(what)};"
                " release it separately"
            )
    names = Counter(p.name for m in (*models, *projectors) for p in m.paths)
    problems += [f"{n}: is given twice; name each file once" for n, k in names.items() if k > 1]
    ReleaseError.raise_any(problems)


def _embedding(model: Finished) -> int | None:
    return next((prod(t.shape) for t in model.tensors if t.name == "token_embd.weight"), None)
