"""`dynquant imatrix MODEL`: runs a model over texts and writes its imatrix."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ThreadsOption, size_of
from dynquant.cli.steps import counting


def make(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL",
            help="A checkpoint's folder, or a GGUF of a family that transformers reads.",
            show_default=False,
        ),
    ],
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
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="OUT.gguf",
            help="The file to write; default: MODEL.imatrix.gguf in the current folder.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int, typer.Option("--context", "-c", min=8, metavar="N", help="Tokens of a window.")
    ] = 512,
    chunks: Annotated[
        int | None,
        typer.Option(
            "--chunks",
            min=1,
            metavar="N",
            help="Windows to read, shared equally among the texts; default: all.",
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
    force: Annotated[bool, typer.Option("--force", help="Replace OUT if it exists.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print results only.")] = False,
) -> None:
    """Run a model over texts, layer by layer, and write its imatrix."""
    from dynquant.calibrate.extra import check_extra

    check_extra()
    # Torch asks Linux for pages of 2 MB then: an eighth of the time of small models.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    from dynquant.calibrate.imatrix import Settings, make_imatrix
    from dynquant.calibrate.shipped import shipped_texts
    from dynquant.errors import CalibrationError
    from dynquant.texts import read_texts

    texts = tuple(read_texts(text, CalibrationError)) if text else shipped_texts()
    name = model.resolve().name
    out = out or Path(f"{name.removesuffix('.gguf')}.imatrix.gguf")
    if out.resolve() in {path.resolve() for path in (model, *(text or ()))}:
        raise CalibrationError(f"{out}: is a file that this command reads; name another output")
    settings = Settings(
        texts,
        context=context,
        chunks=chunks,
        threads=threads,
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
        console.talk("interrupted; the same command resumes after the last layer that was stored")
        raise
    for warning in warnings:
        console.warn(warning, quiet=quiet)
    console.talk(f"{out}: written", quiet=quiet)
