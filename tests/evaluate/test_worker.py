"""The worker process: whatever ends it is an error of one line, and a bug keeps its traceback."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynquant.errors import EvalError
from dynquant.evaluate import process
from dynquant.evaluate.given import check_given, check_names
from dynquant.evaluate.process import describe
from dynquant.evaluate.tasks import Describe, Run
from dynquant.evaluate.worker import __main__ as worker


def worker_that(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Replace the worker by a Python program."""
    real = subprocess.Popen

    def popen(_: list[str], **options: Any) -> Any:
        return real([sys.executable, "-S", "-c", program], **options)

    monkeypatch.setattr(process.subprocess, "Popen", popen)


def task(path: str = "x.gguf", prompts: tuple[str, ...] = ()) -> Describe:
    return Describe(
        path=path, texts=[], tokens=100, prompts=list(prompts), chat=True, out="out.npz"
    )


def refusal(what: Describe) -> str:
    with pytest.raises(EvalError) as caught:
        describe(what)
    (line,) = caught.value.messages
    return line


UNNAMED = getattr(signal, "SIGRTMIN", 8) + 3
"""A signal that Python has no name for; only Linux has some."""

READ = "import sys, os, signal; sys.stdin.readline(); "


def test_an_abort_is_reported_with_the_failed_assertion(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(
        monkeypatch,
        READ + "sys.stderr.write('a.cpp:7: GGML_ASSERT(n > 0) failed\\nbacktrace\\n');"
        "sys.stderr.flush(); os.abort()",
    )
    assert refusal(task()) == (
        "x.gguf: llama.cpp ended with SIGABRT: a.cpp:7: GGML_ASSERT(n > 0) failed"
    )


def test_a_kill_is_reported_with_its_probable_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(monkeypatch, READ + "os.kill(os.getpid(), signal.SIGKILL)")
    assert refusal(task()) == (
        "x.gguf: llama.cpp was killed, probably because the memory is too small for the model"
    )


@pytest.mark.parametrize("number", [11, UNNAMED])
def test_any_signal_is_reported(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    worker_that(monkeypatch, READ + f"os.kill(os.getpid(), {int(number)})")
    assert re.search(r"SIG|signal \d", refusal(task()))


def test_an_exit_without_an_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(monkeypatch, READ + "print('bad luck', file=sys.stderr); sys.exit(9)")
    assert refusal(task()) == "x.gguf: llama.cpp ended with exit code 9: bad luck"


@pytest.mark.parametrize("n", [0, 100_000])
def test_a_worker_that_reads_nothing_is_reported(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    worker_that(monkeypatch, "import os; os._exit(3)")
    assert "exit code 3" in refusal(task(prompts=("x" * n,) * 10))


def test_an_interrupted_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(monkeypatch, READ + "os.write(1, b'{\"resu'); os.abort()")
    assert "SIGABRT" in refusal(task())


def test_errors_of_the_worker_are_all_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(monkeypatch, READ + 'print(\'{"errors": ["a: is so", "b: is so"]}\')')
    with pytest.raises(EvalError) as caught:
        describe(task())
    assert caught.value.messages == ("a: is so", "b: is so")


def test_a_bug_of_the_worker_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(monkeypatch, READ + 'print(\'{"bug": "Traceback ...\\\\nKeyError: 7"}\')')
    with pytest.raises(RuntimeError, match="KeyError: 7"):
        describe(task())


def test_a_failed_callback_ends_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    worker_that(
        monkeypatch,
        READ + 'print(\'{"progress": ["pid", %d, 0]}\' % os.getpid(), flush=True);signal.pause()',
    )
    seen: list[int] = []

    def callback(_: str, pid: int, __: int) -> None:
        seen.append(pid)
        raise KeyboardInterrupt

    run = Run(
        path="x.gguf",
        threads=1,
        gpu_layers=0,
        reference="r",
        results=None,
        windows="windows",
        answers="a",
        prompts=[],
        generations=[],
    )
    with pytest.raises(KeyboardInterrupt):
        process.run(run, callback)
    with pytest.raises(ProcessLookupError):
        os.kill(seen[0], 0)


# ---- in the worker ----


def answer_after(error: Exception, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    def failing(_: Describe) -> None:
        raise error

    monkeypatch.setattr(worker, "describe", failing)
    return worker._answer(task())


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (EvalError("a: is so"), "a: is so"),
        (MemoryError(), "x.gguf: needs more memory than there is"),
        (OSError(errno.ENOSPC, "No space left on device"), "x.gguf: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "y"), "y: Permission denied"),
    ],
)
def test_faults_that_a_user_can_fix_are_errors(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    assert list(answer_after(error, monkeypatch)["errors"]) == [message]


@pytest.mark.parametrize("error", [KeyError("k"), OSError(errno.EBADF, "Bad descriptor")])
def test_all_else_is_a_bug_with_its_traceback(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    assert "in failing" in answer_after(error, monkeypatch)["bug"]


# ---- paths ----


def test_paths_that_are_not_utf8_are_named_before_anything_is_read() -> None:
    name = os.fsdecode(b"caf\xe9.gguf")
    with pytest.raises(EvalError) as caught:
        check_names([name, "good.gguf", Path(name)])
    assert list(caught.value.messages) == ["caf\\udce9.gguf: this path is not UTF-8; rename it"] * 2


def test_no_file_is_an_error() -> None:
    with pytest.raises(EvalError, match="no file is given"):
        check_given([], "reference.gguf", [])


def test_all_inputs_that_do_not_exist_are_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(EvalError) as caught:
        check_given([tmp_path / "x.gguf"], str(tmp_path / "model"), [tmp_path / "text.txt"])
    assert [name for name in ("x.gguf", "model", "text.txt") if name in str(caught.value)] == [
        "x.gguf",
        "model",
        "text.txt",
    ]
    assert len(caught.value.messages) == 3
