"""The packages of the extra `eval`."""

from __future__ import annotations

from importlib.util import find_spec

from dynquant.distribution import requirement
from dynquant.errors import EvalError

PACKAGES = ("matplotlib", "platformdirs", "psutil", "scipy", "xllamacpp")
"""xllamacpp is llama.cpp; the others are for memory, folders, intervals and charts."""


def check_extra() -> None:
    """Raise EvalError with the command that installs the extra, if a package is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise EvalError(
            f"evaluation needs {', '.join(missing)}, not installed here: pip install"
            f" '{requirement('eval')}'"
        )
