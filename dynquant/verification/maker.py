"""Which program made a GGUF and with which settings, according to its keys."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dynquant.arch.base import Model
from dynquant.arch.load import Mla, load_model
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.distribution import our_version
from dynquant.errors import VerificationError, VocabError
from dynquant.importance.imatrix import Imatrix
from dynquant.quants.encoder import ENCODER_REVISION
from dynquant.quants.search import EFFORTS, Effort
from dynquant.verification.lints import value_of


@dataclass(frozen=True)
class Maker:
    """The program that made a file, and its settings.

    version: the version of dynquant; None if another program made the file
    encoder_revision: of the encoders that made it; None if it does not say
    """

    version: str | None
    encoder_revision: int | None
    effort: Effort
    imatrix_sha256: str | None

    @classmethod
    def of(cls, shards: Shards) -> Maker:
        """Return the maker recorded in a file's keys."""
        made_by = value_of(shards, "dynquant.version")
        revision = value_of(shards, "dynquant.encoder_revision")
        effort = value_of(shards, "dynquant.effort")
        imatrix = value_of(shards, "dynquant.imatrix_sha256")
        known: dict[object, Effort] = {e: e for e in EFFORTS}
        return cls(
            made_by if isinstance(made_by, str) else None,
            revision if isinstance(revision, int) else None,
            known.get(effort, "normal"),
            imatrix if isinstance(imatrix, str) else None,
        )

    @property
    def has_our_encoders(self) -> bool:
        """Whether encoders of this revision made the file, so that equal rows give equal bytes."""
        return self.version is not None and self.encoder_revision == ENCODER_REVISION

    def refuse_imatrix(self, shards: Shards, imatrix: Imatrix | None) -> None:
        """Raise VerificationError unless the imatrix is the one that the file was made with."""
        wanted = self.imatrix_sha256
        if wanted and imatrix is None:
            raise VerificationError(
                f"{shards.path}: was made with an imatrix, sha256 {wanted}; name it with --imatrix"
            )
        if wanted and imatrix is not None and imatrix.sha256 != wanted:
            raise VerificationError(
                f"{imatrix.path}: has sha256 {imatrix.sha256}, but {shards.path} was made with the"
                f" imatrix of sha256 {wanted}; name that file"
            )
        if imatrix is not None and self.version and not wanted:
            raise VerificationError(f"{shards.path}: was made without an imatrix; remove --imatrix")

    def unchecked(self) -> Iterator[str]:
        """Yield what a comparison cannot check because of the program that made the file."""
        if self.version is None:
            yield "quantized tensors against the source: the file was not made by dynquant"
        elif not self.has_our_encoders:
            theirs = self.encoder_revision
            yield (
                f"quantized tensors against the source: dynquant {self.version} made the file with"
                f" encoder revision {'unknown' if theirs is None else theirs}, and this dynquant"
                f" {our_version()} has revision {ENCODER_REVISION}; compare with the dynquant"
                " that made it"
            )


def load_source(model: str, mla: Mla, shards: Shards) -> Model:
    """Load the source; take a pre-tokenizer that is not recognised from the file's keys."""
    try:
        return load_model(model, mla=mla, needs_vocab=False)
    except VocabError:
        pre = value_of(shards, "tokenizer.ggml.pre")
        if not isinstance(pre, str):
            raise
        return load_model(model, pre=pre, mla=mla, needs_vocab=False)
