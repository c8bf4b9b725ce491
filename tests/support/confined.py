"""Runs a reader in a separate process with limits on memory and time."""

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
"""Additional bytes of address space for a reader."""

SECONDS = 10.0


def outcome(read: Callable[[], object]) -> str:
    """Return `result`, an error as `CheckpointError: ...`, or how the process ended."""
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
            text = pipe.read()
        return json.loads(text) if text else "died without a message"
    finally:
        os.close(receive)
        os.waitpid(child, 0)


def _run(read: Callable[[], object], send: int) -> None:
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        space = pages * resource.getpagesize() + SPACE
        resource.setrlimit(resource.RLIMIT_AS, (space, space))
        read()
        text = "result"
    except BaseException as e:
        text = f"{type(e).__name__}: {str(e)[:2000]}"
    try:
        os.write(send, json.dumps(text).encode())
    finally:
        os._exit(0)
