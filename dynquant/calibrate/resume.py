"""What a run stores from time to time, so that another run resumes after the same layer."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
import transformers

from dynquant.arrays import I32
from dynquant.calibrate.feeds import Feed
from dynquant.calibrate.sums import Sums
from dynquant.distribution import our_version
from dynquant.errors import CalibrationError

Totals = dict[Feed, list[Sums]]
"""The sums of each place: one item, or one for each expert or head."""


@dataclass(frozen=True)
class State:
    """A run between two layers.

    windows: the first of the pass, and the first after it
    layer:   the next layer
    outputs: what the layer before it returned, for each group of windows
    totals:  the sums of all layers so far
    """

    windows: tuple[int, int]
    layer: int
    outputs: list[Any]
    totals: Totals


def identity(files: Sequence[Path], windows: I32, device: Any, moments: str) -> str:
    """Return a hash of what a state belongs to: model, tokens, device, and our version.

    moments: the name of the file of second moments that the run writes, if it does
    """
    stats = [(str(file.resolve()), file.stat()) for file in sorted(files)]
    versions = [our_version(), torch.__version__, transformers.__version__]
    known = [
        versions,
        str(device),
        moments,
        [(name, s.st_size, s.st_mtime_ns) for name, s in stats],
    ]
    digest = hashlib.sha256(json.dumps(known).encode())
    digest.update(json.dumps(windows.shape).encode() + windows.astype("<i4").tobytes())
    return digest.hexdigest()


def save(path: Path, of: str, state: State) -> None:
    """Store a state; a file that is there is complete.

    of: its identity

    Raises CalibrationError if it cannot be written.
    """
    part = path.with_name(f"{path.name}.part")
    content = {
        "of": of,
        "windows": state.windows,
        "layer": state.layer,
        "outputs": state.outputs,
        "totals": {f"{f.module} {f.kind}": _packed(sums) for f, sums in state.totals.items()},
    }
    try:
        torch.save(content, part)
        part.replace(path)
    except (OSError, RuntimeError) as e:
        part.unlink(missing_ok=True)
        raise CalibrationError(f"{path}: cannot be written: {e}") from e


def load(path: Path, of: str) -> State | None:
    """Return a stored state; None if there is none, or one of another run."""
    if not path.exists():
        return None
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True)
        if content["of"] != of:
            return None
        totals = {_feed(name): _unpacked(packed) for name, packed in content["totals"].items()}
        first, end = content["windows"]
        return State((first, end), content["layer"], content["outputs"], totals)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, EOFError, UnpicklingError) as e:
        raise CalibrationError(f"{path}: is damaged; remove it to start again") from e


class Keeper:
    """Stores states at a distance in time."""

    def __init__(self, path: Path, of: str, seconds: float) -> None:
        self._path, self._of, self._seconds = path, of, seconds
        self._last = time.monotonic()

    def load(self) -> State | None:
        """Return the stored state of this run, or None."""
        return load(self._path, self._of)

    def offer(self, state: Callable[[], State]) -> None:
        """Store a state if the last one is old enough."""
        if time.monotonic() - self._last >= self._seconds:
            save(self._path, self._of, state())
            self._last = time.monotonic()

    def remove(self) -> None:
        """Remove what is stored."""
        self._path.unlink(missing_ok=True)


def _packed(sums: Sequence[Sums]) -> Mapping[str, Any]:
    return {
        "counts": torch.tensor([s.count for s in sums]),
        "linear": torch.from_numpy(np.stack([s.linear for s in sums])),
        "squares": torch.from_numpy(np.stack([s.squares for s in sums])),
    }


def _unpacked(packed: Mapping[str, Any]) -> list[Sums]:
    parts = packed["counts"].tolist(), packed["linear"].numpy(), packed["squares"].numpy()
    return [Sums(*item) for item in zip(*parts, strict=True)]


def _feed(name: str) -> Feed:
    module, kind = name.rsplit(" ", 1)
    return Feed(module, kind)
