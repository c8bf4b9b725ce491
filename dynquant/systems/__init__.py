"""What POSIX systems and Windows do differently: files, locks, memory, signals.

No other room calls a function of one system only; `pyright --pythonplatform Windows` checks it.
"""

from __future__ import annotations

import sys

from dynquant.systems.base import System


def _of_this_machine() -> System:
    if sys.platform == "win32":
        from dynquant.systems.windows import windows

        return windows()
    from dynquant.systems.posix import Posix

    return Posix()


_USED: list[System] = [_of_this_machine()]


def system() -> System:
    """Return the calls of this machine's system."""
    return _USED[0]


def use(other: System) -> System:
    """Use other calls from here on, and return those before; files must not be open meanwhile."""
    before, _USED[0] = _USED[0], other
    return before
