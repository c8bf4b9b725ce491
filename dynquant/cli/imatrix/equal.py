"""`dynquant imatrix equal`: an imatrix without any text."""

from __future__ import annotations

from dynquant.cli import console
from dynquant.cli.options import ImatrixOutOption, ModelArgument, QuietOption
from dynquant.cli.text_files import ForceOption


def equal(
    model: ModelArgument,
    out: ImatrixOutOption = None,
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write an imatrix of equal weights, where no text can be read by the model."""
    from dynquant.arch.load import load_model
    from dynquant.calibrate.given import check_model, default_output, output_problems
    from dynquant.errors import ImportanceError, Problems
    from dynquant.importance.equal import write_equal

    out = out or default_output(model)
    problems = Problems()
    problems.attempt(lambda: check_model(model))
    problems.add(*output_problems([out], force=force, model=model, texts=()))
    problems.raise_any(ImportanceError)
    write_equal(load_model(model, needs_vocab=False), out)
    console.talk(
        f"{out}: written; all channels are weighted equally: prefer `dynquant imatrix MODEL`",
        quiet=quiet,
    )
