"""What can go wrong that a user can mend: one kind of error per room."""

from __future__ import annotations

from collections.abc import Iterable


class DynquantError(Exception):
    """A problem that the user can mend; anything else is our bug and keeps its traceback.

    Carries one or more messages, so that all offenders are reported at once. A message is lower
    case, without a full stop, and says where, what, and what to do.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages

    @classmethod
    def raise_any(cls, messages: Iterable[str]) -> None:
        """Raise one error that carries all messages; return if there is none."""
        found = tuple(messages)
        if found:
            raise cls(*found)


class CheckpointError(DynquantError):
    """The model on disk is incomplete, damaged or not of a kind we read."""


class ArchitectureError(DynquantError):
    """The model's family, configuration or tensor set is not one we know."""


class VocabError(DynquantError):
    """The tokenizer files are missing, contradictory or of an unknown kind."""


class NoVocabError(VocabError):
    """There are no tokenizer files: enough for a plan, not for a file."""


class ImportanceError(DynquantError):
    """The imatrix is damaged, or another model's."""


class RecipeError(DynquantError):
    """The recipe cannot be read, or does not fit the model."""


class PlanError(DynquantError):
    """The plan cannot be carried out as asked."""


class EncodeError(DynquantError):
    """Weights that no block can hold: a row of the wrong length, a number that is not finite."""


class ReportError(DynquantError):
    """A report cannot be written where it was asked for."""


class ConvertError(DynquantError):
    """Reading the source or writing the output failed."""


class ManifestError(DynquantError):
    """A manifest cannot be read, or contradicts itself."""


class VerificationError(DynquantError):
    """A file is not what it ought to be, or cannot be compared with its source."""


class ReleaseError(DynquantError):
    """A finished file and its manifest do not make a release, or it cannot be written."""


class GateError(DynquantError):
    """The output is larger, or loses more, than was asked for."""
