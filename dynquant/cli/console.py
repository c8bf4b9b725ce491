"""What commands say and how: data to stdout, talk to stderr, progress for terminals and logs.

As `--log-format json`, stderr has one JSON document on a line for each event, in ASCII. Each has
"event" and "seconds" since the command began; the others are figures, sizes in bytes:

    start     command, and what it was asked for
    progress  bytes, total_bytes, weights, total_weights, resumed_bytes, bytes_per_second
    message   message: what people are told
    warning   message
    error     message; one for each that stands in the way
    done      what was made
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.console import RenderableType

    from dynquant.conversion.engine import Progress
    from dynquant.errors import DynquantError

LogFormat = Literal["text", "json"]

_LOG_SECONDS = 10.0
"""Between two lines of progress where no terminal is: a CI log stays readable for an hour's run."""

_WIDE = 1000
"""Columns where no terminal is: a line of a table stays a line, for grep and awk."""


class _Log:
    """How stderr is written in this run, and when the run began."""

    format: LogFormat = "text"
    started: float = 0.0


def log_as(format_: LogFormat) -> None:
    """Write stderr for people ("text") or for programs ("json"); the clock of events starts."""
    _Log.format = format_
    _Log.started = time.monotonic()


def print_anything() -> None:
    """Let stdout and stderr put ? for what their encoding lacks: a name must not end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def write(text: str) -> None:
    """Write data to stdout; a reader that went away (`| head`) ends the command quietly."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer has nowhere to go, and Python would complain about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        # As a shell sees a program that SIGPIPE (13) ended.
        raise SystemExit(128 + 13) from None


def write_json(document: Any) -> None:
    """Write one JSON document to stdout, in ASCII, which every locale can print."""
    write(json.dumps(document, indent=2, allow_nan=False) + "\n")


def show(*tables: RenderableType) -> None:
    """Write rich tables to stdout; without colours and line breaks where it is no terminal."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else _WIDE
    console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as captured:
        console.print(*tables, sep="\n")
    lines = captured.get().splitlines()
    write("".join(line.rstrip(" ") + "\n" for line in lines))


def talk(text: str, *, quiet: bool = False) -> None:
    """Write a line to stderr; nobody listening is no reason to stop."""
    if not quiet and not event("message", message=text):
        _to_stderr(text)


def warn(text: str, *, quiet: bool = False) -> None:
    """Write a warning to stderr."""
    if not quiet and not event("warning", message=text):
        _to_stderr(f"warning: {text}")


def event(name: str, *, quiet: bool = False, **figures: Any) -> bool:
    """Write an event as a line of JSON, where that is wanted; return whether it is."""
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

    Control characters, which a file's names may have, are spelled out: a terminal obeys them.
    """
    for message in error.messages:
        if not event("error", message=message):
            _to_stderr("error: " + "\n".join(map(_harmless, message.split("\n"))))


def _harmless(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


@contextlib.contextmanager
def progress_of(name: str, *, quiet: bool) -> Generator[Callable[[Progress], None] | None]:
    """Give a callback that shows progress: a bar on a terminal, else a line now and then."""
    if quiet:
        yield None
    elif _Log.format == "json":
        yield _events()
    elif sys.stderr.isatty():
        with _bar(name) as report:
            yield report
    else:
        yield _log(name)


@contextlib.contextmanager
def steps_of(what: str, *, quiet: bool) -> Generator[Callable[[int, int], None] | None]:
    """Give a callback of bytes done and in all: a bar on a terminal, else a line now and then."""
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
    told = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told >= _LOG_SECONDS:
            told = time.monotonic()
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
        rich.TimeRemainingColumn(),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)

        def report(progress: Progress) -> None:
            bar.update(task, completed=progress.bytes_done, total=progress.bytes_total)

        yield report


def _log(name: str) -> Callable[[Progress], None]:
    started = told = time.monotonic()
    begun = False

    def report(progress: Progress) -> None:
        nonlocal begun, told
        now = time.monotonic()
        total = progress.bytes_total
        scale, unit = (1e9, "GB") if total >= 1e9 else (1e6, "MB")
        if not begun:
            talk(f"{name}: writing {total / scale:.2f} {unit}")
            begun = True
        if now - told < _LOG_SECONDS or not progress.bytes_done:
            return
        told = now
        rate = progress.bytes_done / (now - started)
        left = (total - progress.bytes_done) / rate
        talk(
            f"{name}: {progress.bytes_done / total:.0%},"
            f" {progress.bytes_done / scale:.2f} of {total / scale:.2f} {unit},"
            f" {rate / 1e6:.0f} MB/s, {duration(left)} left"
        )

    return report


def _events() -> Callable[[Progress], None]:
    started = time.monotonic()
    told = -_LOG_SECONDS
    last = -1

    def report(progress: Progress) -> None:
        nonlocal told, last
        spent = time.monotonic() - started
        is_due = spent - told >= _LOG_SECONDS or progress.bytes_done == progress.bytes_total
        if not is_due or progress.bytes_done == last:
            return
        told, last = spent, progress.bytes_done
        fresh = progress.bytes_done - progress.bytes_resumed
        event(
            "progress",
            bytes=progress.bytes_done,
            total_bytes=progress.bytes_total,
            weights=progress.weights_done,
            total_weights=progress.weights_total,
            resumed_bytes=progress.bytes_resumed,
            bytes_per_second=round(fresh / spent) if spent else None,
        )

    return report


def duration(seconds: float) -> str:
    """Return a time as text: 4.2 s, 3:07, 1:02:45."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
