"""The manifest: a JSON document beside an output that records its sources, recipe and hashes.

`OUT.gguf.manifest.json` holds nothing of the machine, the folder or the time: the same file made
from the same sources on the same ISA has the same manifest. The classes below are its published
schema and its reader at once (`dynquant manifest --schema`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from dynquant.checkpoint.gguf_shards import NAME as SHARD_NAME
from dynquant.errors import ManifestError
from dynquant.importance.experts import Unseen
from dynquant.json_documents import (
    MAX_FAULTS,
    Count,
    Figure,
    FileName,
    Part,
    Sha256,
    document_schema,
    document_text,
    parse_document,
    read_document,
    repeated,
)
from dynquant.quants.search import Effort
from dynquant.recipe.feedback import MAX_SWEEPS, MIN_DAMPING

VERSION = 1
Xxh64 = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Maker(Part):
    """The program that wrote the files."""

    version: str
    """of dynquant"""
    isa: str
    """what the encoders were compiled for; the bytes do not depend on it"""
    encoder_revision: Count | None = None
    """files of one revision have the same bytes; manifests of early versions have none"""


class OutputFile(Part):
    """One file of the output, in the manifest's folder."""

    name: FileName
    bytes: Count
    sha256: Sha256


class OutputPart(Part):
    """The output."""

    architecture: str
    """general.architecture"""
    weights: Count
    tensor_bytes: Count
    """of all tensors, without headers and padding"""
    bits_per_weight: Figure
    type_counts: dict[str, Count]
    """tensors of each type, the most frequent first"""
    files: Annotated[list[OutputFile], Field(min_length=1)]


class RecipePart(Part):
    """The recipe that chose the types."""

    name: str
    sha256: Sha256
    """of its text and the texts that it extends, joined by zero bytes; also in the GGUF's keys"""
    text: str
    extends: list[str]
    """texts of the recipes that it extends, in the order of their rules"""


class ImportancePart(Part):
    """The imatrix that weighted the errors."""

    file: FileName
    sha256: Sha256
    datasets: list[str]
    """the texts that it was computed on, as it names them"""
    chunks: Count | None
    shrink: Count | None = None
    """tokens that what experts have in common counted as when it was mixed with each"""
    unseen: Unseen | None = None
    """importance of experts without data: the layer's mean, equal weights, or there were none;
    manifests of early versions have neither, their experts had only their own figures"""


class MomentsPart(Part):
    """The second moments of the inputs, for error feedback."""

    file: FileName
    header_sha256: Sha256
    """of all bytes before the first array, which hold the hashes of all arrays"""
    model: str | None = None
    """the model that they are of, as they name it"""
    tokens_sha256: Sha256 | None = None
    """of the tokens that they were computed on"""


class Feedback(Part):
    """How the errors of a tensor were fed back into the columns that follow."""

    damping: Annotated[float, Field(ge=MIN_DAMPING, le=1)]
    """more damping feeds back less of each error"""
    sweeps: Annotated[int, Field(ge=0, le=MAX_SWEEPS)]
    """passes over all columns that improve the codes afterwards"""
    matrices: Count
    """of the tensor: 1, or its experts"""
    taken: Count
    """matrices that were encoded with feedback: where the outputs on held-out text gained by it"""
    error_plain: Figure
    """error of the outputs on held-out text without feedback, of a sample of the rows of all
    matrices: the sum of |e S'|^2, e a row's errors, S the held-out sums of the moments"""
    error_feedback: Figure
    """the same with feedback, of the matrices that refused it, too"""


class Source(Part):
    """A file that tensors were read from."""

    name: FileName
    bytes: Count
    header_sha256: Sha256
    """of all bytes before the first tensor of a safetensors file, of the first MiB of a GGUF"""
    sha256: Sha256 | None
    sha256_from: Literal["read", "hub"] | None
    """"read" while it was converted, or as the "hub" names the file's content"""
    access: Literal["ranges", "copy"] | None = None
    """of a file on another machine: "ranges" of rows were requested, each with the size, commit and
    ETag of the file, but its content was only compared with sha256 if that was "read"; or a "copy"
    was downloaded, compared with the sha256 if the server states one, and deleted"""
    blake3: Sha256 | None = None
    """the BLAKE3, in hexadecimal, if it was computed in place of the SHA-256"""

    @property
    def content(self) -> str | None:
        """The hash of the content with its kind, if one is known."""
        if self.sha256:
            return f"sha256:{self.sha256}"
        return f"blake3:{self.blake3}" if self.blake3 else None


class Adapter(Part):
    """A LoRA adapter that was merged into the weights."""

    name: str
    """of its folder, or of its repository on the Hub"""
    sha256: Sha256
    """of adapter_model.safetensors"""
    config_sha256: Sha256
    """of adapter_config.json"""


class ModelPart(Part):
    """The model that the sources are of."""

    repository: str | None
    """as given: hf://org/model"""
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{7,64}$")] | None
    mla: Literal["split", "merged"] | None
    """how latent attention is stored; null for models without it"""


class Errors(Part):
    """How far the blocks of a tensor (y) are from its weights (x); w: importance, or 1."""

    weighted: Figure
    """sum w (x - y)^2 / sum w x^2"""
    one_minus_cos2: Figure
    """1 - (sum w x y)^2 / (sum w x^2 sum w y^2)"""
    max: Figure
    """the largest |x - y|"""


class Tensor(Part):
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
    """where the type comes from: file and line of a recipe, or a built-in rule"""
    instead_of: str | None
    """the rule's type, if its block size does not divide the rows"""
    importance: str | None
    """which input channels had importance; null if all were weighted equally"""
    error: Errors | None
    feedback: Feedback | None = None
    """how its errors were fed back; null without error feedback"""
    origin: Sha256 | None = None
    """of the content of the files that it comes from and of the way in which it is read: in one
    version of dynquant, equal hashes are equal weights; null without the sha256 of the sources, and
    in manifests of early versions"""


class Manifest(Part):
    """A manifest of dynquant: an output, its sources, and how it was made."""

    manifest: Literal[1]
    """version of this form"""
    dynquant: Maker
    output: OutputPart
    recipe: RecipePart
    effort: Effort
    importance: ImportancePart | None
    moments: MomentsPart | None = None
    """null if no tensor was encoded with error feedback"""
    sources: list[Source]
    """in the order of first use"""
    model: ModelPart
    tensors: list[Tensor]
    """in the order of the files"""
    ignored: dict[str, str]
    """stored tensors that the output leaves out, each with the reason"""
    leave_out: list[str] = Field(default_factory=list[str])
    """globs of stored names that the user left out"""
    merged_adapters: list[Adapter] = Field(default_factory=list[Adapter])
    """in the order in which they were merged"""

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        """Raise ValueError if the parts contradict each other."""
        files = self.output.files
        problems = [
            *(f"{n!r} is listed {k} times" for n, k in repeated(f.name for f in files)),
            *(
                f"tensor {n!r} is listed {k} times"
                for n, k in repeated(t.name for t in self.tensors)
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
            raise ValueError("; ".join(problems[:MAX_FAULTS]))
        return self


def manifest_path(out: Path) -> Path:
    """Return the path of an output's manifest; for shards, `out` is the name without numbers."""
    return Path(f"{out}.manifest.json")


def manifest_beside(path: Path) -> Path:
    """Return the path of a GGUF's manifest, given the file or any of its shards; it may not exist.

    That of the shard's full name if it exists; else that of the name without numbers.
    """
    own = manifest_path(path)
    shard = SHARD_NAME.fullmatch(path.name)
    if shard is None or own.exists():
        return own
    return manifest_path(path.with_name(f"{shard['prefix']}.gguf"))


def find_manifest(path: Path) -> Path:
    """Return the path of an output's manifest, given its one file, a shard, or the manifest.

    Raises ManifestError if it is missing.
    """
    found = path if path.suffix == ".json" else manifest_beside(path)
    if found.is_file():
        return found
    raise ManifestError(f"{found}: not found; convert writes one unless --no-manifest is given")


def manifest_schema() -> dict[str, Any]:
    """Return the form of a manifest as a JSON Schema, draft 2020-12."""
    return document_schema(Manifest, "dynquant manifest")


def manifest_text(manifest: Manifest) -> str:
    """Return a manifest as it is written: JSON in ASCII, a line for each tensor and file."""
    return document_text(manifest)


def read_manifest(path: Path) -> Manifest:
    """Read a manifest, which anybody may have written; every statement in it is checked.

    Raises ManifestError for a file that is not a manifest, with the places of its faults.
    """
    return read_document(path, Manifest, "manifest", VERSION, ManifestError)


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Read a manifest's bytes; where: what messages call them. Raises as `read_manifest`."""
    return parse_document(content, where, Manifest, "manifest", VERSION, ManifestError)
