"""The errors of a file's tensors by layer and role, from its manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, log10
from pathlib import Path

from dynquant.conversion.manifest import Manifest, Tensor, manifest_beside, read_manifest
from dynquant.errors import ManifestError
from dynquant.evaluate.results import FileResult
from dynquant.figures import figure
from dynquant.plan.plan import TensorPlan
from dynquant.quants.table import ALL, KEPT, QuantType
from dynquant.report.colours import THEMES, css, ink, ramp
from dynquant.report.grid import Grid, make_grid

_STEPS = 9
"""Colours of a map, at most."""


@dataclass(frozen=True)
class ErrorMap:
    """The errors of one file.

    grid:   of the tensors whose error was measured; None if there is none
    errors: weighted relative squared error, by tensor
    reason: why there is no grid
    """

    name: str
    grid: Grid | None
    errors: dict[str, float]
    reason: str = ""


@dataclass(frozen=True)
class Scale:
    """Colours by the logarithm of an error, the same for all maps of a page.

    first: power of ten at which the second colour begins, in steps; step: width of each in decades
    """

    first: int
    step: float
    n: int

    def number(self, error: float) -> int:
        """Return the number of the colour of an error."""
        if error <= 0:
            return 0
        return min(max(floor(log10(error) / self.step) - self.first, 0), self.n - 1)

    @property
    def limits(self) -> list[str]:
        """The smallest error of each colour as text; of the first one, the largest."""
        ends = [figure(10 ** (self.step * (self.first + i))) for i in range(self.n)]
        return [f"< {ends[1]}" if self.n > 1 else "all", *(f"≥ {end}" for end in ends[1:])]

    @property
    def styles(self) -> dict[str, list[tuple[str, str]]]:
        """The background and text colour of each colour, for each theme."""
        parts = [i / max(self.n - 1, 1) for i in range(self.n)]
        grounds = {theme: [ramp(part, theme) for part in parts] for theme in THEMES}
        return {theme: [(css(g), css(ink(g))) for g in found] for theme, found in grounds.items()}


def scale_of(maps: Iterable[ErrorMap]) -> Scale:
    """Return colours for the errors of all maps."""
    found = [log10(e) for m in maps for e in m.errors.values() if e > 0]
    low, high = (min(found), max(found)) if found else (0.0, 0.0)
    step = next((s for s in (0.25, 0.5, 1.0, 2.0) if (high - low) / s < _STEPS - 1), 4.0)
    first = floor(low / step)
    return Scale(first, step, min(max(floor(high / step) - first + 1, 1), _STEPS))


def error_maps(files: Sequence[FileResult], paths: Sequence[Path]) -> list[ErrorMap]:
    """Return a map for each file, or the reason why there is none.

    paths: of the files; manifests beside them are read if they are of the same files
    """
    beside = list(dict.fromkeys(manifest_beside(path) for path in paths))
    return [_map_of(file, [p for p in beside if p.is_file()]) for file in files]


def _map_of(file: FileResult, beside: Sequence[Path]) -> ErrorMap:
    ours = {part.name for part in file.files}
    reason = "has no manifest beside it"
    for path in beside:
        if path.name.removesuffix(".manifest.json") not in {*ours, Path(file.name).name}:
            continue
        try:
            manifest = read_manifest(path)
        except ManifestError:
            reason = "has a manifest that cannot be read"
            continue
        if _hashes(manifest) != sorted(part.sha256 for part in file.files):
            reason = "has the manifest of another file beside it"
            continue
        errors = {t.name: t.error.weighted for t in manifest.tensors if t.error}
        if errors:
            grid = make_grid([_planned(t) for t in manifest.tensors if t.error])
            return ErrorMap(file.name, grid, errors)
        reason = "has a manifest without errors"
    return ErrorMap(file.name, None, {}, reason)


def _hashes(manifest: Manifest) -> list[str]:
    return sorted(file.sha256 for file in manifest.output.files)


def _planned(tensor: Tensor) -> TensorPlan:
    unknown = QuantType(tensor.type, -1, 1, 1, "")
    found = (ALL | KEPT).get(tensor.type, unknown)
    shape = tuple(tensor.shape)
    return TensorPlan(tensor.name, shape, found, tensor.offset, tensor.bytes, tensor.rule)
