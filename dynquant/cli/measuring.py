"""Options of commands that let llama.cpp compare files on a text, and their checks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from dynquant.evaluate.settings import Settings

TextOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--text",
        metavar="FILE",
        help="Text that the model was not trained on, and that no result is reported on. Repeat it"
        " for several.",
        show_default=False,
    ),
]
TokensOption = Annotated[
    int, typer.Option("--tokens", metavar="N", min=1024, help="Tokens of all texts, at most.")
]
ReferenceOption = Annotated[
    str | None,
    typer.Option(
        "--reference",
        metavar="MODEL",
        help="What files are compared with, as in `dynquant eval`; default: MODEL.",
        show_default=False,
    ),
]


def check_texts(texts: list[Path] | None, wanted: bool, option: str) -> None:
    """Raise BadParameter for an option without texts, or texts without it.

    Raises EvalError if the extra `eval` is not installed.
    """
    if wanted and not texts:
        raise typer.BadParameter(f"{option} needs a text: give --text FILE")
    if texts and not wanted:
        raise typer.BadParameter(f"--text is for {option}; add it, or leave out --text")
    if wanted:
        from dynquant.evaluate.extra import check_extra

        check_extra()


def settings_of(texts: list[Path] | None, tokens: int, threads: int | None) -> Settings:
    """Return the settings of an evaluation without answers, in the user's cache folder."""
    from dynquant.evaluate.settings import Settings, default_cache

    return Settings(cache=default_cache(), texts=tuple(texts or ()), tokens=tokens, threads=threads)
