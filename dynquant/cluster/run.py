"""Asks the workers of a Dask cluster for the parts of a conversion, and joins them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from dynquant.cluster.extra import distributed
from dynquant.cluster.task import Spec, Written, problems, version, write
from dynquant.conversion.engine import Progress
from dynquant.conversion.output import check_output, part_path
from dynquant.conversion.parts.files import parts_beside
from dynquant.conversion.parts.join import join_parts
from dynquant.conversion.parts.share import MOST
from dynquant.conversion.result import Result
from dynquant.conversion.second_look import SAMPLES
from dynquant.conversion.source_hashes import SourceHashes
from dynquant.conversion.work import Work, work_of
from dynquant.errors import ClusterError, DynquantError
from dynquant.inputs import load_plan
from dynquant.plan.plan import Plan
from dynquant.plan.saved import write_plan

_EACH = 8
"""Parts for each thread of the cluster: slow workers take fewer, and the last part is short."""

_SMALLEST = 1 << 22
"""Weights of a part, at least: a smaller one costs more to plan than to write."""

_CONNECT = "30s"


@contextmanager
def _reported(scheduler: str, out: Path) -> Generator[None]:
    """Turn a lost scheduler into a ClusterError."""
    dask = distributed()
    lost = (dask.comm.CommClosedError, dask.client.CancelledError, TimeoutError, OSError)
    try:
        yield
    except dask.KilledWorker as e:
        raise ClusterError(
            f"{scheduler}: several workers died while they wrote one part ({e}); look into their"
            " logs, the same command resumes"
        ) from e
    except lost as e:
        why = next(iter(str(e).splitlines()), type(e).__name__)
        raise ClusterError(
            f"{scheduler}: cannot be reached, or was lost ({why}); what the workers wrote of {out}"
            " is kept, the same command resumes"
        ) from e


@contextmanager
def _removed_unless_begun(plan_file: Path | None, out: Path) -> Generator[None]:
    """Remove a plan's file after a failure before any part was begun."""
    try:
        yield
    except BaseException:
        if plan_file is not None and not parts_beside(out, ".journal"):
            plan_file.unlink(missing_ok=True)
        raise


def convert_on_cluster(
    plan: Plan,
    out: Path,
    scheduler: str,
    *,
    model: str,
    plan_file: Path | None = None,
    imatrix: Path | None = None,
    moments: Path | None = None,
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
    threads: int = 1,
    join_threads: int | None = None,
    force: bool = False,
    manifest: SourceHashes | None = "auto",
    verify_sample: int = SAMPLES,
    n_parts: int | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Result | None:
    """Write a plan's files with the workers of a cluster, under a folder that all of them see.

    scheduler: the address of Dask's scheduler, such as tcp://host:8786
    model, imatrix, moments, merge_adapter, base: as the plan was made with; names that all machines
               see
    plan_file: the saved plan; None saves it beside the output, for the time of the conversion
    threads:   of each part; a worker writes as many parts at a time as it has threads
    join_threads: of this process when it joins the parts; None uses one for each CPU
    n_parts:   None lets it depend on the cluster and the model
    progress:  called as parts are finished, then for the join

    Rows stay where they are: workers are sent numbers of parts. A part whose worker dies is begun
    again on another, which reads back what the first had recorded.

    Returns None if an earlier run has finished the output. Raises ClusterError if the scheduler or
    the workers cannot be used, with all reasons, and what `convert_plan` raises.
    """
    dask = distributed()
    saved = plan_file or out.with_name(f"{out.name}.cluster-plan.json")
    if plan_file is None:
        write_plan(plan, saved, force=True)
        # What the workers bind must be what this process binds.
        plan = load_plan(saved, model, imatrix, moments, merge_adapter, base)
    work = work_of(plan)
    if not part_path(work.layout.paths(out)[0]).exists():
        check_output(plan, out, work, force=force)
    spec = Spec(
        str(_absolute(model)),
        str(saved.absolute()),
        sha256(saved.read_bytes()).hexdigest(),
        str(out.absolute()),
        _text(imatrix),
        _text(moments),
        tuple(str(_absolute(a)) for a in merge_adapter),
        None if base is None else str(_absolute(base)),
        version(),
        manifest or "none",
    )
    with (
        _removed_unless_begun(saved if plan_file is None else None, out),
        _reported(scheduler, out),
        dask.Client(scheduler, timeout=_CONNECT, set_as_default=False) as client,
        client.as_current(),
    ):
        n_threads = _capacity(client, scheduler, spec)
        # The parts of an interrupted run are completed.
        begun = max((part.count for part in parts_beside(out, ".journal")), default=None)
        count = begun or n_parts or _count(work.n_weights, n_threads)
        _write_parts(client, spec, range(1, count + 1), threads, work, progress)
    result = join_parts(
        plan,
        out,
        threads=join_threads,
        force=force,
        manifest=manifest,
        verify_sample=verify_sample,
        progress=progress,
    )
    if plan_file is None:
        saved.unlink(missing_ok=True)
    return result


def _absolute(name: str | Path) -> str | Path:
    return name if str(name).startswith("hf://") else Path(name).absolute()


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _count(n_weights: int, n_threads: int) -> int:
    return max(1, min(_EACH * n_threads, n_weights // _SMALLEST, MOST))


def _capacity(client: Any, scheduler: str, spec: Spec) -> int:
    """Return the number of threads of all workers; raise ClusterError for those of no use."""
    workers: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]
    if not workers:
        raise ClusterError(
            f"{scheduler}: has no workers; start some with `dask worker {scheduler}` on machines"
            " that see the model and the output"
        )
    found: dict[str, Any] = client.run(problems, spec, on_error="return")
    ClusterError.raise_any(
        f"worker {address}: {why}"
        for address, answer in sorted(found.items())
        for why in ([str(answer)] if isinstance(answer, BaseException) else answer)
    )
    return sum(int(worker["nthreads"]) for worker in workers.values())


def _write_parts(
    client: Any,
    spec: Spec,
    numbers: range,
    threads: int,
    work: Work,
    progress: Callable[[Progress], None] | None,
) -> None:
    """Have all parts written; report after each."""
    count, n_bytes, n_weights = len(numbers), work.tensor_bytes, work.n_weights
    # The keys differ for each run: a result that the scheduler remembers may be of lost files.
    run = sha256(f"{spec}{id(client)}".encode()).hexdigest()[:8]
    futures = [
        client.submit(
            write,
            spec,
            number,
            count,
            threads,
            key=f"dynquant-{Path(spec.out).name}-{number}-of-{count}-{run}",
        )
        for number in numbers
    ]
    done_bytes = done_weights = resumed = 0
    try:
        if progress:
            progress(Progress(0, n_bytes, 0, n_weights))
        for made in _results(futures):
            done_bytes += made.n_bytes
            done_weights += made.n_weights
            resumed += made.resumed_bytes
            if progress:
                progress(Progress(done_bytes, n_bytes, done_weights, n_weights, resumed))
    finally:
        client.cancel(futures, force=True)


def _results(futures: list[Any]) -> Iterator[Written]:
    for future in distributed().as_completed(futures):
        try:
            yield future.result()
        except DynquantError as e:
            raise ClusterError(*e.messages) from e
