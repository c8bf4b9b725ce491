"""Options of `dynquant eval` that contradict each other or the files, found before the work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import typer

from dynquant.errors import EvalError
from dynquant.evaluate.reference import read_header
from dynquant.evaluate.results import Evaluation
from dynquant.evaluate.store import Store, is_store


def stated(context: typer.Context, *names: str) -> set[str]:
    """Return which of these parameters the user gave."""
    found = {name: context.get_parameter_source(name) for name in names}
    return {name for name, source in found.items() if source and source.name != "DEFAULT"}


def check_sampler(context: typer.Context, temperature: float | None) -> None:
    """Refuse settings of a sampler that is not used."""
    if not temperature and (given := stated(context, "top_k", "top_p", "min_p", "seed")):
        options = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given))
        raise typer.BadParameter(
            "needs --temp: without it, each token is the most likely one", param_hint=options
        )


def check_share(percent: float | None) -> None:
    """Refuse a percentage that was probably meant as a fraction."""
    if percent is not None and 0 < percent <= 1:
        raise typer.BadParameter(
            f"{percent:g} is a percentage; did you mean {100 * percent:g}?",
            param_hint="--min-same-top",
        )


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path], cache: Path) -> Iterator[str]:
    """Yield a message for each output that would replace what the command reads."""
    read = {path.resolve() for path in inputs}
    for out in outputs:
        where = out.resolve()
        if where in read:
            yield f"{out}: is a file that this command reads; name another output"
        elif cache.resolve() in where.parents:
            yield f"{out}: is in the folder of --cache; name an output elsewhere"


def check_stored(
    given: typer.Context, reference: Path, *, context: int, tokens: int, tail: float
) -> Iterator[str]:
    """Yield a message for each option that differs from what a stored reference was made with."""
    options = stated(given, "context", "tokens", "tail")
    if not options or not is_store(reference):
        return
    with Store.open(reference) as store:
        header = read_header(store)
    if "context" in options and context != header.context:
        yield (
            f"--context {context}: {reference} has windows of {header.context:,} tokens; leave the"
            " option out"
        )
    n = header.n_windows * header.context
    if "tokens" in options and tokens < n:
        yield f"--tokens {tokens}: {reference} has {n:,} tokens; leave the option out"
    if "tail" in options and tail != header.tail:
        yield f"--tail {tail:g}: {reference} was made with {header.tail:g}; leave the option out"


def check_answers(evaluation: Evaluation) -> None:
    """Raise EvalError if --no-loops cannot be judged."""
    EvalError.raise_any(
        f"{file.name}: --no-loops cannot be judged, because there are no answers"
        for file in evaluation.files
        if not file.answers
    )
