"""Which program made a GGUF and with which settings, according to its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from dynquant.arch.adapters.merge import MERGED_KEY, merged_names
from dynquant.arch.base import Model
from dynquant.arch.load import Mla, is_gguf_name, load_model
from dynquant.arch.load_projector import load_projector
from dynquant.arch.towers.whole import CLIP
from dynquant.checkpoint.gguf_shards import Shards
from dynquant.conversion.manifest import manifest_beside, read_manifest
from dynquant.distribution import our_version
from dynquant.errors import (
    DynquantError,
    ManifestError,
    VerificationError,
    VocabError,
)
from dynquant.importance.experts import ALONE, Policy
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.plan.feedback import FEEDBACK_KEY, read_feedback
from dynquant.quants.encoder import ENCODER_REVISION
from dynquant.quants.search import EFFORTS, Effort
from dynquant.recipe.feedback import FeedbackSetting
from dynquant.verification.lints import value_of


@dataclass(frozen=True)
class Maker:
    """The program that made a file, and its settings.

    version: the version of dynquant; None if another program made the file
    encoder_revision: of the encoders that made it; None if it does not say
    experts: what experts had of which the imatrix had few tokens or none
    moments: header_sha256 of the moments; None without error feedback
    feedback: the tensors that were encoded with error feedback
    merged:   the record of the adapters that were merged into the weights; empty without any
    """

    version: str | None
    encoder_revision: int | None
    effort: Effort
    imatrix_sha256: str | None
    experts: Policy = ALONE
    moments: str | None = None
    feedback: Mapping[str, FeedbackSetting] = field(default_factory=dict[str, FeedbackSetting])
    merged: str = ""

    @classmethod
    def of(cls, shards: Shards) -> Maker:
        """Return the maker recorded in a file's keys."""
        made_by = value_of(shards, "dynquant.version")
        revision = value_of(shards, "dynquant.encoder_revision")
        effort = value_of(shards, "dynquant.effort")
        imatrix = value_of(shards, "dynquant.imatrix_sha256")
        shrink = value_of(shards, "dynquant.imatrix_shrink")
        unseen = value_of(shards, "dynquant.imatrix_unseen")
        moments = value_of(shards, "dynquant.moments_header_sha256")
        merged = value_of(shards, MERGED_KEY)
        known: dict[object, Effort] = {e: e for e in EFFORTS}
        return cls(
            made_by if isinstance(made_by, str) else None,
            revision if isinstance(revision, int) else None,
            known.get(effort, "normal"),
            imatrix if isinstance(imatrix, str) else None,
            Policy(shrink, "mean" if unseen != "uniform" else "uniform")
            if isinstance(shrink, int)
            else ALONE,
            moments if isinstance(moments, str) else None,
            _feedback(shards) if isinstance(moments, str) else {},
            merged if isinstance(merged, str) else "",
        )

    @property
    def has_our_encoders(self) -> bool:
        """Whether encoders of this revision made the file, so that equal rows give equal bytes."""
        return self.version is not None and self.encoder_revision == ENCODER_REVISION

    def wrong_imatrix(self, shards: Shards, imatrix: Imatrix | None) -> Iterator[str]:
        """Yield a message unless the imatrix is the one that the file was made with."""
        wanted = self.imatrix_sha256
        if wanted and imatrix is None:
            yield (
                f"{shards.path}: was made with an imatrix, sha256 {wanted}; name it with --imatrix"
            )
        elif wanted and imatrix is not None and imatrix.sha256 != wanted:
            yield (
                f"{imatrix.path}: has sha256 {imatrix.sha256}, but {shards.path} was made with the"
                f" imatrix of sha256 {wanted}; name that file"
            )
        elif imatrix is not None and self.version and not wanted:
            yield f"{shards.path}: was made without an imatrix; remove --imatrix"

    def wrong_moments(self, shards: Shards, moments: Moments | None) -> Iterator[str]:
        """Yield a message unless the moments are those that the file was made with."""
        wanted = self.moments
        if wanted and moments is None:
            yield (
                f"{shards.path}: was made with second moments, header sha256 {wanted}; name their"
                " file with --moments"
            )
        elif wanted and moments is not None and moments.header_sha256 != wanted:
            yield (
                f"{moments.path}: has header sha256 {moments.header_sha256}, but {shards.path} was"
                f" made with the second moments of header sha256 {wanted}; name that file"
            )
        elif moments is not None and self.version and not wanted:
            yield f"{shards.path}: was made without second moments; remove --moments"

    def wrong_adapters(self, shards: Shards, source: Model) -> Iterator[str]:
        """Yield a message unless the adapters of a source are those that the file was made with."""
        key = source.keys.get(MERGED_KEY)
        given = str(key.value) if key else ""
        if given == self.merged:
            return
        if not self.merged:
            yield f"{shards.path}: was made without adapters; remove --merge-adapter"
        else:
            names = ", ".join(merged_names(self.merged)) or "unknown ones"
            yield (
                f"{shards.path}: was made with merged adapters: {names}; name these, in this order,"
                " with --merge-adapter"
            )

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


def _feedback(shards: Shards) -> dict[str, FeedbackSetting]:
    """Return the setting of each tensor that was encoded with error feedback.

    Raises VerificationError if the key is damaged.
    """
    text = value_of(shards, FEEDBACK_KEY)
    try:
        return read_feedback(text if isinstance(text, str) else "")
    except ValueError as e:
        raise VerificationError(
            f"{shards.path}: the key {FEEDBACK_KEY} is damaged; convert the model again"
        ) from e


def load_source(
    model: str,
    mla: Mla,
    shards: Shards,
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
) -> Model:
    """Load the source; take what it does not say from the file's keys and from its manifest.

    leave_out, merge_adapter, base: as in `load_model`

    The keys name a pre-tokenizer that is not recognised, the manifest the tensors left out.
    """
    is_projector = value_of(shards, "general.architecture") == CLIP
    if is_projector and base is None and not is_gguf_name(model):
        return load_projector(model)
    load = partial(
        load_model, model, mla=mla, needs_vocab=False, merge_adapter=merge_adapter, base=base
    )
    try:
        return _load(load, shards, leave_out)
    except DynquantError as refused:
        recorded = () if leave_out else _left_out(shards)
        if not recorded:
            raise
        try:
            return _load(load, shards, recorded)
        except DynquantError:  # another source: the file's patterns say nothing about it
            raise refused from None


def _load(load: Callable[..., Model], shards: Shards, leave_out: Sequence[str]) -> Model:
    try:
        return load(leave_out=leave_out)
    except VocabError:
        pre = value_of(shards, "tokenizer.ggml.pre")
        if not isinstance(pre, str):
            raise
        return load(leave_out=leave_out, pre=pre)


def _left_out(shards: Shards) -> Sequence[str]:
    """Return the globs that the manifest beside a file records."""
    path = manifest_beside(shards.path)
    try:
        return read_manifest(path).leave_out if path.exists() else ()
    except ManifestError:  # reported by the check of the manifest
        return ()
