"""Errors that a user can fix: one class for each part of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")

_SHOWN = 20
"""Messages of one kind: a file of a million lines may have a problem in each."""


def first_of(messages: Iterable[str], what: str) -> list[str]:
    """Return the first messages, and one that counts the others.

    what: the things that have problems, in plural
    """
    every = list(messages)
    more = len(every) - _SHOWN
    return [*every[:_SHOWN], f"and {more:,} more {what} with such problems"] if more > 0 else every


class DynquantError(Exception):
    """A problem that the user can fix; any other exception is a bug and keeps its traceback.

    Carries one or more messages, so that all problems are reported at once. A message is lower
    case, has no full stop, and states where the problem is, what it is, and what to do.
    """

    def __init__(self, *messages: str) -> None:
        super().__init__("\n".join(messages))
        self.messages = messages

    def __reduce__(self) -> tuple[type[DynquantError], tuple[str, ...]]:
        """Keep the messages apart on the way to another process."""
        return type(self), self.messages

    @classmethod
    def raise_any(cls, messages: Iterable[str]) -> None:
        """Raise one error that carries all messages; return if there are no messages."""
        found = tuple(messages)
        if found:
            raise cls(*found)


class Problems:
    """Collects the errors of several steps, so that all are reported at once."""

    def __init__(self) -> None:
        self._errors: list[DynquantError] = []
        self._messages: list[str] = []

    def attempt(self, step: Callable[[], T], *kinds: type[DynquantError]) -> T | None:
        """Return the result of a step, or None after collecting its error.

        kinds: the errors to collect; without any, all that a user can fix
        """
        collected = kinds or (DynquantError,)
        try:
            return step()
        except collected as e:
            self._errors.append(e)
            return None

    def add(self, *messages: str) -> None:
        """Collect messages that no step raised."""
        self._messages += messages

    def raise_any(self, kind: type[DynquantError] = DynquantError) -> None:
        """Raise a single error as it is, several as one of `kind`; return if there is none."""
        if len(self._errors) == 1 and not self._messages:
            raise self._errors[0]
        messages = [*(m for e in self._errors for m in e.messages), *self._messages]
        kind.raise_any(dict.fromkeys(messages))  # two steps may meet one problem


class CheckpointError(DynquantError):
    """The model on disk is incomplete, damaged or in a format that is not supported."""


class ArchitectureError(DynquantError):
    """The model's family, configuration or set of tensors is not supported."""


class AdapterError(DynquantError):
    """An adapter is damaged, of a kind that is not supported, or for another model."""


class VocabError(DynquantError):
    """The tokenizer files are missing, contradictory or of an unknown kind."""


class NoVocabError(VocabError):
    """There are no tokenizer files: a plan can be made, but no file can be written."""


class ImportanceError(DynquantError):
    """The imatrix is damaged or belongs to another model."""


class RecipeError(DynquantError):
    """The recipe cannot be read or does not fit the model."""


class PlanError(DynquantError):
    """The plan cannot be carried out as asked."""


class EncodeError(DynquantError):
    """Weights cannot be encoded: a row has the wrong length, or a number is not finite."""


class ReportError(DynquantError):
    """A report cannot be written to the requested file."""


class ConvertError(DynquantError):
    """Reading the source or writing the output failed."""


class BusyError(ConvertError):
    """Another process writes the same files."""


class ManifestError(DynquantError):
    """A manifest cannot be read or contradicts itself."""


class VerificationError(DynquantError):
    """A file is not correct, or cannot be compared with its source."""


class EvalError(DynquantError):
    """A file or a reference cannot be evaluated, or they do not belong together."""


class CalibrationError(DynquantError):
    """A model cannot be run, or a text is not fit for it."""


class PublishError(DynquantError):
    """A release cannot be published: the folder, the repository or the Hub does not allow it."""


class ReleaseError(DynquantError):
    """A finished file and its manifest are not fit for a release, or writing it failed."""


class ClusterError(DynquantError):
    """A scheduler or its workers cannot be used for a conversion."""


class GateError(DynquantError):
    """A limit that the user set is exceeded: of a size, an error, or a figure of an evaluation."""
