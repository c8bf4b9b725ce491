"""`dynquant publish`: upload a release folder to the Hugging Face Hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dynquant.cli import console
from dynquant.cli.options import JsonOption

if TYPE_CHECKING:
    from dynquant.checkpoint.hub import HubName
    from dynquant.publishing.publish import Published


def publish(
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A folder that `dynquant release` wrote."),
    ],
    repository: Annotated[
        str,
        typer.Argument(
            metavar="hf://ORG/NAME",
            help="The repository on the Hub; it is created if it does not exist. The release must"
            " be of the same model as the files that it has.",
        ),
    ],
    branch: Annotated[
        str | None,
        typer.Option(
            "--branch",
            "--revision",
            metavar="NAME",
            help="The branch; it is created from main if it does not exist. Default: main.",
            show_default=False,
        ),
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Create a private repository.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would change, and change nothing.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force",
            help="Replace files of these names with other bytes, and edits of the card.",
        ),
    ] = False,
    json: JsonOption = False,
) -> None:
    """Upload a release; the repository's card lists all quants that it has.

    Files that the repository has are not uploaded again, so an interrupted command can be repeated.
    """
    from dynquant.publishing.publish import publish_release

    name = _name(repository, branch)
    if not sys.stderr.isatty():
        _without_bars()
    done = publish_release(
        folder, name, private=private, force=force, dry_run=dry_run, say=console.talk
    )
    for warning in done.warnings:
        console.warn(warning)
    if done.others:
        console.talk(f"{folder}: not part of the release: {', '.join(done.others)}")
    if json:
        console.write_json(_json(done, dry_run))
        return
    if done.is_new:
        console.talk(f"hf://{done.repository}: {'would be' if dry_run else 'was'} created")
    console.write("".join(f"{c.action:<7} {c.bytes:>15,} {c.name}\n" for c in done.changes))
    if done.commit:
        console.talk(f"hf://{done.repository}@{done.branch}: commit {done.commit}")


def _name(repository: str, branch: str | None) -> HubName:
    from dynquant.errors import PublishError
    from dynquant.publishing.target import repository_name

    try:
        return repository_name(repository, branch)
    except PublishError as e:
        raise typer.BadParameter(str(e), param_hint="hf://ORG/NAME") from e


def _without_bars() -> None:
    """Leave the bars of huggingface_hub out of logs."""
    try:
        from huggingface_hub.utils import disable_progress_bars
    except ImportError:
        return  # the library reports it
    disable_progress_bars()


def _json(done: Published, dry_run: bool) -> dict[str, Any]:
    return {
        "repository": done.repository,
        "branch": done.branch,
        "created": done.is_new,
        "dry_run": dry_run,
        "commit": done.commit,
        "files": [
            {
                "name": c.name,
                "action": c.action,
                "bytes": c.bytes,
                "sha256": c.file.sha256 if c.file else None,
            }
            for c in done.changes
        ],
        "warnings": list(done.warnings),
        "not_released": list(done.others),
    }
