"""The prompts of free-running generation: the shipped list, or a file with one on each line."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from dynquant.errors import EvalError
from dynquant.untrusted import read_regular

_MAX_BYTES = 16 << 20


def shipped_prompts() -> list[str]:
    """Return the list that is part of dynquant."""
    return (
        resources.files("dynquant.evaluate").joinpath("prompts.txt").read_text("utf-8").splitlines()
    )


def read_prompts(path: Path) -> list[str]:
    r"""Return the prompts of a file, one on each line; `\n` in a line is a new line of the prompt.

    Raises EvalError if it cannot be read, is not UTF-8, or has no prompt.
    """
    try:
        text = read_regular(path, _MAX_BYTES).decode()
    except OSError as e:
        raise EvalError(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise EvalError(f"{path}: is not UTF-8 at byte {e.start:,}; convert it to UTF-8") from e
    found = [line.replace("\\n", "\n") for line in text.splitlines() if line.strip()]
    if not found:
        raise EvalError(f"{path}: has no prompt; write one on each line")
    return found
