"""Decides which tensors of an earlier output have the bytes that a conversion would give."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from dynquant.conversion.manifest import Tensor
from dynquant.conversion.reuse.old import Old
from dynquant.conversion.reuse.origin import origin_of
from dynquant.conversion.source_hashes import PIECE, SourceDigests, SourceHashes
from dynquant.conversion.threads import Worker, start
from dynquant.conversion.work import TensorWork, Work
from dynquant.distribution import our_version
from dynquant.errors import ConvertError
from dynquant.feedback.decided import TensorGain
from dynquant.json_documents import plain
from dynquant.plan.plan import Plan
from dynquant.quants.encoder import ENCODER_REVISION, is_copied
from dynquant.quants.error import TensorError


@dataclass(frozen=True)
class Reused:
    """What a conversion takes from an earlier output.

    n_bytes: of the copied tensors
    encoded: names of the other tensors, by the reason
    """

    path: Path
    names: tuple[str, ...]
    n_bytes: int
    encoded: Mapping[str, tuple[str, ...]] = field(repr=False)


@dataclass(frozen=True, eq=False)
class Reuse:
    """A decision.

    work:   of the conversion, with rows of the earlier output as the source of copied tensors
    taken:  the tensors of the earlier output, by number of the tensor
    hashes: of source files, that were computed, with their kinds, by their number
    """

    old: Old
    work: Work
    taken: Mapping[int, Tensor]
    hashes: Mapping[int, str]
    reused: Reused

    @property
    def identity(self) -> dict[str, str]:
        """What a journal records of it: rows of one run must be of one decision."""
        taken = hashlib.sha256("\n".join(map(str, sorted(self.taken))).encode()).hexdigest()
        return {"reuse": f"manifest sha256 {self.old.manifest_sha256}, tensors sha256 {taken}"}

    def errors(self) -> dict[str, TensorError]:
        """Return the errors of copied tensors that are measured."""
        return {
            self.work.tensors[n].name: TensorError(e.weighted, e.one_minus_cos2, e.max)
            for n, t in self.taken.items()
            if (e := t.error) is not None
        }

    def gains(self) -> dict[str, TensorGain]:
        """Return what error feedback did for copied tensors."""
        return {
            self.work.tensors[n].name: TensorGain(
                f.matrices, f.taken, f.error_plain, f.error_feedback
            )
            for n, t in self.taken.items()
            if (f := t.feedback) is not None
        }

    def refuse_changed(self, xxh64: Mapping[str, str]) -> None:
        """Raise ConvertError if copied bytes are not those that were checked."""
        ConvertError.raise_any(
            f"{self.old.path}: tensor {t.name!r} changed while it was copied; start over"
            " (--restart)"
            for n, t in self.taken.items()
            if xxh64[self.work.tensors[n].name] != t.xxh64
        )


def decide(plan: Plan, work: Work, old: Old, threads: int) -> Reuse:
    """Compare a conversion with an earlier output, and check the bytes that can be copied.

    Hashes the source files whose SHA-256 the Hub does not publish, and the tensors to be copied.

    Raises CheckpointError if a file cannot be read.
    """
    is_hopeless = _of_all(old) is not None or all(t.origin is None for t in old.manifest.tensors)
    digests = hashed(work, "none" if is_hopeless else kind_of_hashes(old), threads)
    sources = digests.sources()
    files = {f.path: s.content for f, s in zip(work.source_files, sources, strict=True)}
    taken, encoded = compare(plan, work, old, files)
    damaged = old.damaged(taken.values(), threads)
    for number in [n for n, t in taken.items() if t.name in damaged]:
        name = work.tensors[number].name
        encoded.setdefault(f"its bytes in {old.path.name} are damaged", []).append(name)
        del taken[number]
    return reuse_of(work, old, taken, encoded, digests.computed())


def reuse_of(
    work: Work,
    old: Old,
    taken: Mapping[int, Tensor],
    encoded: Mapping[str, Sequence[str]],
    hashes: Mapping[int, str],
) -> Reuse:
    """Return a decision; the arguments are its fields and those of `Reused`."""
    tensors = tuple(
        _copied(t, old, taken[t.number]) if t.number in taken else t for t in work.tensors
    )
    reused = Reused(
        old.path,
        tuple(work.tensors[n].name for n in taken),
        sum(t.bytes for t in taken.values()),
        {reason: tuple(names) for reason, names in encoded.items()},
    )
    return Reuse(old, replace(work, tensors=tensors), taken, hashes, reused)


def hashed(work: Work, wanted: SourceHashes, threads: int) -> SourceDigests:
    """Hash the source files of a conversion before it begins.

    Raises CheckpointError if one cannot be read.
    """
    digests = SourceDigests(work, wanted, None)
    failures: list[BaseException] = []

    def hash_files() -> None:
        piece = np.empty(PIECE, np.uint8)
        try:
            while not failures and digests.step(piece):
                pass
        except BaseException as e:
            failures.append(e)

    workers = [Worker(hash_files, f"dynquant-hash-{n}") for n in range(threads)]
    try:
        start(workers)
        for worker in workers:
            worker.wait()
    except BaseException as e:
        failures.append(e)
        raise
    for failure in failures:
        raise failure
    return digests


def compare(
    plan: Plan, work: Work, old: Old, files: Mapping[Path, str | None]
) -> tuple[dict[int, Tensor], dict[str, list[str]]]:
    """Return the tensors that an earlier output has with the same bytes, and reasons for others.

    files: hashes of the source files, with their kinds
    """
    taken: dict[int, Tensor] = {}
    encoded: dict[str, list[str]] = {}
    whole = _of_all(old)
    for tensor in work.tensors:
        there = old.tensors.get(plain(tensor.name))
        reason = whole or _difference(plan, tensor, there, old, files)
        if reason is None and there is not None:
            taken[tensor.number] = there
        else:
            encoded.setdefault(str(reason), []).append(tensor.name)
    return taken, encoded


def kind_of_hashes(old: Old) -> SourceHashes:
    """Return how the source files are hashed as an earlier output records them."""
    return "read" if any(s.sha256_from == "read" for s in old.manifest.sources) else "auto"


def _of_all(old: Old) -> str | None:
    """Return why no tensor can be copied, if so."""
    its = old.manifest.dynquant
    if its.encoder_revision != ENCODER_REVISION:
        return (
            f"{old.path.name} is of encoder revision {its.encoder_revision}, this is"
            f" {ENCODER_REVISION}"
        )
    if its.version != our_version():
        return f"{old.path.name} is of dynquant {its.version}, this is {our_version()}"
    return None


def _difference(
    plan: Plan,
    tensor: TensorWork,
    there: Tensor | None,
    old: Old,
    files: Mapping[Path, str | None],
) -> str | None:
    """Return why a tensor has to be encoded; None if its bytes are the same."""
    if there is None:
        return f"{old.path.name} does not have it"
    if there.type != tensor.type.name:
        return "another type"
    if tuple(there.shape) != tensor.shape:
        return "another shape"
    if there.origin is None:
        return f"the manifest of {old.path.name} does not record the origin of its weights"
    origin = origin_of(tensor.source, files)
    if origin is None:
        return "the origin of its weights has no name"
    if origin != there.origin:
        return "other weights, or read in another way"
    if tensor.type.is_float or is_copied(tensor.source.stored, tensor.type):
        # Neither importance nor effort changes its bytes; its error is measured all the same.
        checks: tuple[Callable[[], str | None], ...] = ()
    else:
        checks = (
            lambda: "another effort" if old.manifest.effort != plan.effort else None,
            lambda: _other_importance(plan, tensor, there, old),
            lambda: _other_feedback(plan, tensor, there, old),
        )
    for check in checks:
        if reason := check():
            return reason
    if there.error is None and not tensor.keeps_weights:
        return f"the manifest of {old.path.name} does not record its error"
    return None


def _other_importance(plan: Plan, tensor: TensorWork, there: Tensor, old: Old) -> str | None:
    now = tensor.importance.coverage if tensor.importance else None
    if now != there.importance:
        return "other importance"
    if now is None:
        return None
    its, imatrix = old.manifest.importance, plan.imatrix
    if its is None or imatrix is None or its.sha256 != imatrix.sha256:
        return "another imatrix"
    if (its.shrink, its.unseen) != (plan.experts.shrink, plan.experts.unseen):
        return "other importance of experts with few tokens"
    return None


def _other_feedback(plan: Plan, tensor: TensorWork, there: Tensor, old: Old) -> str | None:
    setting = tensor.feedback if tensor.fed is not None else None
    if setting is None and there.feedback is None:
        return None
    if setting is None or there.feedback is None:
        return "other error feedback"
    if (setting.damping, setting.sweeps) != (there.feedback.damping, there.feedback.sweeps):
        return "other error feedback"
    its, moments = old.manifest.moments, plan.moments
    if its is None or moments is None or its.header_sha256 != moments.header_sha256:
        return "other second moments"
    return None


def _copied(tensor: TensorWork, old: Old, there: Tensor) -> TensorWork:
    """Return the work of copying a tensor: its blocks are rows that have its type already."""
    return replace(tensor, source=old.source(there), importance=None, on_grid=False, feedback=None)
