"""`dynquant imatrix from-weights`: an imatrix without any text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ModelArgument, QuietOption, named_file
from dynquant.cli.text_files import ForceOption


def from_weights(
    model: ModelArgument,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.gguf",
            help="The file to write; default: MODEL.imatrix.gguf in the current folder.",
            show_default=False,
            callback=named_file,
        ),
    ] = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Estimate an imatrix from the weights alone, where a model cannot be run."""
    from dynquant.arch.load import load_model
    from dynquant.calibrate.given import check_model, default_output, output_problems
    from dynquant.errors import ImportanceError, Problems
    from dynquant.importance.from_weights import write_from_weights

    out = out or default_output(model)
    problems = Problems()
    problems.attempt(lambda: check_model(model))
    problems.add(*output_problems([out], force=force, model=model, texts=()))
    problems.raise_any(ImportanceError)
    write_from_weights(load_model(model, needs_vocab=False), out)
    console.talk(
        f"{out}: written; it knows no activations: prefer `dynquant imatrix MODEL`", quiet=quiet
    )
