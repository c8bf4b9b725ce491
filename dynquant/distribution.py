"""The installed distribution: its name on PyPI, its version, and how to install it.

The name differs from the import name, because `dynquant` on PyPI belongs to another project.
"""

from __future__ import annotations

from functools import cache

DISTRIBUTION = "dynquant-gguf"


@cache
def our_version() -> str:
    """Return the version of dynquant, such as `0.1.0`."""
    from importlib.metadata import version

    return version(DISTRIBUTION)


def requirement(extra: str = "", version: str = "") -> str:
    """Return the argument for `pip install`, such as `dynquant-gguf[hub]==0.1.0`."""
    return f"{DISTRIBUTION}{extra and f'[{extra}]'}{version and f'=={version}'}"
