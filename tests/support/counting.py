"""Work is counted in calls of Python functions, which depend less on the machine than seconds."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable


def calls_of(step: Callable[[], object]) -> int:
    """Return how many calls of Python functions a step takes, in all threads."""
    calls = itertools.count()

    def count(frame: object, event: str, arg: object) -> None:
        if event == "call":
            next(calls)

    before = sys.getprofile()
    threading.setprofile(count)
    sys.setprofile(count)
    try:
        step()
    finally:
        sys.setprofile(before)
        threading.setprofile(None)  # type: ignore[arg-type]
    return next(calls)
