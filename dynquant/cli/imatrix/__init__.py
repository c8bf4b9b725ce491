"""`dynquant imatrix`: makes, checks and merges imatrix files."""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from dynquant.cli.imatrix import audit, equal, make, merge


class _WithDefault(TyperGroup):
    """A group that takes a model in place of a command: `dynquant imatrix MODEL`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Add the command that makes a file if none is named."""
        if args and args[0] not in self.commands:
            args = ["make", *args]
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help of the command that makes a file, and then the other commands."""
        self.commands["make"].format_help(ctx, formatter)


class _Default(TyperCommand):
    """The command for which no name is needed; its usage is shown as the group's."""

    def make_context(
        self,
        info_name: str | None,  # noqa: ARG002
        args: list[str],
        parent: Any = None,
        **extra: Any,
    ) -> Any:
        """Return a context that has the name of the group."""
        assert parent is not None, "it is part of a group"
        return super().make_context(parent.info_name, args, parent=parent.parent, **extra)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the other commands below the options."""
        group: Any = typer.main.get_command(app)
        group.format_commands(ctx, formatter)


app = typer.Typer(
    name="imatrix",
    cls=_WithDefault,
    help="Compute the importance of a model's weights from the model itself, by transformers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.command(cls=_Default, hidden=True)(make.make)
app.command()(audit.audit)
app.command()(merge.merge)
app.command()(equal.equal)
