"""Everything of `dynquant auto` that can fail at once: inputs, the size, files in the way, disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from dynquant.auto.forecast import CONTEXT, Expected, Job, forecast, products_per_second
from dynquant.auto.record import Journal, Reason, State, model_fact
from dynquant.auto.stages import Asked, Stage, stages_of
from dynquant.budget.goal import goal_of
from dynquant.budget.solve import asked_of, opened
from dynquant.calibrate import extra as calibrate_extra
from dynquant.conversion.disk import allocated_bytes, free_bytes
from dynquant.conversion.output import part_path
from dynquant.conversion.work import work_of
from dynquant.conversion.write import default_threads
from dynquant.errors import CalibrationError, ConvertError, Problems
from dynquant.evaluate import extra as evaluate_extra
from dynquant.figures import size_text
from dynquant.importance.equal import write_equal
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.inputs import Inputs, read_inputs
from dynquant.plan.make import make_plan
from dynquant.texts import Text, read_texts


@dataclass(frozen=True)
class Ready:
    """Stages that can be carried out.

    states, expected: by the name of a stage
    warnings: what is left out
    """

    stages: list[Stage]
    states: Mapping[str, State]
    expected: Mapping[str, Expected]
    journal: Journal
    warnings: tuple[str, ...]


def prepare(asked: Asked, *, recipe: str, force: bool) -> Ready:
    """Check what is asked for, and return the stages, with what each takes.

    recipe: asked.recipe, or what commands take without it
    force:  whether files in the way of stages are replaced

    Raises a kind of DynquantError with all faults.
    """
    asked, warnings = _left_out(asked)
    problems = Problems()
    if asked.tuning or asked.texts:
        problems.attempt(evaluate_extra.check_extra)
    read = {
        option: problems.attempt(lambda paths=paths: read_texts(paths, CalibrationError))
        for option, paths in ({**asked.before, "--text": asked.texts}).items()
    }
    problems.add(*_text_problems({option: texts or () for option, texts in read.items()}))
    problems.add(*_folders(asked))
    if "solve" in asked.skip and not asked.files.recipe.is_file():
        problems.add(f"{asked.files.recipe}: is missing; without --skip solve it is made")
    problems.raise_any()
    inputs = read_inputs(
        asked.model,
        recipe,
        asked.imatrix,
        moments=asked.moments,
        pre=asked.pre,
        mla=asked.mla,
        leave_out=asked.leave_out,
    )
    asked = replace(asked, recipe_files=tuple(map(Path, inputs.recipe.files)))
    make = partial(
        make_plan,
        inputs.model,
        imatrix=_importance(inputs, asked),
        moments=inputs.moments,
        effort=asked.effort,
        allow_requantize=asked.allow_requantize,
        grids=inputs.grids,
    )
    target = asked_of(inputs, asked.target)
    plan, groups = opened(inputs.recipe, target, make)
    work = work_of(plan)
    if len(work.layout.files) > 1:
        raise ConvertError(
            f"{inputs.recipe.path}: cuts the output into shards, which `auto` does not; remove that"
            " from the recipe, and use `dynquant split` on the output"
        )
    sources = [file.path for file in work.source_files]
    if asked.projector:
        sources = [*dict.fromkeys((*sources, *asked.projector.sources))]
    stages = stages_of(asked)
    problems.add(*_taken(asked, stages, sources))
    problems.raise_any(ConvertError)
    journal = Journal(asked.files.record, asked.model, model_fact(sources))
    states = journal.states(stages)
    limit = min(goal_of(plan, target).limit, work.layout.n_bytes)
    threads = asked.threads or default_threads()
    job = Job(asked, inputs.model, plan, groups, limit, threads, products_per_second())
    expected = forecast(job, stages)
    if not force:
        problems.add(*_in_way(stages, states))
    problems.add(*_disk(asked, stages, states, expected))
    problems.raise_any(ConvertError)
    return Ready(stages, states, expected, journal, warnings)


def _left_out(asked: Asked) -> tuple[Asked, tuple[str, ...]]:
    """Leave out importance if what runs models is not installed."""
    warnings: list[str] = []
    if asked.makes_importance:
        try:
            calibrate_extra.check_extra()
        except CalibrationError as e:
            asked = replace(asked, skip=asked.skip | {"importance"})
            warnings.append(f"importance is left out: {e}; or give a file with --imatrix")
    if not asked.texts and "evaluate" not in asked.skip:
        warnings.append("the output is not evaluated: give --text FILE, or --skip evaluate")
    return asked, tuple(warnings)


def _text_problems(read: Mapping[str, Sequence[Text]]) -> Iterator[str]:
    """Yield texts that are too short, and those of --text that another stage reads."""
    for option, texts in read.items():
        for text in texts:
            if len(text.content) < CONTEXT:
                yield (
                    f"{text.name}: has {len(text.content)} bytes, too few for a window of"
                    f" {CONTEXT} tokens ({option}); give a longer text"
                )
    used = {t.sha256: option for option, ts in read.items() if option != "--text" for t in ts}
    for text in read["--text"]:
        if option := used.get(text.sha256):
            yield (
                f"{text.name}: is given as --text and as {option}; evaluate on a text that no other"
                " stage reads"
            )


def _folders(asked: Asked) -> Iterator[str]:
    for folder in dict.fromkeys((asked.out.parent, asked.folder)):
        if not folder.is_dir():
            yield f"{folder}: is not a folder; create it first, or name another one"


def _importance(inputs: Inputs, asked: Asked) -> Imatrix | None:
    """Return the imatrix, or one that has the tensors of the one that will be made."""
    if not asked.makes_importance:
        return inputs.imatrix
    with TemporaryDirectory() as folder:
        path = Path(folder) / "equal.gguf"
        write_equal(inputs.model, path)
        return read_imatrix(path)


def _taken(asked: Asked, stages: Sequence[Stage], sources: Iterable[Path]) -> Iterator[str]:
    """Yield a problem for each output that is a folder, another output, or a file that is read."""
    given = (asked.imatrix, asked.moments, *asked.recipe_files, *asked.texts, *sources)
    read = {p.resolve() for p in (*given, *asked.calibration, *asked.tuning) if p}
    seen: set[Path] = set()
    for path in (path for stage in stages for path in stage.writes):
        if path.is_dir():
            yield f"{path}: is a folder; name a file"
        elif path.resolve() in read:
            yield f"{path}: is a file that this command reads; name another output"
        elif path.resolve() in seen:
            yield f"{path}: is the name of two files that this command makes; name another output"
        seen.add(path.resolve())


_REASONS: Mapping[Reason, str] = {
    "edited": "was changed since this command wrote it; --force replaces it",
    "other": "was made with other options, or by another version; replace it with --force, or name"
    " another output or --folder",
    "unknown": "exists, and is not recorded as made by this command; replace it with --force, or"
    " name another output or --folder",
}


def _in_way(stages: Iterable[Stage], states: Mapping[str, State]) -> Iterator[str]:
    for stage in stages:
        for path, reason in states[stage.name].in_way.items():
            is_edited = stage.name == "solve" and reason == "edited"
            more = ", --skip solve converts with it" if is_edited else ""
            yield f"{path}: {_REASONS[reason]}{more}"


def _disk(
    asked: Asked,
    stages: list[Stage],
    states: Mapping[str, State],
    expected: Mapping[str, Expected],
) -> Iterator[str]:
    """Yield a problem for a disk without room for the files of the stages that are not done."""
    needed: dict[int, int] = {}
    places: dict[int, Path] = {}
    for stage in stages:
        if states[stage.name].is_done:
            continue
        folder = stage.writes[0].parent
        device = folder.stat().st_dev
        places.setdefault(device, folder)
        begun = sum(allocated_bytes(part_path(path)) for path in stage.writes)
        needed[device] = needed.get(device, 0) + max(0, expected[stage.name].n_bytes - begun)
    for device, n_bytes in needed.items():
        free = free_bytes(places[device])
        if free < n_bytes:
            yield (
                f"{places[device]}: the stages leave about {size_text(n_bytes)}, but the disk has"
                f" {size_text(free)} free"
            )
    cached = sum(expected[s.name].cached for s in stages if not states[s.name].is_done)
    if cached and (asked.texts or asked.tuning):
        from dynquant.evaluate.settings import default_cache

        place = default_cache()
        while not place.exists():
            place = place.parent
        if (free := free_bytes(place)) < cached:
            yield (
                f"{place}: the model's reference takes {size_text(cached)}, but the disk has"
                f" {size_text(free)} free; leave evaluation out (--skip evaluate, no --tune)"
            )
