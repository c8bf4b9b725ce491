"""What a worker of a cluster does: it reads the plan once, and writes parts."""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path

from dynquant.conversion.parts.run import PartResult, convert_part
from dynquant.conversion.parts.share import Part
from dynquant.conversion.source_hashes import SourceHashes
from dynquant.distribution import our_version
from dynquant.errors import BusyError, ClusterError
from dynquant.inputs import load_plan
from dynquant.plan.plan import Plan
from dynquant.quants import codec
from dynquant.quants.encoder import ENCODER_REVISION


@dataclass(frozen=True)
class Spec:
    """A conversion, by names that are the same on all machines.

    plan_sha256:   of the saved plan, which a worker's file must have
    version:       of dynquant and its encoders, which a worker's must be
    source_hashes: as in `convert_part`
    """

    model: str
    plan: str
    plan_sha256: str
    out: str
    imatrix: str | None
    moments: str | None
    merge_adapter: tuple[str, ...]
    base: str | None
    version: str
    source_hashes: SourceHashes


@dataclass(frozen=True)
class Written:
    """What a part took; n_bytes, n_weights and resumed_bytes are those of `PartResult`."""

    number: int
    n_bytes: int
    n_weights: int
    resumed_bytes: int
    host: str


_WAITS = (1, 2, 4, 8, 15, 30)
"""Seconds to wait for another worker that still writes the same part."""


def version() -> str:
    """Return what must be equal on all machines."""
    return f"dynquant {our_version()}, encoder revision {ENCODER_REVISION}"


def problems(spec: Spec) -> list[str]:
    """Return why this machine cannot take part, each with what to do."""
    found: list[str] = []
    if (ours := version()) != spec.version:
        found.append(f"has {ours}, and not {spec.version}; install the same on all machines")
    try:
        content = Path(spec.plan).read_bytes()
    except OSError as e:
        found.append(f"cannot read {spec.plan} ({e.strerror}); use a folder that all machines see")
        return found
    if sha256(content).hexdigest() != spec.plan_sha256:
        found.append(f"sees another file as {spec.plan}; use a folder that all machines see")
    if not Path(spec.out).parent.is_dir():
        found.append(f"does not see the folder of {spec.out}; use one that all machines see")
    try:
        codec.active_isa()
    except Exception as e:  # a forced build that this CPU does not run
        found.append(str(e))
    return found


def write(spec: Spec, number: int, count: int, threads: int) -> Written:
    """Write a part, on a worker.

    Raises ClusterError if the worker joined later and cannot take part, and what `load_plan` and
    `convert_part` raise.
    """
    ClusterError.raise_any(f"worker on {socket.gethostname()}: {p}" for p in problems(spec))
    made = _made(spec, Part(number, count), threads)
    return Written(number, made.n_bytes, made.n_weights, made.resumed_bytes, socket.gethostname())


def _made(spec: Spec, part: Part, threads: int) -> PartResult:
    waits = iter(_WAITS)
    while True:
        try:
            return convert_part(
                _plan(spec),
                Path(spec.out),
                part,
                threads=threads,
                force=True,  # the process that asks has checked the output
                source_hashes=spec.source_hashes,
            )
        except BusyError:  # a worker that the scheduler gave up may still be ending
            if (wait := next(waits, None)) is None:
                raise
            time.sleep(wait)


_LOCK = threading.Lock()


def _plan(spec: Spec) -> Plan:
    with _LOCK:  # the threads of a worker read it once
        return _read(spec)


@lru_cache(maxsize=1)
def _read(spec: Spec) -> Plan:
    return load_plan(
        spec.plan, spec.model, spec.imatrix, spec.moments, spec.merge_adapter, spec.base
    )
