"""Verify a GGUF: every byte of it, its manifest, and on request the model it was made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from dynquant.arch.load import Mla
from dynquant.checkpoint.gguf_shards import Shards, first_file, open_gguf
from dynquant.errors import CheckpointError, Problems, VerificationError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.importance.moments import Moments, read_moments
from dynquant.verification.against import prepare
from dynquant.verification.findings import Verification
from dynquant.verification.given import not_a_gguf
from dynquant.verification.standalone import verify_file

Step = Literal["reading", "comparing"]
"""The steps of a verification, in order: reading the whole file, comparing it with its source."""


def verify(
    path: str | Path,
    against: str | Path | None = None,
    *,
    tensors: str | None = None,
    sample: int | None = None,
    imatrix: str | Path | Imatrix | None = None,
    moments: str | Path | Moments | None = None,
    mla: Mla = "split",
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
    threads: int | None = None,
    progress: Callable[[Step, int, int], None] | None = None,
) -> Verification:
    """Check every byte of a GGUF, and its manifest if there is one beside it.

    path:     the file; for a model in shards, any shard or the name without the shard number
    against:  the model that the file was made from, as `load_model` takes it; its rows are encoded
              again and the bytes compared
    tensors:  with `against`: compare all rows of the tensors whose names match this glob
    sample:   with `against`: compare this many ranges of rows, which depend on the file alone;
              64 if neither `tensors` nor `sample` is given
    imatrix:  with `against`: the imatrix that the file was made with
    moments:  with `against`: the second moments that the file was made with
    mla:      with `against`: how the file stores latent attention, as in `load_model`
    leave_out: with `against`: as in `load_model`; without any, those that the manifest records
    merge_adapter: with `against`: the adapters that were merged into the file, in order
    base:     with `against`: makes it the adapter that the file is of, and this its model
    threads:  worker threads; None uses one for each CPU
    progress: called with the step, the bytes done, and the bytes of the step

    A file that is damaged or is not a GGUF is reported as a fault. Raises VerificationError if the
    path is a folder or part of a checkpoint, or if the file cannot be compared as requested, and
    another kind of DynquantError if the source, the imatrix or the moments cannot be read; problems
    that the headers show are raised before the weights are read.
    """
    if (why := not_a_gguf(str(path))) is not None:
        raise VerificationError(why)
    path = Path(path)
    if against is None and any(given is not None for given in (tensors, sample, imatrix, moments)):
        raise VerificationError(
            f"{path}: tensors, sample, imatrix and moments are for a comparison; name the model to"
            " compare with (against)"
        )
    if sample is not None and sample < 1:
        raise VerificationError(f"sample is {sample}; compare at least one range of rows")
    problems = Problems()
    if isinstance(imatrix, (str, Path)):
        imatrix = problems.attempt(partial(read_imatrix, Path(imatrix)))
    if isinstance(moments, (str, Path)):
        moments = problems.attempt(partial(read_moments, Path(moments)))
    problems.raise_any()
    comparer = None
    if against is not None and (shards := _shards(path)) is not None:
        comparer = prepare(
            shards,
            str(against),
            tensors=tensors,
            sample=sample,
            imatrix=imatrix,
            moments=moments,
            mla=mla,
            leave_out=leave_out,
            merge_adapter=merge_adapter,
            base=base,
        )
    found = verify_file(
        path,
        threads=threads,
        progress=progress and (lambda done, total: progress("reading", done, total)),
    )
    if comparer is None:
        return found
    comparison = comparer.run(
        threads=threads,
        progress=progress and (lambda done, total: progress("comparing", done, total)),
    )
    return found.with_comparison(comparison)


def _shards(path: Path) -> Shards | None:
    """Open a file for the comparison; None if its header cannot be read, which is a fault."""
    try:
        return open_gguf(first_file(path))
    except CheckpointError:
        return None
