"""What a repository has, as a document: `published.json`.

Every publication reads it, and writes it again with the added files. The card and the checksums
of the repository follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from dynquant.evaluate.results import Estimate
from dynquant.json_documents import Count, Figure, FileName, Part, Sha256, document_schema

DOCUMENT = "published.json"
VERSION = 1


class FilePart(Part):
    """A file in the repository."""

    name: FileName
    """Its name."""
    bytes: Count
    """Its size."""
    sha256: Sha256
    """Its hash."""


class RolePart(Part):
    """The tensors of one role."""

    role: str
    """Such as `ffn_down`."""
    types: str
    """Their types; if there are several, each with its layers."""
    bytes: Count
    """Their size."""
    bits_per_weight: Figure
    """Mean bits of their weights."""


class ScorePart(Part):
    """Figures of an evaluation."""

    reference: str
    """Name of the reference."""
    distributions_sha256: Sha256
    """Hash of the reference's distributions; figures are comparable if it is the same."""
    windows: Count
    """Windows of tokens."""
    context: Count
    """Tokens of a window."""
    tokens: Count
    """Scored tokens."""
    mean_kld: Estimate
    """Mean KL divergence from the reference, in nats."""
    kld_99: Estimate
    """99 % of the tokens have a smaller divergence."""
    same_top: Estimate
    """Share of tokens after which both choose the same next token."""
    ppl_ratio: Estimate
    """Perplexity, divided by that of the reference."""


class Entry(Part):
    """A model or a projector in the repository, in one file or in shards."""

    kind: Literal["model", "projector"]
    """What it is."""
    stem: str
    """File name without `.gguf` and without the number of a shard."""
    name: str
    """Name of the model."""
    architecture: str
    """`general.architecture`."""
    abilities: list[Literal["image", "audio"]]
    """What a projector adds."""
    embeds: bool
    """Whether a model computes embeddings."""
    embedding: Count | None
    """Weights of the token embedding, which all quants of a model have in common."""
    files: list[FilePart]
    """The file, or all shards in order."""
    bits_per_weight: Figure
    """Mean bits of all weights."""
    error: Figure | None
    """Weighted relative squared error of all weights; null if it was not measured."""
    type_counts: dict[str, Count]
    """Number of tensors of each type."""
    roles: list[RolePart]
    """The tensors by role."""
    base_model: str | None
    """ORG/NAME of the source; null if it is not known."""
    source: str | None
    """The source on the Hub with its commit, if the file was made from it."""
    imatrix: str | None
    """File name of the imatrix."""
    imatrix_sha256: Sha256 | None
    """Hash of the imatrix."""
    recipe: str
    """Name of the recipe."""
    dynquant: str
    """Version that made the file, or `unknown`."""
    recipe_file: FilePart | None
    """The recipe."""
    manifest_file: FilePart | None
    """The manifest."""
    plan_file: FilePart | None
    """The page of the plan."""
    evaluation_file: FilePart | None
    """The document of the evaluation."""
    score: ScorePart | None
    """Figures of the evaluation."""

    @property
    def total(self) -> int:
        """Bytes of all its GGUFs."""
        return sum(file.bytes for file in self.files)

    def every_file(self) -> Iterator[FilePart]:
        """Yield the GGUFs and the files that belong to them."""
        yield from self.files
        for file in (
            self.recipe_file,
            self.manifest_file,
            self.plan_file,
            self.evaluation_file,
        ):
            if file is not None:
                yield file


class Publication(Part):
    """All that was published in a repository."""

    published: Literal[1]
    """Version of this form."""
    dynquant: str
    """Version of dynquant that wrote it."""
    card_sha256: Sha256
    """Hash of the part of README.md that dynquant wrote."""
    front: dict[str, str]
    """Keys of the front matter that dynquant wrote, with their values as JSON."""
    entries: list[Entry]
    """Models, the largest first, then projectors."""


def in_order(entries: list[Entry]) -> list[Entry]:
    """Return entries as the card shows them: models, the largest first, then projectors."""
    return sorted(entries, key=lambda e: (e.kind != "model", -e.total, e.stem))


def publication_schema() -> dict[str, Any]:
    """Return the form of the document as a JSON Schema, draft 2020-12."""
    return document_schema(Publication, "dynquant publication")
