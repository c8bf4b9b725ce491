"""The result of a conversion: files, their hashes, and the error of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dynquant.conversion.losses import Loss, loss_of, loss_warnings, rounded_warnings
from dynquant.conversion.reuse.decide import Reused
from dynquant.feedback.decided import TensorGain
from dynquant.plan.plan import Plan
from dynquant.quants.error import TensorError


@dataclass(frozen=True)
class Result:
    """A finished output.

    plan:          the plan that it was made by
    paths:         its files, one or several shards
    file_bytes:    size of each file
    sha256:        of each file, in hexadecimal
    xxh64:         of each tensor's bytes by name, as llama-gguf-hash prints it
    errors:        by name, of each tensor whose weights changed
    resumed_bytes: bytes of tensors that an earlier run had written
    manifest:      the manifest beside the files; None if none was written
    rounded:       by name, of tensors on a grid, how many weights differ by the rounding of a scale
                   (of the rows that this run encoded)
    gains:         by name, of each tensor that may have error feedback, what it did
    reused:        what was copied from an earlier output; None if none was given
    """

    plan: Plan = field(repr=False)
    paths: tuple[Path, ...]
    file_bytes: tuple[int, ...]
    sha256: tuple[str, ...]
    xxh64: Mapping[str, str] = field(repr=False)
    errors: Mapping[str, TensorError] = field(repr=False)
    resumed_bytes: int
    manifest: Path | None
    rounded: Mapping[str, int] = field(default_factory=dict[str, int], repr=False)
    gains: Mapping[str, TensorGain] = field(default_factory=dict[str, TensorGain], repr=False)
    reused: Reused | None = None

    @property
    def path(self) -> Path:
        """The file that a runtime is given: the only one, or the first shard."""
        return self.paths[0]

    @property
    def n_bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.file_bytes)

    @property
    def bits_per_weight(self) -> float:
        """Mean bits of a weight over all tensors."""
        return self.plan.bits_per_weight

    @property
    def warnings(self) -> tuple[str, ...]:
        """Warnings of tensors whose errors are so large that answers are probably nonsense, and of
        weights on a grid that F16 scales do not reproduce.
        """
        rounded = rounded_warnings(self.plan.tensors, self.errors, self.rounded)
        return (*loss_warnings(self.plan.tensors, self.errors), *rounded)

    @property
    def loss(self) -> Loss | None:
        """The mean errors of all measured tensors; None if no weights changed."""
        return loss_of(self.plan.tensors, self.errors)
