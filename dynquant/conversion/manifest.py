"""The manifest: a JSON document beside an output that tells what was made, of what, and by what.

`OUT.gguf.manifest.json` holds nothing of the machine, the folder or the time: whoever makes the
same file of the same sources with the same ISA makes the same manifest. The classes below are its
published schema and its reader at once (`dynquant manifest --schema`).
"""

from __future__ import annotations

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from dynquant.checkpoint.gguf_shards import NAME as SHARD_NAME
from dynquant.errors import ManifestError
from dynquant.quants.search import Effort
from dynquant.untrusted import RepeatedKeyError, parse_json, read_regular, unique

VERSION = 1

MAX_BYTES = 64 << 20
"""Bytes of a manifest that is read: one of 70,000 tensors has 30 MB."""

_MAX_TOLD = 10
"""Faults that are told of one manifest; a file of another kind has thousands."""

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Xxh64 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
FileName = Annotated[str, Field(pattern=r"^[^/\x00]*[^/\x00.][^/\x00]*$")]
"""The name of a file in the manifest's folder: no path, and neither `.` nor `..`."""
Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    """What all parts of a manifest have in common: nothing else is in them, and no type bends."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


class Maker(_Part):
    """What wrote the files."""

    version: str
    """of dynquant"""
    isa: str
    """what the encoders were compiled for; the bytes do not depend on it"""
    encoder_revision: Count | None = None
    """files of one revision have the same bytes; manifests of early versions have none"""


class OutputFile(_Part):
    """One file of the output, in the manifest's folder."""

    name: FileName
    bytes: Count
    sha256: Sha256


class OutputPart(_Part):
    """What was made."""

    architecture: str
    """general.architecture"""
    weights: Count
    tensor_bytes: Count
    """of all tensors, without headers and padding"""
    bits_per_weight: Figure
    type_counts: dict[str, Count]
    """tensors of each type, the most frequent first"""
    files: Annotated[list[OutputFile], Field(min_length=1)]


class RecipePart(_Part):
    """The recipe that gave the types."""

    name: str
    sha256: Sha256
    """of the text and the texts that it extends, joined by zero bytes; also in the GGUF's keys"""
    text: str
    extends: list[str]
    """texts of the recipes that it extends, the nearest first"""


class ImportancePart(_Part):
    """The imatrix that weighed the errors."""

    file: FileName
    sha256: Sha256
    datasets: list[str]
    """what it was computed on, by the names that it gives"""
    chunks: Count | None


class Source(_Part):
    """A file that tensors were read from."""

    name: FileName
    bytes: Count
    header_sha256: Sha256
    """of all bytes before the first tensor of a safetensors file, of the first MiB of a GGUF"""
    sha256: Sha256 | None
    sha256_from: Literal["read", "hub"] | None
    """"read" while it was converted, or as the "hub" names the file's content"""


class ModelPart(_Part):
    """The model that the sources are of."""

    repository: str | None
    """as it was named: hf://org/model"""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")] | None
    mla: Literal["split", "merged"] | None
    """how latent attention is stored, of models that have it"""


class Errors(_Part):
    """How far the blocks of a tensor (y) are from its weights (x); w: importance, or 1."""

    weighted: Figure
    """sum w (x - y)^2 / sum w x^2"""
    one_minus_cos2: Figure
    """1 - (sum w x y)^2 / (sum w x^2 sum w y^2)"""
    max: Figure
    """the largest |x - y|"""


class Tensor(_Part):
    """One tensor of the output."""

    name: str
    type: str
    shape: list[Count]
    """as in numpy, the slowest dimension first"""
    bytes: Count
    file: Count
    """its number in output.files, from 0"""
    offset: Count
    """of its first byte, from the beginning of that file"""
    xxh64: Xxh64
    """of its bytes, seed 0, as llama-gguf-hash prints it"""
    rule: str
    """what gave the type: file and line of a recipe, or a built-in rule"""
    instead_of: str | None
    """the rule's type, where rows do not divide into its blocks"""
    importance: str | None
    """what the encoder knew of the input channels; null where it weighed all alike"""
    error: Errors | None


class Manifest(_Part):
    """A manifest of dynquant: what was made, of what, and by what."""

    manifest: Literal[1]
    """version of this form"""
    dynquant: Maker
    output: OutputPart
    recipe: RecipePart
    effort: Effort
    importance: ImportancePart | None
    sources: list[Source]
    """in the order of their first use"""
    model: ModelPart
    tensors: list[Tensor]
    """in the order of the files"""
    ignored: dict[str, str]
    """stored tensors that the output leaves out, each with the reason"""

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        """Raise ValueError where the parts contradict each other."""
        files = self.output.files
        problems = [
            *(f"{n!r} is listed {k} times" for n, k in _repeated(f.name for f in files)),
            *(
                f"tensor {n!r} is listed {k} times"
                for n, k in _repeated(t.name for t in self.tensors)
            ),
            *(
                f"tensor {t.name!r} is in file {t.file}, of {len(files)}"
                if t.file >= len(files)
                else f"tensor {t.name!r} ends behind its file"
                for t in self.tensors
                if t.file >= len(files) or t.offset + t.bytes > files[t.file].bytes
            ),
        ]
        if (total := sum(t.bytes for t in self.tensors)) != self.output.tensor_bytes:
            problems.append(f"tensor_bytes is {self.output.tensor_bytes}, the tensors have {total}")
        if problems:
            raise ValueError("; ".join(problems[:_MAX_TOLD]))
        return self


def _repeated(names: Any) -> list[tuple[str, int]]:
    return [(name, n) for name, n in Counter[str](names).items() if n > 1]


def manifest_path(out: Path) -> Path:
    """Return the name of an output's manifest; of several shards, `out` is what was asked for."""
    return out.with_name(out.name + ".manifest.json")


def find_manifest(path: Path) -> Path:
    """Return where the manifest of an output is; path: its one file, a shard, or the manifest.

    Raises ManifestError where there is none.
    """
    tried = [path] if path.suffix == ".json" else [manifest_path(path)]
    if found := SHARD_NAME.fullmatch(path.name):
        tried.append(manifest_path(path.with_name(f"{found['prefix']}.gguf")))
    for candidate in tried:
        if candidate.is_file():
            return candidate
    raise ManifestError(f"{tried[-1]}: not found; convert writes one unless --no-manifest is given")


def manifest_schema() -> dict[str, Any]:
    """Return the form of a manifest as a JSON Schema, draft 2020-12."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return schema | Manifest.model_json_schema() | {"title": "dynquant manifest"}


def manifest_text(manifest: Manifest) -> str:
    """Return a manifest as it is written: JSON in ASCII, a line for each tensor and file."""
    return _shown(manifest.model_dump(), 0) + "\n"


def _shown(value: Any, depth: int) -> str:
    """Return JSON: a line for each item of the outer objects and of lists of more than numbers."""
    one = partial(json.dumps, allow_nan=False)
    if isinstance(value, dict) and value and depth < 2:
        pairs = cast("dict[str, Any]", value).items()
        items, (begin, end) = [f"{one(k)}: {_shown(v, depth + 1)}" for k, v in pairs], "{}"
    elif isinstance(value, list) and value:
        items, (begin, end) = [one(v) for v in cast("list[Any]", value)], "[]"
    else:
        return one(value)
    inner = "\n" + " " * (depth + 1)
    return begin + inner + f",{inner}".join(items) + "\n" + " " * depth + end


def plain(text: str) -> str:
    r"""Return text that UTF-8 can hold: names of files and tensors may bring halves of characters,
    which become \udcNN.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, which may be anybody's: nothing of it is believed that is not checked.

    Raises ManifestError for a file that is none, with the places of what is wrong.
    """
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as e:
        raise ManifestError(f"{path}: cannot be read: {e.strerror}") from e
    return parse_manifest(content, str(path))


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read a manifest's bytes; where: what messages call them. Raises as `read_manifest`."""
    try:
        found = parse_json(content.decode(), unique)
    except RepeatedKeyError as e:
        raise ManifestError(f"{where}: {e}") from e
    except ValueError as e:
        raise ManifestError(f"{where}: not JSON: {e}; take another copy of it") from e
    if not isinstance(found, dict) or "manifest" not in found:
        raise ManifestError(f"{where}: not a manifest of dynquant; it has no 'manifest'")
    if (version := cast(dict[str, Any], found)["manifest"]) != VERSION:
        raise ManifestError(
            f"{where}: is a manifest of version {_cut(version)}; version {VERSION} is read, take a"
            " dynquant that knows that one"
        )
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as e:
        raise ManifestError(*_faults(e, where)) from e


def _faults(error: ValidationError, where: str) -> list[str]:
    problems = error.errors(include_url=False)
    told: list[str] = []
    for problem in problems[:_MAX_TOLD]:
        key = ".".join(map(str, problem["loc"]))
        what = problem["msg"].removeprefix("Value error, ").removeprefix("Input ")
        what = what.replace("String", "it", 1) if what.startswith("String ") else what
        if problem["type"] == "missing":
            told.append(f"{where}: {_cut(key)} is missing")
        elif problem["type"] == "extra_forbidden":
            told.append(f"{where}: {_cut(key)} is no part of a manifest")
        elif problem["type"] == "value_error":
            told.append(f"{where}: {what}; take another copy of it")
        else:
            told.append(f"{where}: {_cut(key)} is {_cut(problem['input'])}, but {what}")
    if len(problems) > _MAX_TOLD:
        told.append(f"{where}: {len(problems) - _MAX_TOLD} faults more")
    return told


def _cut(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"
