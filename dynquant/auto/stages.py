"""The stages of `dynquant auto`: each is a command, with the files that it reads and writes."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dynquant.arch.load import Mla
from dynquant.calibrate.given import default_output, moments_of
from dynquant.conversion.manifest import manifest_path
from dynquant.quants.search import Effort
from dynquant.recipe.target import Target

SKIPPABLE = (
    "importance",
    "feedback",
    "sensitivity",
    "measure",
    "solve",
    "verify",
    "evaluate",
    "report",
)
"""What can be left out; `feedback`, `measure` and `verify` are parts of stages."""

MODEL = "MODEL"
"""The model among the inputs of a stage, whatever its files are."""


@dataclass(frozen=True)
class Projector:
    """A projector that is written beside the language model, as it is planned.

    recipe:       its type, or what names its recipe
    recipe_files: what that is read from
    sources:      files of the model that it is made of
    n_bytes:      of the output
    """

    recipe: str
    out: Path
    recipe_files: tuple[Path, ...]
    sources: tuple[Path, ...]
    n_bytes: int


@dataclass(frozen=True)
class Asked:
    """What `dynquant auto` is asked for.

    target:      the size, in place of the recipe's
    size:        options that ask for it, as in a command line
    recipe:      one with `choose`; None for the one that leaves all types open
    recipe_files: what it is read from
    pre, mla, leave_out: how the model is read, for all commands that read it
    effort, allow_requantize: how it is encoded, for all commands that plan
    imatrix, moments: the user's; None are made
    calibration: texts that the model reads; none for those that are part of dynquant
    chunks:      windows of them; None for all
    device:      where it reads them
    memory:      that it may use for this
    tuning:      texts that factors are measured on and candidates are compared on
    texts:       texts that the result is evaluated on
    tokens:      of each evaluation
    n_prompts:   that the output continues
    folder:      for the files of the model
    skip:        of SKIPPABLE
    projector:   to write, too
    """

    model: str
    out: Path
    target: Target
    size: tuple[str, ...]
    folder: Path
    recipe: str | None = None
    recipe_files: tuple[Path, ...] = ()
    pre: str | None = None
    mla: Mla | None = None
    leave_out: tuple[str, ...] = ()
    effort: Effort | None = None
    allow_requantize: bool = False
    imatrix: Path | None = None
    moments: Path | None = None
    calibration: tuple[Path, ...] = ()
    chunks: int | None = None
    device: str | None = None
    memory: str | None = None
    tuning: tuple[Path, ...] = ()
    texts: tuple[Path, ...] = ()
    tokens: int = 32_768
    n_prompts: int = 64
    threads: int | None = None
    skip: frozenset[str] = frozenset()
    projector: Projector | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        """Options that decide how the model is read."""
        return (
            *_option("--pre", self.pre),
            *_option("--mla", self.mla),
            *_each("--leave-out", self.leave_out),
        )

    @property
    def encoding(self) -> tuple[str, ...]:
        """Options that decide how it is encoded."""
        requantize = ("--allow-requantize",) if self.allow_requantize else ()
        return (*_option("--effort", self.effort), *requantize)

    @property
    def before(self) -> dict[str, tuple[Path, ...]]:
        """Texts that are read before the output is evaluated, by option."""
        return {"--calibration": self.calibration, "--tune": self.tuning}

    @property
    def measures(self) -> bool:
        """Whether factors of damage are measured."""
        return bool(self.tuning) and "measure" not in self.skip

    @property
    def verifies(self) -> bool:
        """Whether candidates are compared."""
        return bool(self.tuning) and "verify" not in self.skip

    @property
    def makes_importance(self) -> bool:
        """Whether the model is run for its importance."""
        return self.imatrix is None and "importance" not in self.skip

    @property
    def makes_sensitivity(self) -> bool:
        """Whether errors are measured once for all sizes."""
        return self.measures or "sensitivity" not in self.skip

    @cached_property
    def files(self) -> Files:
        """The files that are made."""
        return Files.of(self.model, self.out, self.folder, measures=self.measures)


@dataclass(frozen=True)
class Files:
    """The files that are made: of the model, for any size, and of the output.

    Factors of damage are measured around the solution of a size, so that the file that has them is
    of the output.
    """

    imatrix: Path
    moments: Path
    sensitivity: Path
    record: Path
    recipe: Path
    manifest: Path
    evaluation: Path
    evaluation_page: Path
    plan: Path
    plan_page: Path

    @classmethod
    def of(cls, model: str, out: Path, folder: Path, *, measures: bool) -> Files:
        """Name the files of a model in a folder, and those of an output beside it."""
        imatrix = folder / default_output(model)
        name = imatrix.name.removesuffix(".imatrix.gguf")
        stem = out.name.removesuffix(".gguf")
        errors = out.with_name(stem) if measures else folder / name
        return cls(
            imatrix=imatrix,
            moments=moments_of(imatrix),
            sensitivity=errors.with_name(f"{errors.name}.sensitivity.json"),
            record=folder / f"{name}.auto.json",
            recipe=out.with_name(f"{stem}.yaml"),
            manifest=manifest_path(out),
            evaluation=out.with_name(f"{stem}.eval.json"),
            evaluation_page=out.with_name(f"{stem}.eval.html"),
            plan=out.with_name(f"{stem}.plan.json"),
            plan_page=out.with_name(f"{stem}.plan.html"),
        )


@dataclass(frozen=True)
class Stage:
    """A command.

    arguments: that decide the result
    others:    that do not, such as the number of threads
    reads:     files, and MODEL
    writes:    files
    stdout:    the file, one of `writes`, that gets what the command prints; None shows it
    completes: whether the command completes a file that is there
    """

    name: str
    arguments: tuple[str, ...]
    others: tuple[str, ...]
    reads: tuple[Path | str, ...]
    writes: tuple[Path, ...]
    stdout: Path | None = None
    completes: bool = False

    @property
    def text(self) -> str:
        """The command as a shell takes it."""
        words = shlex.join(["dynquant", *self.arguments, *self.others])
        return f"{words} > {shlex.quote(str(self.stdout))}" if self.stdout else words


def stages_of(asked: Asked) -> list[Stage]:
    """Return the stages in their order."""
    made = _Stages(asked)
    found = [made.importance()] if asked.makes_importance else []
    if asked.makes_sensitivity:
        found.append(made.sensitivity())
    if "solve" not in asked.skip:
        found.append(made.solve())
    if asked.projector:
        found.append(made.projector(asked.projector))
    found.append(made.convert())
    if asked.texts and "evaluate" not in asked.skip:
        found.append(made.evaluate())
    if "report" not in asked.skip:
        found.append(made.report())
    return found


class _Stages:
    """Makes each stage; options are in the order of `--help`."""

    def __init__(self, asked: Asked) -> None:
        self.asked, self.its = asked, asked.files
        self._model = (asked.model, *asked.inputs)
        self._tuned = (*_each("--text", asked.tuning), "--tokens", str(asked.tokens))
        self._rules = _option("--recipe", asked.recipe)
        imatrix, moments = asked.imatrix, asked.moments
        if asked.makes_importance:
            imatrix = self.its.imatrix
            moments = None if "feedback" in asked.skip else self.its.moments
        self._importance = (*_option("--imatrix", imatrix), *_option("--moments", moments))
        self._read = (MODEL, *(file for file in (imatrix, moments) if file))

    def importance(self) -> Stage:
        """Return the stage that runs the model over texts."""
        asked, moments = self.asked, "feedback" not in self.asked.skip
        return self._stage(
            "importance",
            "imatrix",
            asked.model,
            *_each("--text", asked.calibration),
            *_option("--chunks", asked.chunks),
            *_option("--device", asked.device),
            *(("--moments", "layers") if moments else ()),
            *("-o", str(self.its.imatrix)),
            reads=(MODEL, *asked.calibration),
            writes=(self.its.imatrix, *((self.its.moments,) if moments else ())),
            others=_option("--memory", asked.memory),
        )

    def sensitivity(self) -> Stage:
        """Return the stage that measures what types do, and what that costs."""
        more = ("--measure", *self.asked.size, *self._tuned) if self.asked.measures else ()
        return self._stage(
            "sensitivity",
            "sensitivity",
            *(*self._posed, *more),
            *("-o", str(self.its.sensitivity)),
            reads=(
                *(*self._read, *self.asked.recipe_files),
                *(self.asked.tuning if self.asked.measures else ()),
            ),
            writes=(self.its.sensitivity,),
            completes=True,
        )

    def solve(self) -> Stage:
        """Return the stage that chooses the types."""
        return self._stage(
            "solve",
            "solve",
            *(*self._posed, *self._sensitivity, *self.asked.size),
            *(("--verify", *self._tuned) if self.asked.verifies else ()),
            *("-o", str(self.its.recipe)),
            reads=(*self._solved, *(self.asked.tuning if self.asked.verifies else ())),
            writes=(self.its.recipe,),
        )

    def projector(self, wanted: Projector) -> Stage:
        """Return the stage that writes the projector, which all sizes share."""
        return self._stage(
            "projector",
            "convert",
            self.asked.model,
            *("--recipe", wanted.recipe, "--only-mmproj"),
            *(*_option("--effort", self.asked.effort), "-o", str(wanted.out)),
            reads=(MODEL, *wanted.recipe_files),
            writes=(wanted.out, manifest_path(wanted.out)),
        )

    def convert(self) -> Stage:
        """Return the stage that writes the GGUF."""
        return self._stage(
            "convert",
            "convert",
            *(*self._by_recipe, "-o", str(self.asked.out)),
            reads=(*self._read, self.its.recipe),
            writes=(self.asked.out, self.its.manifest),
        )

    def evaluate(self) -> Stage:
        """Return the stage that compares the GGUF with the model."""
        asked = self.asked
        return self._stage(
            "evaluate",
            "eval",
            *(_argument(asked.out), "--reference", asked.model),
            *(*_each("--text", asked.texts), "--tokens", str(asked.tokens)),
            *("--n-prompts", str(asked.n_prompts)),
            *("--json", "--html", str(self.its.evaluation_page)),
            reads=(MODEL, asked.out, *asked.texts),
            writes=(self.its.evaluation, self.its.evaluation_page),
            stdout=self.its.evaluation,
        )

    def report(self) -> Stage:
        """Return the stage that draws the plan; without the budget if the recipe may be another."""
        budget = (*self._posed, *self._sensitivity, *self.asked.size)
        return self._stage(
            "report",
            "plan",
            *(self._by_recipe if self.asked.verifies or "solve" in self.asked.skip else budget),
            *("--json", "--html", str(self.its.plan_page)),
            reads=(*self._solved, self.its.recipe),
            writes=(self.its.plan, self.its.plan_page),
            stdout=self.its.plan,
        )

    @property
    def _posed(self) -> tuple[str, ...]:
        return (*self._model, *self._rules, *self.asked.encoding, *self._importance)

    @property
    def _by_recipe(self) -> tuple[str, ...]:
        recipe = ("--recipe", str(self.its.recipe))
        return (*self._model, *recipe, *self.asked.encoding, *self._importance)

    @property
    def _sensitivity(self) -> tuple[str, ...]:
        its = self.its.sensitivity
        return ("--sensitivity", str(its)) if self.asked.makes_sensitivity else ()

    @property
    def _solved(self) -> tuple[Path | str, ...]:
        """What solving reads, besides texts."""
        measured = (self.its.sensitivity,) if self.asked.makes_sensitivity else ()
        return (*self._read, *self.asked.recipe_files, *measured)

    def _stage(
        self,
        name: str,
        *arguments: str,
        reads: tuple[Path | str, ...],
        writes: tuple[Path, ...],
        others: tuple[str, ...] = (),
        stdout: Path | None = None,
        completes: bool = False,
    ) -> Stage:
        others = (*others, *_option("--threads", self.asked.threads))
        return Stage(name, arguments, others, reads, writes, stdout, completes)


def _argument(path: Path) -> str:
    """Return a path as a command takes it, where a dash would begin an option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def _option(name: str, value: object) -> tuple[str, ...]:
    return () if value is None else (name, str(value))


def _each(option: str, values: Iterable[Path | str]) -> tuple[str, ...]:
    return tuple(word for value in values for word in _option(option, value))
