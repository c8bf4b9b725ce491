"""Steps of a ladder: the same rows of one tensor for all outputs that have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynquant.conversion.jobs import Job
from dynquant.conversion.work import Work


@dataclass(frozen=True, eq=False)
class Step:
    """Jobs of the same rows of one source, each with the number of its output.

    tensor: its number among the tensors of all outputs
    """

    tensor: int
    jobs: tuple[tuple[int, Job], ...]


def steps(whole: Work, files: Sequence[Iterator[Job]]) -> Iterator[Step]:
    """Yield steps that have every job once, and those of each output in its own order.

    whole: all tensors
    files: the jobs of each output. Jobs of other ranges, as of an earlier run, are separate steps
    """
    heads = [next(jobs, None) for jobs in files]
    for tensor in whole.tensors:
        while True:
            due = [
                (n, job)
                for n, job in enumerate(heads)
                if job is not None and job.tensor.name == tensor.name
            ]
            if not due:
                break
            first = min(job.start for _, job in due)
            groups: dict[tuple[int, int], list[tuple[int, Job]]] = {}
            for n, job in due:
                if job.start == first:
                    groups.setdefault((id(job.tensor.source), job.stop), []).append((n, job))
            for group in groups.values():
                for n, _ in group:
                    heads[n] = next(files[n], None)
                yield Step(tensor.number, tuple(group))
