"""`dynquant verify`: whether a GGUF file is sound, and what its source gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import ImatrixOption, JsonOption, MlaOption, ThreadsOption


def verify(
    file: Annotated[
        Path, typer.Argument(metavar="OUT.gguf", help="The file; of several shards, any one.")
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="Encode rows of the model that it was made of again, and compare the bytes.",
            show_default=False,
        ),
    ] = None,
    tensors: Annotated[
        str | None,
        typer.Option(
            "--tensors",
            metavar="GLOB",
            help="With --against: compare all rows of the tensors of these names.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            min=1,
            metavar="N",
            help="With --against: compare N ranges of rows, 64 if nothing else is said.",
            show_default=False,
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    mla: MlaOption = "split",
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but faults.")] = False,
) -> None:
    """Check every byte of a GGUF that can be checked; exit with 1 if something is wrong.

    Structure, scales and codes of all blocks, what llama.cpp refuses, and checksums where
    OUT.gguf.manifest.json is there.
    """
    if against is None and (tensors or sample or imatrix):
        raise typer.BadParameter(
            "says with what to compare a source; name that", param_hint="--against"
        )
    from dynquant.errors import VerificationError
    from dynquant.report.verified import verified_json, verified_text
    from dynquant.verification.against import compare
    from dynquant.verification.findings import together
    from dynquant.verification.standalone import verify as verify_file

    started = time.monotonic()
    with console.steps_of(f"{file.name}: reading", quiet=quiet or json) as progress:
        found = verify_file(file, threads=threads, progress=progress)
    if against is not None and found.files:
        from dynquant.importance.imatrix import read_imatrix

        with console.steps_of(f"{file.name}: comparing", quiet=quiet or json) as progress:
            compared = compare(
                file,
                against,
                tensors=tensors,
                sample=sample,
                imatrix=read_imatrix(imatrix) if imatrix else None,
                mla=mla,
                threads=threads,
                progress=progress,
            )
        found = together(found, compared)
    for warning in found.warnings:
        console.talk(f"warning: {warning}", quiet=quiet)
    if found.faults:
        console.fail(VerificationError(*map(str, found.faults)))
    if json:
        console.write_json(verified_json(found))
    elif not quiet:
        seconds = console.duration(time.monotonic() - started)
        console.write(verified_text(found, file.name, seconds))
    if found.faults:
        raise typer.Exit(1)
