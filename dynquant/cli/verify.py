"""`dynquant verify`: check a GGUF file, and compare it with its source."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import (
    BaseOption,
    ImatrixOption,
    JsonOption,
    LeaveOutOption,
    MergeAdapterOption,
    MlaOption,
    MomentsOption,
    ThreadsOption,
)
from dynquant.cli.steps import Report, successive

if TYPE_CHECKING:
    from dynquant.verification.findings import Verification


def verify(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="OUT.gguf",
            help="The file, or several; for a model in shards, any one of the shards.",
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(
            "--against",
            metavar="MODEL",
            help="The model that the file was made from: encode rows again and compare the bytes.",
            show_default=False,
        ),
    ] = None,
    tensors: Annotated[
        str | None,
        typer.Option(
            "--tensors",
            metavar="GLOB",
            help="With --against: compare all rows of the tensors whose names match GLOB.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            "--sample",
            min=1,
            metavar="N",
            help="With --against: compare N ranges of rows; the default is 64.",
            show_default=False,
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    moments: MomentsOption = None,
    mla: MlaOption = "split",
    leave_out: LeaveOutOption = None,
    merge_adapter: MergeAdapterOption = None,
    base: BaseOption = None,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print faults only.")] = False,
) -> None:
    """Check every byte of a GGUF; exit with 1 if something is wrong.

    Checks the structure, the scales and codes of all blocks, and what llama.cpp requires. If there
    is an OUT.gguf.manifest.json, checks the file against it, too.
    """
    adapters = merge_adapter or base
    if against is None and (tensors or sample or imatrix or moments or leave_out or adapters):
        raise typer.BadParameter(
            "--tensors, --sample, --imatrix, --moments, --leave-out, --merge-adapter and --base"
            " require --against MODEL",
            param_hint="--against",
        )
    from dynquant.errors import VerificationError
    from dynquant.report.verified import verified_json, verified_text
    from dynquant.verification.given import not_a_gguf, whole_models
    from dynquant.verification.verify import verify as verify_file

    whole = whole_models(files)
    meant = next((file for file in whole if not_a_gguf(file) is None), "OUT.gguf")
    VerificationError.raise_any(why for f in whole if (why := not_a_gguf(f, meant)) is not None)
    if against is not None and len(whole) > 1:
        raise typer.BadParameter(
            f"compares one file; run it for each of the {len(whole)} files", param_hint="--against"
        )
    results: list[Verification] = []
    for file in map(Path, whole):
        started = time.monotonic()
        with successive(partial(_shown, file.name, quiet=quiet or json)) as progress:
            found = verify_file(
                file,
                against,
                tensors=tensors,
                sample=sample,
                imatrix=imatrix,
                moments=moments,
                mla=mla,
                leave_out=leave_out or (),
                merge_adapter=merge_adapter or (),
                base=base,
                threads=threads,
                progress=progress,
            )
        results.append(found)
        for warning in found.warnings:
            console.warn(warning, quiet=quiet)
        if found.faults:
            console.fail(VerificationError(*map(str, found.faults)))
        if not json and not quiet:
            seconds = console.duration(time.monotonic() - started)
            console.write(verified_text(found, file.name, seconds))
    if json:
        documents = [verified_json(found) for found in results]
        console.write_json(documents[0] if len(documents) == 1 else documents)
    elif len(whole) == 2 and results[0].n_tensors == results[1].n_tensors:
        console.talk(_how_to_compare(whole, results), quiet=quiet)
    if not all(found.is_sound for found in results):
        raise typer.Exit(1)


def _how_to_compare(files: list[str], results: list[Verification]) -> str:
    """Return what to type if one of two files was meant as the source of the other."""
    sizes = [sum(size for _, size in found.files) for found in results]
    source, out = sorted(files, key=lambda file: sizes[files.index(file)], reverse=True)
    return (
        "each file was checked separately; to compare one with the other as its source:"
        f" dynquant verify {out} --against {source}"
    )


def _shown(name: str, step: str, *, quiet: bool) -> AbstractContextManager[Report | None]:
    return console.steps_of(f"{name}: {step}", quiet=quiet)
