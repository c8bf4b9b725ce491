"""The options of `plan` and `convert` that decide what a plan is, and the plan they give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import typer

from dynquant.cli.options import settings, size_of, split_of

if TYPE_CHECKING:
    from dynquant.plan.plan import Plan


@dataclass(frozen=True)
class Planning:
    """The options, as the command line has them; None where they are not given."""

    model: str
    recipe: str | None
    saved: Path | None
    imatrix: Path | None
    moments: Path | None
    effort: Literal["fast", "normal", "best"] | None
    allow_requantize: bool
    set_keys: list[str] | None
    pre: str | None
    mla: Literal["split", "merged"] | None
    split_max_size: str | None
    split_max_tensors: int | None
    leave_out: list[str] | None

    @property
    def source(self) -> dict[str, Any]:
        """What decides the types: the recipe, or the saved plan; for events."""
        return {"recipe": self.recipe} if self.saved is None else {"plan": str(self.saved)}

    def check(self) -> None:
        """Raise BadParameter for options that are not valid together, or alone."""
        settings(self.set_keys)
        size_of(self.split_max_size, "--split-max-size")
        if self.saved is None:
            if self.recipe is None:
                raise typer.BadParameter("missing option: --recipe R, or --plan PLAN.json")
            return
        given = {
            "--recipe": self.recipe,
            "--effort": self.effort,
            "--allow-requantize": self.allow_requantize or None,
            "--set": self.set_keys,
            "--pre": self.pre,
            "--mla": self.mla,
            "--split-max-size": self.split_max_size,
            "--split-max-tensors": self.split_max_tensors,
            "--leave-out": self.leave_out,
        }
        if also := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter(f"--plan decides it already: leave out {', '.join(also)}")

    def make(self, *, draft: bool = False) -> Plan:
        """Read the inputs and return the plan; a draft needs neither tokenizer nor importance."""
        from dynquant.inputs import load_plan, read_inputs
        from dynquant.plan.make import make_plan

        if self.saved is not None:
            return load_plan(self.saved, self.model, self.imatrix, self.moments)
        assert self.recipe is not None, "checked"
        inputs = read_inputs(
            self.model,
            self.recipe,
            self.imatrix,
            moments=self.moments,
            pre=self.pre,
            mla=self.mla,
            needs_vocab=not draft,
            leave_out=self.leave_out or (),
        )
        return make_plan(
            inputs.model,
            inputs.recipe,
            imatrix=inputs.imatrix,
            moments=inputs.moments,
            effort=self.effort,
            allow_requantize=self.allow_requantize,
            set_keys=settings(self.set_keys),
            split=split_of(self.split_max_size, self.split_max_tensors),
            draft=draft,
            grids=inputs.grids,
        )
