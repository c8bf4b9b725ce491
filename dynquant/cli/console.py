"""Output of commands: results to stdout, messages to stderr, progress for terminals and logs.

With `--log-format json`, stderr has one line of JSON for each event, in ASCII. Each has "event" and
"seconds" since the start of the command; sizes are in bytes:

    start     command and its arguments
    progress  file, bytes, total_bytes, weights, total_weights, resumed_bytes, bytes_per_second
    message   message: text
    warning   message
    error     message; one event for each problem
    done      the results
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dynquant.conversion.engine import Progress
    from dynquant.errors import DynquantError

LogFormat = Literal["text", "json"]

LOG_SECONDS = 10.0
"""Seconds between two lines of progress in a log: a CI log of an hour stays readable."""

_WIDE = 1000
"""Columns of a table in a pipe or file: each row stays one line, for grep and awk."""


class _Log:
    """The format of stderr in this run, and when the run started."""

    format: LogFormat = "text"
    started: float = 0.0
    warned: set[str] | None = None
    """Warnings that were written, where each is written once."""


def log_as(format_: LogFormat) -> None:
    """Choose the format of stderr, "text" or "json", and start the clock of events."""
    _Log.format = format_
    _Log.started = time.monotonic()


def open_streams() -> None:
    """Replace streams that the caller closed (`>&-`) with ones that nobody reads."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 open until the end


def print_anything() -> None:
    """Let stdout and stderr print ? for characters that their encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def write(text: str) -> None:
    """Write results to stdout; end the command quietly if the reader closed it (`| head`)."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would fail at exit to flush the rest of the buffer.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # The exit code of a program that SIGPIPE (13) ended.
        raise SystemExit(128 + 13) from None
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        talk(f"error: stdout: cannot be written: {e.strerror}")
        raise SystemExit(1) from None


def write_json(document: Any) -> None:
    """Write one JSON document to stdout, in ASCII, which every locale can print."""
    write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def show(*tables: RenderableType) -> None:
    """Write rich tables to stdout; without colours and line breaks unless it is a terminal."""
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    text = io.StringIO()
    console = Console(
        file=text,
        force_terminal=is_terminal,
        width=None if is_terminal else _WIDE,
        markup=False,
        emoji=False,
        highlight=False,
    )
    console.print(*tables, sep="\n")
    lines = text.getvalue().splitlines()
    write("".join(line.rstrip(" ") + "\n" for line in lines))


def talk(text: str, *, quiet: bool = False) -> None:
    """Write a line to stderr; a closed stderr is ignored."""
    if not quiet and not event("message", message=text):
        _to_stderr(text)


@contextlib.contextmanager
def each_warning_once() -> Generator[None]:
    """Leave out warnings that were written already, for a command that runs others."""
    _Log.warned = set()
    try:
        yield
    finally:
        _Log.warned = None


def warn(text: str, *, quiet: bool = False) -> None:
    """Write a warning to stderr."""
    if _Log.warned is not None:
        if text in _Log.warned:
            return
        _Log.warned.add(text)
    if not quiet and not event("warning", message=text):
        _to_stderr(f"warning: {text}")


def event(name: str, *, quiet: bool = False, **figures: Any) -> bool:
    """Write an event if the log format is JSON; return whether it is."""
    if _Log.format != "json":
        return False
    if not quiet:
        seconds = round(time.monotonic() - _Log.started, 3)
        _to_stderr(json.dumps({"event": name, "seconds": seconds} | figures, allow_nan=False))
    return True


def _to_stderr(line: str) -> None:
    with contextlib.suppress(OSError):
        sys.stderr.write(line + "\n")
        sys.stderr.flush()


def fail(error: DynquantError) -> None:
    """Write an error to stderr, a line for each of its messages.

    Control characters, which names in files may contain, are escaped.
    """
    for message in error.messages:
        if not event("error", message=message):
            _to_stderr("error: " + "\n".join(map(_harmless, message.split("\n"))))


def _harmless(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextlib.contextmanager
def progress_of(
    name: str, doing: str = "writing", *, quiet: bool
) -> Generator[Callable[[Progress], None] | None]:
    """Provide a callback that shows progress: a bar on a terminal, else lines in the log."""
    if quiet:
        yield None
    elif _Log.format == "json":
        yield _events(name)
    elif sys.stderr.isatty():
        with _bar(name) as report:
            yield report
    else:
        yield _log(name, doing)


@contextlib.contextmanager
def steps_of(what: str, *, quiet: bool) -> Generator[Callable[[int, int], None] | None]:
    """Provide a callback for bytes done and in total: a bar on a terminal, else lines."""
    if quiet:
        yield None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import Progress as Bar

        with Bar(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
    else:
        yield _log_steps(what)


def _log_steps(what: str) -> Callable[[int, int], None]:
    last_line = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last_line
        if time.monotonic() - last_line >= LOG_SECONDS:
            last_line = time.monotonic()
            talk(f"{what}: {done / total:.0%} of {total / 1e9:.2f} GB")

    return report


@contextlib.contextmanager
def _bar(name: str) -> Generator[Callable[[Progress], None]]:
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(),
        rich.TaskProgressColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TextColumn("{task.fields[left]}", markup=False),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None, left="")
        resuming = _resuming(name)

        def report(progress: Progress) -> None:
            resuming(progress)
            left = progress.seconds_left
            bar.update(
                task,
                completed=progress.bytes_done,
                total=progress.bytes_total,
                left="" if left is None else f"{whole_seconds(left)} left",
            )

        yield report


def _resuming(name: str) -> Callable[[Progress], None]:
    """Return what reports once, as soon as it is known, that an interrupted run is resumed."""
    is_reported = False

    def report(progress: Progress) -> None:
        nonlocal is_reported
        if progress.bytes_resumed and not is_reported:
            is_reported = True
            talk(f"{name}: resuming an interrupted run")

    return report


def _log(name: str, doing: str) -> Callable[[Progress], None]:
    from dynquant.figures import size_text

    started = last_line = time.monotonic()
    begun = False
    resuming = _resuming(name)

    def report(progress: Progress) -> None:
        nonlocal begun, last_line
        now = time.monotonic()
        total = progress.bytes_total
        scale, unit = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
        if not begun:
            talk(f"{name}: {doing} {size_text(total)} of tensors")
            begun = True
        resuming(progress)
        if now - last_line < LOG_SECONDS or not progress.bytes_done:
            return
        last_line = now
        rate = (progress.bytes_done - progress.bytes_resumed) / (now - started)
        left = progress.seconds_left
        talk(
            f"{name}: {progress.bytes_done / total:.0%},"
            f" {progress.bytes_done / scale:.2f} of {total / scale:.2f} {unit},"
            f" {rate / 1e6:.0f} MB/s" + ("" if left is None else f", {whole_seconds(left)} left")
        )

    return report


def _events(name: str) -> Callable[[Progress], None]:
    started = time.monotonic()
    last_line = -LOG_SECONDS
    last = -1

    def report(progress: Progress) -> None:
        nonlocal last_line, last
        spent = time.monotonic() - started
        is_due = spent - last_line >= LOG_SECONDS or progress.bytes_done == progress.bytes_total
        if not is_due or progress.bytes_done == last:
            return
        last_line, last = spent, progress.bytes_done
        fresh = progress.bytes_done - progress.bytes_resumed
        event(
            "progress",
            file=name,
            bytes=progress.bytes_done,
            total_bytes=progress.bytes_total,
            weights=progress.weights_done,
            total_weights=progress.weights_total,
            resumed_bytes=progress.bytes_resumed,
            bytes_per_second=round(fresh / spent) if spent else None,
            seconds_left=None if progress.seconds_left is None else round(progress.seconds_left, 1),
        )

    return report


def whole_seconds(seconds: float) -> str:
    """Return an estimate as text: 4 s, 3:07, 1:02:45."""
    return f"{seconds:.0f} s" if seconds < 59.5 else duration(seconds)


def duration(seconds: float) -> str:
    """Return a time as text: 4.2 s, 3:07, 1:02:45."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
