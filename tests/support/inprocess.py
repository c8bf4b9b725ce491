"""Runs the command line in this process, which takes a tenth of the time of a new process."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from typing import NamedTuple
from unittest import mock

from dynquant.cli import main
from dynquant.cli.console import log_as


class Done(NamedTuple):
    code: int
    out: str
    err: str


def run(*args: object) -> Done:
    """Run the command line, and undo its changes to this process."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    code: object = None
    with (
        mock.patch.object(sys, "argv", ["dynquant", *map(str, args)]),
        mock.patch.dict("os.environ"),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as e:
            code = e.code
        finally:
            signal.signal(signal.SIGTERM, before)
            log_as("text")
    assert isinstance(code, int)
    return Done(code, out.getvalue(), err.getvalue())
