"""Runs a reader where it can do no harm: a process of its own, with bounds on memory and time."""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import warnings
from collections.abc import Callable
from pathlib import Path

SPACE = 1 << 30
"""Bytes that a reader may have beyond what the process begins with."""

SECONDS = 10.0


def outcome(read: Callable[[], object]) -> str:
    """Return `result`, `CheckpointError: ...` as a reader raises it, or how it came to its end."""
    receive, send = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside pytest's threads
        child = os.fork()
    if child == 0:
        _run(read, send)
    os.close(send)
    try:
        ended, _, _ = select.select([receive], [], [], SECONDS)
        if not ended:
            os.kill(child, signal.SIGKILL)
            return f"still running after {SECONDS:.0f} seconds"
        with os.fdopen(receive, "rb", closefd=False) as pipe:
            said = pipe.read()
        return json.loads(said) if said else "died without a word"
    finally:
        os.close(receive)
        os.waitpid(child, 0)


def _run(read: Callable[[], object], send: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + SPACE
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        read()
        said = "result"
    except BaseException as e:
        said = f"{type(e).__name__}: {str(e)[:2000]}"
    try:
        os.write(send, json.dumps(said).encode())
    finally:
        os._exit(0)
