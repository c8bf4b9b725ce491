"""The packages of the extra `calibrate`, imported only where a model is run."""

from __future__ import annotations

from importlib.util import find_spec

from dynquant.distribution import requirement
from dynquant.errors import CalibrationError

PACKAGES = ("torch", "transformers")


def check_extra() -> None:
    """Raise CalibrationError with the command that installs the extra, if a package is missing."""
    if missing := [name for name in PACKAGES if find_spec(name) is None]:
        raise CalibrationError(
            f"computing an imatrix needs {', '.join(missing)}, not installed here: pip install"
            f" '{requirement('calibrate')}'"
        )
