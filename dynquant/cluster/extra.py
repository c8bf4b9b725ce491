"""The package of the extra `cluster`, imported only where a cluster is used."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from dynquant.distribution import requirement
from dynquant.errors import ClusterError


def distributed() -> Any:
    """Return Dask's package `distributed`, which has no types.

    Raises ClusterError with the command that installs the extra, if it is missing.
    """
    if find_spec("distributed") is None:
        raise ClusterError(
            "a cluster needs distributed (Dask), not installed here: pip install"
            f" '{requirement('cluster')}'"
        )
    return import_module("distributed")
