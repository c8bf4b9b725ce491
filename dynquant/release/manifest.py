"""The manifest beside a GGUF, as releases and gates read it: what was made of what, and how well."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter, ValidationError

from dynquant.checkpoint.split import NAME
from dynquant.errors import ReleaseError

SUFFIX = ".manifest.json"

_MOST_BYTES = 1 << 28
"""Of a manifest: 70,000 tensors take about 30 MB."""

_SHOWN = 5

Bytes = Annotated[int, Field(ge=0, validation_alias="bytes")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# What becomes a line of a list or a part of a path: one name, without a folder.
Name = Annotated[str, Field(pattern=r"^(?!\.{0,2}$)[^/\x00]*$")]


@dataclass(frozen=True)
class MadeBy:
    """The program: its version, and the instruction set it ran on."""

    version: str
    isa: str | None = None


@dataclass(frozen=True)
class MadeFile:
    """A file of the output."""

    name: Name
    n_bytes: Bytes
    sha256: Sha256


@dataclass(frozen=True)
class Output:
    """The files of the output."""

    files: tuple[MadeFile, ...]


@dataclass(frozen=True)
class MadeRecipe:
    """The recipe; sha256: of its text and of those that it extends, as in `Recipe.sha256`."""

    name: str
    sha256: str
    text: str
    extends: tuple[str, ...] = ()


@dataclass(frozen=True)
class MadeImportance:
    """The imatrix; file: its name, datasets: what it was computed on."""

    file: str
    sha256: Sha256
    datasets: tuple[str, ...] = ()
    chunks: int | None = None


@dataclass(frozen=True)
class Source:
    """A file that tensors were read from; sha256: of all of it, None where nobody knows it."""

    name: str
    n_bytes: Bytes
    header_sha256: Sha256
    sha256: Sha256 | None = None
    sha256_from: str | None = None


@dataclass(frozen=True)
class FromModel:
    """The model that the sources are, where it is known: a name on the Hub, and a commit."""

    repository: str | None = None
    commit: str | None = None
    mla: str | None = None


@dataclass(frozen=True)
class Error:
    """What blocks y lose of weights x, with importance w (1 without).

    weighted: sum w (x - y)^2 / sum w x^2
    one_minus_cos2: 1 - (sum w x y)^2 / (sum w x^2 sum w y^2)
    max: the largest |x - y|
    """

    weighted: float
    one_minus_cos2: float
    max: float


@dataclass(frozen=True)
class MadeTensor:
    """A tensor of the output; error: None where nothing was encoded, or nothing measured."""

    name: str
    type: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    n_bytes: Bytes
    file: int
    offset: int
    rule: str | None = None
    instead_of: str | None = None
    importance: str | None = None
    error: Error | None = None

    @property
    def n_weights(self) -> int:
        """Weights in the tensor."""
        return prod(self.shape)


@dataclass(frozen=True)
class Manifest:
    """All of it that a release tells."""

    manifest: Literal[1]
    dynquant: MadeBy
    output: Output
    recipe: MadeRecipe
    effort: str
    tensors: tuple[MadeTensor, ...]
    sources: tuple[Source, ...] = ()
    importance: MadeImportance | None = None
    model: FromModel = FromModel()
    ignored: Mapping[str, str] = Field(default_factory=dict[str, str])


_ADAPTER = TypeAdapter(Manifest)


def manifest_path(path: Path) -> Path:
    """Return where the manifest of a GGUF is, given the GGUF or one of its shards."""
    found = NAME.fullmatch(path.name)
    return path.with_name((f"{found['prefix']}.gguf" if found else path.name) + SUFFIX)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest; raise ReleaseError with all that is wrong with it."""
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
    except OSError as e:
        raise ReleaseError(f"{path}: cannot be read: {e.strerror}") from e
    if len(content) > _MOST_BYTES:
        raise ReleaseError(f"{path}: more than {_MOST_BYTES} bytes; this is no manifest")
    try:
        return _ADAPTER.validate_json(content)
    except ValidationError as e:
        faults = [
            f"{path}: {'.'.join(map(str, fault['loc'])) or 'the document'}: {fault['msg']};"
            " convert again, or take the file away"
            for fault in e.errors()
        ]
        raise ReleaseError(*faults[:_SHOWN]) from e


def mean_error(tensors: Iterable[MadeTensor]) -> float | None:
    """Return the mean weighted error of tensors, each as heavy as its weights are many.

    None where no tensor has an error; those that have none do not count.
    """
    measured = [(t.n_weights, t.error.weighted) for t in tensors if t.error is not None]
    total = sum(n for n, _ in measured)
    return sum(n * error for n, error in measured) / total if total else None
