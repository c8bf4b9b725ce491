"""Who made a GGUF, and how, as far as its keys tell."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

from dynquant.arch.base import Model
from dynquant.arch.load import Mla, load_model
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.errors import VerificationError, VocabError
from dynquant.importance.imatrix import Imatrix
from dynquant.quants.search import EFFORTS, Effort
from dynquant.verification.lints import value_of


@dataclass(frozen=True)
class Maker:
    """What a file says of who made it, and how.

    version: of dynquant; None of files that something else made
    """

    version: str | None
    effort: Effort
    imatrix_sha256: str | None

    @classmethod
    def of(cls, shards: Shards) -> Maker:
        """Read a file's keys."""
        made_by = value_of(shards, "dynquant.version")
        effort = value_of(shards, "dynquant.effort")
        imatrix = value_of(shards, "dynquant.imatrix_sha256")
        known: dict[object, Effort] = {e: e for e in EFFORTS}
        return cls(
            made_by if isinstance(made_by, str) else None,
            known.get(effort, "normal"),
            imatrix if isinstance(imatrix, str) else None,
        )

    @property
    def is_ours(self) -> bool:
        """Whether it was this version: the same rows give the same bytes."""
        return self.version == version("dynquant")

    @property
    def described(self) -> str:
        """Its name in messages."""
        return f"dynquant {self.version}" if self.version else "another program"

    def refuse_imatrix(self, shards: Shards, imatrix: Imatrix | None) -> None:
        """Raise VerificationError if the imatrix is not the one that the file was made with."""
        wanted = self.imatrix_sha256
        if wanted and imatrix is None:
            raise VerificationError(
                f"{shards.path}: was made with an imatrix, sha256 {wanted}; give it (--imatrix"
                " FILE)"
            )
        if wanted and imatrix is not None and imatrix.sha256 != wanted:
            raise VerificationError(
                f"{imatrix.path}: has sha256 {imatrix.sha256}, and {shards.path} was made with"
                f" {wanted}; give that one"
            )
        if imatrix is not None and self.version and not wanted:
            raise VerificationError(
                f"{shards.path}: was made without an imatrix; leave out --imatrix"
            )

    def unchecked(self) -> Iterator[str]:
        """Say what comparing cannot settle, because of who made it."""
        if self.version is None:
            yield "quantized tensors against the source: the file is not made by dynquant"
        elif not self.is_ours:
            yield (
                f"whether what differs is wrong: the file is made by {self.described}, and this is"
                f" {version('dynquant')}"
            )


def load_source(model: str, mla: Mla, shards: Shards) -> Model:
    """Load the source; where its pre-tokenizer is not recognised, the file tells its name."""
    try:
        return load_model(model, mla=mla, needs_vocab=False)
    except VocabError:
        pre = value_of(shards, "tokenizer.ggml.pre")
        if not isinstance(pre, str):
            raise
        return load_model(model, pre=pre, mla=mla, needs_vocab=False)
