"""`dynquant imatrix`: makes, checks and merges imatrix files."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

from dynquant.cli.imatrix import audit, make, merge


class _WithDefault(TyperGroup):
    """A group that takes a model in place of a command: `dynquant imatrix MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the command that makes a file if none is named."""
        if args and args[0] not in self.commands:
            args = ["make", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="imatrix",
    cls=_WithDefault,
    help="Compute the importance of a model's weights from the model itself, by transformers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command(hidden=True)(make.make)
app.command()(audit.audit)
app.command()(merge.merge)
