"""What is found wrong with a file: where, and what."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path


def counted(n: int, what: str) -> str:
    """Return a number of things as text: `1 file`, `3 files`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"


@dataclass(frozen=True)
class Fault:
    """Something that a sound file has not.

    tensor: the one that it concerns; offset: bytes from the start of the file
    """

    what: str
    file: Path | None = None
    tensor: str | None = None
    offset: int | None = None

    def __str__(self) -> str:
        place = f"byte {self.offset}" if self.offset is not None else None
        return ": ".join(str(p) for p in (self.file, place, self.tensor, self.what) if p)


@dataclass(frozen=True)
class Verified:
    """The outcome of a verification.

    files:     that were looked at, with their sizes
    faults:    what a sound file has not; warnings: what somebody may have meant so
    checked:   what was looked at; unchecked: what could not be, with the reason
    n_tensors: tensors of all files
    """

    files: tuple[tuple[Path, int], ...]
    n_tensors: int
    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong, as far as it could be looked at."""
        return not self.faults


@dataclass(frozen=True)
class Compared:
    """What a comparison says, to be put beside what else is known of the file."""

    faults: tuple[Fault, ...]
    warnings: tuple[str, ...]
    checked: tuple[str, ...]
    unchecked: tuple[str, ...]


def together(found: Verified, compared: Compared) -> Verified:
    """Return what is known of a file with what its source says of it."""
    return replace(
        found,
        faults=(*found.faults, *compared.faults),
        warnings=(*found.warnings, *compared.warnings),
        checked=(*found.checked, *compared.checked),
        unchecked=(*found.unchecked, *compared.unchecked),
    )
