"""`dynquant recipe ...`: commands that write, check and compare recipes."""

from __future__ import annotations

import typer

from dynquant.cli.recipe import (
    check,
    diff,
    explain,
    export,
    from_gguf,
    import_,
    resolve,
    schema,
)

app = typer.Typer(
    name="recipe",
    help="Write, check and compare recipes.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
for command in (check.check, explain.explain, diff.diff, resolve.resolve, schema.schema):
    app.command()(command)
app.command("from-gguf")(from_gguf.from_gguf)
app.command("import")(import_.import_)
app.command("export")(export.export)
