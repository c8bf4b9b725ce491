"""The results of a verification: faults with their locations, warnings, and what was checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


@dataclass(frozen=True)
class Fault:
    """Something wrong with a file.

    tensor: the tensor concerned; offset: bytes from the start of the file
    """

    what: str
    file: Path | None = None
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = f"byte {self.offset}" if self.offset is not None else None
        return ": ".join(str(p) for p in (self.file, place, self.tensor, self.what) if p)


@dataclass(frozen=True)
class Comparison:
    """The result of comparing a file with its source; the fields are those of Verification."""

    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


@dataclass(frozen=True)
class Verification:
    """The result of verifying a file.

    files:     the files that were read, with their sizes; empty if the header cannot be read
    n_tensors: tensors in all files
    faults:    everything wrong with the file
    warnings:  unusual things that may be intended
    checked:   what was checked
    unchecked: what could not be checked, and why
    """

    files: tuple[tuple[Path, int], ...]
    n_tensors: int
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether no fault was found."""
        return not self.faults

    def with_comparison(self, comparison: Comparison) -> Verification:
        """Return these results with those of a comparison added."""
        return replace(
            self,
            faults=(*self.faults, *comparison.faults),
            warnings=(*self.warnings, *comparison.warnings),
            checked=(*self.checked, *comparison.checked),
            unchecked=(*self.unchecked, *comparison.unchecked),
        )
