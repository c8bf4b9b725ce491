"""Runs a task in a worker process, and turns its end into a result or an error."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, cast

from dynquant.errors import EvalError
from dynquant.evaluate.tasks import Cost, Describe, Described, Run

Progress = Callable[[str, int, int], None]
"""Called with a step, and how much of how much of it is done."""


def describe(task: Describe) -> Described:
    """Read a file's vocabulary, and write the tokens of texts and prompts."""
    return Described.model_validate(_answer_to(task, None))


def run(task: Run, progress: Progress | None) -> Cost | None:
    """Compute what is missing; return what it cost, or None if nothing was missing."""
    found = _answer_to(task, progress)
    return Cost.model_validate(found) if found else None


def _answer_to(task: Describe | Run, progress: Progress | None) -> Any:
    """Return the result of a task.

    Raises EvalError with the worker's errors, or with the reason why it ended without an answer,
    and RuntimeError with the traceback of a bug.
    """
    command = [sys.executable, "-m", "dynquant.evaluate.worker"]
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(task.model_dump_json().encode() + b"\n")
            process.stdin.flush()
            for line in process.stdout:
                if not line.endswith(b"\n"):  # it ended in the middle of an answer
                    break
                message = cast(dict[str, Any], json.loads(line))
                if "progress" in message:
                    if progress is not None:
                        progress(*message["progress"])
                elif "errors" in message:
                    raise EvalError(*message["errors"])
                elif "bug" in message:
                    raise RuntimeError(message["bug"])
                else:
                    return message["result"]
        except BrokenPipeError:
            pass
        finally:
            process.kill()
            # Closing writes what it did not read.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        process.wait()
        log.seek(0)
        raise EvalError(f"{task.path}: {_why(process.returncode, log.read())}")


def _why(code: int, log: bytes) -> str:
    """Return why a worker ended without an answer."""
    lines = [line for line in log.decode(errors="replace").splitlines() if line.strip()]
    if -code == getattr(signal, "SIGKILL", None):  # Windows has no signals
        return "llama.cpp was killed, probably because the memory is too small for the model"
    cause = next((line for line in reversed(lines) if "GGML_ASSERT" in line), None)
    what = _name_of_signal(-code) if code < 0 else f"exit code {code}"
    return f"llama.cpp ended with {what}: {(cause or (lines or ['no message'])[-1]).strip()}"


def _name_of_signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
