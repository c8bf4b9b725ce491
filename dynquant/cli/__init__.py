"""The command line, one module for each command; results go to stdout, messages to stderr.

Exit codes: 0 success · 1 a problem that the user can fix, one `error:` line for each · 2 wrong
usage · 3 a limit is exceeded: the size (--max-size) or the error (--max-error) of the output, or a
limit of `eval` · 130 interrupted · 143 terminated · 141 the reader of stdout closed it.
"""

from __future__ import annotations

import errno
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from dynquant.cli import (
    auto,
    console,
    convert,
    evaluate,
    imatrix,
    inspect,
    ladder,
    manifest,
    mmproj,
    parts,
    plan,
    publish,
    recipe,
    recipes,
    release,
    sensitivity,
    solve,
    split,
    types,
    verify,
)
from dynquant.errors import DynquantError, GateError

app = typer.Typer(
    name="dynquant",
    help="Dynamic quantized GGUF files of any model, in one pass, from a recipe.",
    no_args_is_help=True,
    # Plain help: a tenth of a second less before anything happens, and it survives a pipe.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for seeing in (auto.auto, convert.convert, plan.plan):
    app.command(cls=mmproj.WithMmproj)(seeing)
for command in (
    ladder.ladder,
    solve.solve,
    sensitivity.sensitivity,
    verify.verify,
    release.release,
    publish.publish,
    manifest.manifest,
    inspect.inspect,
    split.split,
    split.merge,
    parts.join,
    types.types,
    recipes.recipes,
):
    app.command()(command)
app.command("eval")(evaluate.evaluate)
app.add_typer(recipe.app)
app.add_typer(imatrix.app)


def _version(wanted: bool) -> None:
    if wanted:
        import dynquant

        console.write(f"dynquant {dynquant.__version__}\n")
        raise typer.Exit


@app.callback()
def dynquant_(
    _: Annotated[
        bool,
        typer.Option(
            "--version", "-V", callback=_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Dynamic quantized GGUF files of any model, in one pass, from a recipe."""


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """Raise in the main thread, as Ctrl-C does, so that running work ends in order."""
    sys.exit(128 + signal.SIGTERM)


def main() -> NoReturn:
    """Run the command line and exit."""
    signal.signal(signal.SIGTERM, _terminate)
    console.open_streams()
    console.print_anything()
    console.log_as("text")
    try:
        app(prog_name="dynquant")
    except OSError as e:
        # Rooms report the files that they read and write; this is what no room expects, such as a
        # name that is too long for the file system.
        if e.filename is None and e.errno != errno.ENOSPC:
            raise
        console.fail(DynquantError(f"{e.filename or 'output'}: {e.strerror}"))
        sys.exit(1)
    except DynquantError as e:
        console.fail(e)
        sys.exit(3 if isinstance(e, GateError) else 1)
    sys.exit(0)
