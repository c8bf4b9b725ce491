"""`dynquant imatrix MODEL`: runs a model over texts and writes its imatrix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    ImatrixOutOption,
    ModelArgument,
    QuietOption,
    ThreadsOption,
    size_of,
)
from dynquant.cli.steps import counting
from dynquant.cli.text_files import ForceOption

if TYPE_CHECKING:
    from dynquant.calibrate.chats import Chat
    from dynquant.texts import Text


def make(
    model: ModelArgument,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text for the model to read; repeat it for several. Default: the texts that are"
            " part of dynquant: prose, conversations and code, 36 languages.",
            show_default=False,
        ),
    ] = None,
    chat: Annotated[
        list[Path] | None,
        typer.Option(
            "--chat",
            metavar="FILE.jsonl",
            help="Conversations for the model to read, one on each line as JSON, through its chat"
            " template; repeat it for several. Also together with --text.",
            show_default=False,
        ),
    ] = None,
    out: ImatrixOutOption = None,
    context: Annotated[
        int, typer.Option("--context", "-c", min=8, metavar="N", help="Tokens of a window.")
    ] = 512,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            min=1,
            metavar="N",
            help="Windows to read, shared equally among the files; default: all.",
            show_default=False,
        ),
    ] = None,
    moments: Annotated[
        Literal["layers", "experts"] | None,
        typer.Option(
            "--moments",
            help="Also write the second moments of the inputs, for error feedback, to"
            " OUT.moments.safetensors: those of a layer's experts together, or of each expert.",
            show_default=False,
        ),
    ] = None,
    threads: ThreadsOption = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory that the run may use: 16G, 16GiB. If all windows together need more, the"
            " model is read several times, with the same result. Default: what is available.",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str,
        typer.Option(
            "--device",
            metavar="NAME",
            help="Where the model runs: cpu, an accelerator that torch finds (cuda, cuda:1, mps),"
            " or auto for an accelerator if there is one. Each device rounds in a different way;"
            " the file records it.",
        ),
    ] = "cpu",
    force: ForceOption = False,
    quiet: QuietOption = False,
) -> None:
    """Run a model over texts, layer by layer, and write its imatrix."""
    from dynquant.calibrate.given import default_output, outputs_of, state_of

    out = out or default_output(model)
    outputs = outputs_of(out, moments)
    texts = _checked(model, text or [], chat or [], outputs, force=force)
    # Torch asks Linux for pages of 2 MB then: an eighth of the time of small models.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # It imports torch, which takes seconds.
    from dynquant.calibrate.imatrix import Settings, make_imatrix

    settings = Settings(
        texts,
        context=context,
        chunks=chunks,
        threads=threads,
        moments=moments,
        device=device,
        memory=size_of(memory, "--memory"),
    )
    try:
        with counting("layers", quiet=quiet) as progress:
            warnings = make_imatrix(
                model,
                out,
                settings,
                force=force,
                progress=progress or (lambda _, __: None),
                say=lambda message: console.talk(message, quiet=quiet),
            )
    except (KeyboardInterrupt, SystemExit):
        if state_of(out).exists():
            console.talk("interrupted; the same command resumes where the last state was stored")
        raise
    for warning in warnings:
        console.warn(warning, quiet=quiet)
    console.talk(f"{out}: written", quiet=quiet)


def _checked(
    model: str, text: list[Path], chat: list[Path], outputs: list[Path], *, force: bool
) -> tuple[Text | Chat, ...]:
    """Return what the model will read, after all that can be checked without it."""
    from dynquant.calibrate.extra import check_extra
    from dynquant.calibrate.given import check_model, output_problems, read_given
    from dynquant.errors import CalibrationError, Problems

    problems = Problems()
    problems.attempt(check_extra)
    problems.attempt(lambda: check_model(model))
    problems.add(*output_problems(outputs, force=force, model=model, texts=[*text, *chat]))
    texts = problems.attempt(lambda: read_given(text, chat))
    problems.raise_any(CalibrationError)
    assert texts is not None, "they are read or a fault"
    return texts
