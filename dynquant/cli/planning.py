"""The options of `plan` and `convert` that decide what a plan is, and the plan they give."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import typer

from dynquant.cli import console
from dynquant.cli.mmproj import DEFAULT, Projecting
from dynquant.cli.options import settings, size_of, split_of
from dynquant.cli.targets import DEFAULT_RECIPE, NOTHING_ASKED, Asked, posed

if TYPE_CHECKING:
    from dynquant.budget.solve import Problem, Solved
    from dynquant.keys import KeyValue
    from dynquant.plan.plan import Plan

ADAPTER_RECIPE = "f32"
"""The recipe of adapters if none is given."""


class Made(NamedTuple):
    """A plan; problem, solved: if it was made for a size."""

    plan: Plan
    problem: Problem | None = None
    solved: Solved | None = None


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
    asked: Asked = NOTHING_ASKED
    threads: int | None = None
    quiet: bool = False
    merge_adapter: list[str] | None = None
    base: str | None = None
    fetch: Literal["download", "shards", "stream"] = "download"

    @property
    def _recipe(self) -> str:
        """The recipe: F32 for adapters, which are small."""
        return self.recipe or (DEFAULT_RECIPE if self.base is None else ADAPTER_RECIPE)

    @property
    def source(self) -> dict[str, Any]:
        """What decides the types: the recipe, or the saved plan; for events."""
        if self.saved is not None:
            return {"plan": str(self.saved)}
        return {"recipe": self._recipe}

    def check(self) -> None:
        """Raise BadParameter for options that are not valid together, or alone."""
        settings(self.set_keys)
        size_of(self.split_max_size, "--split-max-size")
        self.asked.check()
        self._check_adapter()
        if self.saved is None:
            if self.recipe is None and not self.asked.is_given and self.base is None:
                raise typer.BadParameter(
                    "missing option: --recipe R, --target-size SIZE, or --plan PLAN.json"
                )
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
            "--target-size": self.asked.size,
            "--target-bpw": self.asked.bpw,
            "--fit": self.asked.fit,
            "--context": self.asked.context,
            "--sensitivity": self.asked.sensitivity,
        }
        if also := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter(f"--plan decides it already: leave out {', '.join(also)}")

    def _check_adapter(self) -> None:
        """Raise BadParameter for options that an adapter as the model does not have."""
        if self.base is None:
            return
        if also := [name for name, value in self._of_language_model().items() if value is not None]:
            raise typer.BadParameter(f"--base converts an adapter: leave out {', '.join(also)}")

    def projecting(
        self, recipe: str | None, *, only: bool, out: Path | None = None
    ) -> Projecting | None:
        """Check the options, and return what was asked for beside the language model.

        recipe: of the projector, as --mmproj has it; only: whether nothing else is written
        out:    where to write it; None beside the language model

        Raises BadParameter for options that are not valid together, or alone.
        """
        if self.base is not None and (only or recipe or out):
            raise typer.BadParameter("--base converts an adapter, which has no projector")
        if not only:
            self.check()
            if recipe is None and out is None:
                return None
            if of_projector := [n for n in settings(self.set_keys) if n.startswith("clip.")]:
                raise typer.BadParameter(
                    f"{', '.join(of_projector)}: --set sets keys of the language model; set those"
                    " of the projector in its recipe (metadata), or with --only-mmproj"
                )
            return Projecting(self.model, recipe or DEFAULT, self.effort, out=out, fetch=self.fetch)
        if out is not None:
            raise typer.BadParameter("--only-mmproj writes the projector to --out: name it there")
        given = {
            "--plan": self.saved,
            "--allow-requantize": self.allow_requantize or None,
            **self._of_language_model(),
        }
        if also := [name for name, value in given.items() if value is not None]:
            raise typer.BadParameter(
                f"--only-mmproj writes no language model: leave out {', '.join(also)}"
            )
        if recipe is not None and self.recipe is not None:
            raise typer.BadParameter("--mmproj and --recipe both name a recipe: leave one out")
        keys: dict[str, KeyValue | str] = {**settings(self.set_keys)}
        return Projecting(
            self.model, recipe or self.recipe or DEFAULT, self.effort, keys, fetch=self.fetch
        )

    def _of_language_model(self) -> dict[str, Any]:
        """Return the options that only language models have; None if they are not given."""
        return {
            "--merge-adapter": self.merge_adapter,
            "--imatrix": self.imatrix,
            "--moments": self.moments,
            "--pre": self.pre,
            "--mla": self.mla,
            "--leave-out": self.leave_out,
            "--split-max-size": self.split_max_size,
            "--split-max-tensors": self.split_max_tensors,
            "--target-size": self.asked.size,
            "--target-bpw": self.asked.bpw,
            "--fit": self.asked.fit,
            "--context": self.asked.context,
            "--sensitivity": self.asked.sensitivity,
        }

    def make(self, *, draft: bool = False) -> Plan:
        """Read the inputs and return the plan; a draft needs neither tokenizer nor importance."""
        return self.made(draft=draft).plan

    def made(self, *, draft: bool = False) -> Made:
        """Return the plan, and what it was solved from if it was made for a size."""
        from dynquant.inputs import load_plan, read_inputs
        from dynquant.plan.make import make_plan

        if self.saved is not None:
            return Made(
                load_plan(
                    self.saved,
                    self.model,
                    self.imatrix,
                    self.moments,
                    self.merge_adapter or (),
                    self.base,
                    self.fetch,
                )
            )
        recipe = self._recipe
        needs_size = self.asked.is_given or _has_choice(recipe)
        inputs = read_inputs(
            self.model,
            recipe,
            self.imatrix,
            moments=self.moments,
            pre=self.pre,
            mla=self.mla,
            needs_vocab=needs_size or not draft,
            leave_out=self.leave_out or (),
            merge_adapter=self.merge_adapter or (),
            base=self.base,
            fetch=self.fetch,
        )
        options: dict[str, Any] = {
            "effort": self.effort,
            "allow_requantize": self.allow_requantize,
            "set_keys": settings(self.set_keys),
            "split": split_of(self.split_max_size, self.split_max_tensors),
        }
        if needs_size:
            from dynquant.budget.solve import solve_for
            from dynquant.report.solved import solved_line

            problem, target = posed(
                inputs, self.asked, threads=self.threads, quiet=self.quiet, **options
            )
            found = solve_for(problem, target)
            console.talk(solved_line(found), quiet=self.quiet)
            return Made(found.plan, problem, found)
        made = make_plan(
            inputs.model,
            inputs.recipe,
            imatrix=inputs.imatrix,
            moments=inputs.moments,
            draft=draft,
            grids=inputs.grids,
            **options,
        )
        return Made(made)


def _has_choice(recipe: str) -> bool:
    """Whether a recipe leaves types open; a faulty one is reported with the other inputs."""
    from dynquant.errors import RecipeError
    from dynquant.recipe.loader import load_recipe

    try:
        return load_recipe(recipe).has_choice
    except RecipeError:
        return False
