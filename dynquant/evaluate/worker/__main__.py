"""Reads one task from stdin as a line of JSON, and answers on stdout, a line of JSON for each.

    {"progress": [step, done, total]}
    {"errors": [message, ...]}
    {"result": ...}
    {"bug": traceback}

Ends when stdin is closed: then the command that asked has ended. Whatever llama.cpp prints goes to
stderr.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import traceback
from typing import Any

from dynquant.errors import DynquantError
from dynquant.evaluate.tasks import Task, parse_task
from dynquant.evaluate.worker.describe import describe
from dynquant.evaluate.worker.run import run


def _answer(task: Task) -> dict[str, Any]:
    try:
        if task.kind == "describe":
            return {"result": describe(task).model_dump()}
        cost = run(task, _progress)
        return {"result": cost.model_dump() if cost else None}
    except DynquantError as e:
        return {"errors": e.messages}
    except MemoryError:
        return {"errors": [f"{task.path}: needs more memory than there is"]}
    except OSError as e:
        if e.filename is None and e.errno != errno.ENOSPC:
            return {"bug": traceback.format_exc()}
        return {"errors": [f"{e.filename or task.path}: {e.strerror}"]}
    except Exception:  # the command that asked shows it
        return {"bug": traceback.format_exc()}


def _progress(step: str, done: int, total: int) -> None:
    _say({"progress": [step, done, total]})


def _say(message: dict[str, Any]) -> None:
    os.write(_ANSWERS, json.dumps(message).encode() + b"\n")


def _end_with_stdin() -> None:
    sys.stdin.buffer.read()
    # On Windows, any signal ends a process at once.
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))


if __name__ == "__main__":
    # The command that asked reports an interrupt, and ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _ANSWERS = os.dup(1)
    os.dup2(2, 1)
    task = parse_task(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    _say(_answer(task))
