"""The Python API: plans that can be written and saved, and one call for a whole conversion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dynquant.arch.base import Model
from dynquant.arch.load import Fetch, Mla
from dynquant.budget import solve
from dynquant.budget.ladder import (
    Reading,
    named_size,
    output_of,
    rungs_of_recipes,
    rungs_of_sizes,
)
from dynquant.budget.sensitivity import read_sensitivity
from dynquant.budget.solve import Solved
from dynquant.checkpoint.gguf import GGUFFile, read_gguf
from dynquant.checkpoint.remote.open_gguf import gguf_elsewhere
from dynquant.conversion.engine import Progress
from dynquant.conversion.ladder.run import convert_ladder
from dynquant.conversion.manifest import Manifest, find_manifest
from dynquant.conversion.manifest import read_manifest as read_manifest_file
from dynquant.conversion.parts.join import join_parts
from dynquant.conversion.parts.run import PartResult, convert_part
from dynquant.conversion.parts.share import Part
from dynquant.conversion.result import Result
from dynquant.conversion.reuse.old import read_old
from dynquant.conversion.second_look import SAMPLES
from dynquant.conversion.source_hashes import SourceHashes
from dynquant.conversion.write import convert_plan, default_threads
from dynquant.errors import PlanError
from dynquant.importance.imatrix import Imatrix, read_imatrix
from dynquant.importance.moments import Moments, read_moments
from dynquant.importance.report import ImatrixAudit
from dynquant.inputs import load_plan as load_saved_plan
from dynquant.inputs import read_audit, read_inputs
from dynquant.keys import KeyValue
from dynquant.plan import make
from dynquant.plan.plan import Plan as PlanData
from dynquant.plan.saved import write_plan
from dynquant.plan.shards import Split
from dynquant.quants.search import Effort
from dynquant.quants.table import ALL, QuantType
from dynquant.recipe.loader import load_recipe
from dynquant.recipe.rules import Recipe
from dynquant.recipe.target import NO_TARGET, Target
from dynquant.recipe.values import size
from dynquant.report.documents import plan_json
from dynquant.report.notebook import tqdm_progress

if TYPE_CHECKING:
    from dynquant.evaluate.results import Evaluation
    from dynquant.publishing.publish import Published

ProgressOption = Callable[[Progress], None] | Literal["tqdm"] | None
ManifestOption = SourceHashes | Literal[False]


class Plan(PlanData):
    """A plan that can be written: every tensor's type, size and place, and every key."""

    @classmethod
    def _of(cls, made: PlanData) -> Plan:
        return cls(**{f.name: getattr(made, f.name) for f in fields(made)})

    def write(
        self,
        out: str | Path,
        *,
        threads: int | None = None,
        force: bool = False,
        restart: bool = False,
        manifest: ManifestOption = "auto",
        verify_sample: int = SAMPLES,
        progress: ProgressOption = None,
        reuse: str | Path | None = None,
    ) -> Result:
        """Write the plan's files; see `convert` for the options.

        Raises a kind of DynquantError for everything that the caller can fix.
        """
        return convert_plan(
            self,
            Path(out),
            threads=threads,
            force=force,
            restart=restart,
            manifest=manifest or None,
            verify_sample=verify_sample,
            progress=tqdm_progress() if progress == "tqdm" else progress,
            reuse=read_old(Path(reuse)) if reuse is not None else None,
        )

    def write_part(
        self,
        out: str | Path,
        part: str,
        *,
        separate: bool = False,
        threads: int | None = None,
        force: bool = False,
        restart: bool = False,
        source_hashes: SourceHashes = "auto",
        progress: ProgressOption = None,
    ) -> PartResult:
        """Write the rows of one part, such as "3/16"; `join` makes the output of all parts.

        separate: write into a separate file, for machines without a shared disk

        Raises ValueError for text that is no part, and a kind of DynquantError for everything that
        the caller can fix.
        """
        return convert_part(
            self,
            Path(out),
            Part.parse(part),
            separate=separate,
            threads=threads,
            force=force,
            restart=restart,
            source_hashes=source_hashes,
            progress=tqdm_progress() if progress == "tqdm" else progress,
        )

    def join(
        self,
        out: str | Path,
        *,
        threads: int | None = None,
        force: bool = False,
        manifest: ManifestOption = "auto",
        verify_sample: int = SAMPLES,
        progress: ProgressOption = None,
    ) -> Result | None:
        """Make the output of the parts beside it, and remove their files.

        Returns None if an earlier join has finished it. Raises ConvertError with all parts that
        are missing, incomplete or of another plan; otherwise as `write`.
        """
        return join_parts(
            self,
            Path(out),
            threads=threads,
            force=force,
            manifest=manifest or None,
            verify_sample=verify_sample,
            progress=tqdm_progress() if progress == "tqdm" else progress,
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `dynquant plan --json` prints."""
        return plan_json(self)

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the plan to a file that `load_plan` and `dynquant convert --plan` read.

        Raises PlanError for a draft, and if the file exists without `force` or cannot be written.
        """
        write_plan(self, Path(path), force=force)


def load_imatrix(path: str | Path) -> Imatrix:
    """Read an imatrix, llama.cpp's file of activations, in either of its formats.

    Raises ImportanceError if the file is damaged or its values are not valid.
    """
    return read_imatrix(Path(path))


def load_moments(path: str | Path) -> Moments:
    """Read the header of second moments, which `dynquant imatrix --moments` writes.

    Raises ImportanceError if the file cannot be read, or is not one of moments.
    """
    return read_moments(Path(path))


def audit_imatrix(
    imatrix: str | Path | Imatrix,
    model: str | Path | Model,
    recipe: str | Path | Mapping[str, Any] | Recipe | None = None,
) -> ImatrixAudit:
    """Return what an imatrix has of each tensor of a model, and what a conversion does with it.

    recipe: for what it does about experts with few tokens; None for the default

    Raises a kind of DynquantError with the faults of all of them, ImportanceError for an imatrix
    of another model.
    """
    return read_audit(imatrix, model, recipe)


def make_plan(
    model: str | Path | Model,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    *,
    imatrix: str | Path | Imatrix | None = None,
    moments: str | Path | Moments | None = None,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    pre: str | None = None,
    mla: Mla | None = None,
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
    fetch: Fetch = "download",
    target: Target | str | int | None = None,
    sensitivity: str | Path | None = None,
    threads: int | None = None,
    draft: bool = False,
) -> Plan:
    """Apply a recipe to a model; of its weights, a few rows of each tensor are read.

    threads: for the errors of types, if the recipe leaves types open
    draft:   return a plan even if the tokenizer or importance is missing; it cannot be written, and
             no types may be open

    The other arguments are those of `convert`.

    Raises a kind of DynquantError with all faults of model, recipe, imatrix and moments.
    """
    found = read_inputs(
        model,
        recipe,
        imatrix,
        moments=moments,
        pre=pre,
        mla=mla,
        needs_vocab=not draft,
        leave_out=leave_out,
        merge_adapter=merge_adapter,
        base=base,
        fetch=fetch,
    )
    if target is not None or (found.recipe.has_choice and not draft):
        solved = solve_recipe(
            found.model,
            target,
            recipe=found.recipe,
            imatrix=found.imatrix,
            moments=found.moments,
            sensitivity=sensitivity,
            effort=effort,
            allow_requantize=allow_requantize,
            set_keys=set_keys,
            split=split,
            threads=threads,
        )
        return Plan._of(solved.plan)  # pyright: ignore[reportPrivateUsage]
    made = make.make_plan(
        found.model,
        found.recipe,
        imatrix=found.imatrix,
        moments=found.moments,
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=set_keys,
        split=split,
        draft=draft,
        grids=found.grids,
    )
    return Plan._of(made)  # pyright: ignore[reportPrivateUsage]


def solve_recipe(
    model: str | Path | Model,
    target: Target | str | int | None = None,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe = "budget",
    imatrix: str | Path | Imatrix | None = None,
    moments: str | Path | Moments | None = None,
    sensitivity: str | Path | None = None,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    pre: str | None = None,
    mla: Mla | None = None,
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Solved:
    """Return the recipe that is expected to lose least for a size.

    target:      bytes, a size such as "24GB", or a `Target`; None takes the recipe's
    recipe:      one with `choose`: its other rules hold
    sensitivity: a file of `dynquant sensitivity`; None measures the errors of types, and takes what
                 they cost from trained models
    progress:    called with the tensors that are measured, and all

    The other arguments are those of `convert`.

    Raises a kind of DynquantError with all faults of the inputs, PlanError if the rules allow no
    file of that size.
    """
    if not isinstance(target, Target):
        target = Target(size(str(target))) if target is not None else NO_TARGET
    known = read_sensitivity(Path(sensitivity)) if sensitivity is not None else None
    inputs = read_inputs(
        model,
        recipe,
        imatrix,
        moments=moments,
        pre=pre,
        mla=mla,
        leave_out=leave_out,
        merge_adapter=merge_adapter,
    )
    return solve.solve_recipe(
        inputs,
        target,
        threads=threads or default_threads(),
        progress=progress,
        known=known,
        known_as=str(sensitivity),
        effort=effort,
        allow_requantize=allow_requantize,
        set_keys=set_keys,
        split=split,
    )


def evaluate_files(
    files: Sequence[str | Path],
    reference: str | Path,
    *,
    texts: Sequence[str | Path],
    context: int = 512,
    tokens: int = 250_000,
    prompts: Sequence[str] = (),
    n_predict: int = 256,
    chat: bool = True,
    threads: int | None = None,
    gpu_layers: int = 0,
    cache: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Evaluation:
    """Compare GGUFs with their reference: KL divergence, perplexity and loops, by llama.cpp.

    files:     GGUFs; of a model in shards, any one
    reference: a GGUF, a checkpoint, or the stored reference of an earlier call
    texts:     files to predict, which the model was not trained on; each is a domain
    context:   tokens of a window; those in its second half are scored
    tokens:    tokens of all windows, at most
    prompts:   texts to continue with the most likely tokens; none skips this
    n_predict: tokens of an answer, at most
    chat:      whether prompts are rendered by the reference's chat template, if it has one
    gpu_layers: layers to compute on a GPU, if the installed xllamacpp supports it
    cache:     folder for references and results, from which an interrupted call resumes; None uses
               the user's cache folder
    progress:  called with a step, and how much of how much of it is done

    Raises EvalError if the extra `eval` is not installed, and a kind of DynquantError for
    everything else that the caller can fix.
    """
    from dynquant.evaluate.extra import check_extra

    check_extra()
    from dynquant.evaluate.evaluation import evaluate
    from dynquant.evaluate.settings import Settings, default_cache

    settings = Settings(
        cache=Path(cache) if cache else default_cache(),
        texts=tuple(map(Path, texts)),
        context=context,
        tokens=tokens,
        prompts=tuple(prompts),
        n_predict=n_predict,
        chat=chat,
        threads=threads,
        gpu_layers=gpu_layers,
    )
    return evaluate([Path(file) for file in files], str(reference), settings, progress=progress)


def load_plan(
    path: str | Path,
    model: str | Path | Model,
    *,
    imatrix: str | Path | Imatrix | None = None,
    moments: str | Path | Moments | None = None,
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
    fetch: Fetch = "download",
) -> Plan:
    """Read a plan that `Plan.save` or `dynquant plan --save` made, for the same model.

    merge_adapter, base, fetch: as in `convert`

    Raises PlanError, with every difference by name, if it does not fit the model, the
    imatrix and the moments.
    """
    bound = load_saved_plan(path, model, imatrix, moments, merge_adapter, base, fetch)
    return Plan._of(bound)  # pyright: ignore[reportPrivateUsage]


def convert(
    model: str | Path | Model,
    out: str | Path,
    *,
    recipe: str | Path | Mapping[str, Any] | Recipe,
    imatrix: str | Path | Imatrix | None = None,
    moments: str | Path | Moments | None = None,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    force: bool = False,
    pre: str | None = None,
    mla: Mla | None = None,
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    base: str | Path | None = None,
    fetch: Fetch = "download",
    target: Target | str | int | None = None,
    sensitivity: str | Path | None = None,
    restart: bool = False,
    manifest: ManifestOption = "auto",
    verify_sample: int = SAMPLES,
    progress: ProgressOption = None,
    reuse: str | Path | None = None,
) -> Result:
    """Convert a checkpoint to a GGUF file by a recipe.

    model:    what `load_model` takes, or what it returned
    recipe:   the name of a shipped recipe, a YAML file, or what `load_recipe` returned
    imatrix:  an imatrix file of the model, or what `load_imatrix` returned; None weights all input
              channels equally
    moments:  the second moments that `dynquant imatrix --moments` wrote beside the imatrix, or what
              `load_moments` returned, for error feedback; None encodes without it
    effort:   how much the encoders search: "fast", "normal" or "best"; None leaves it to the recipe
    allow_requantize: allow tensors that are quantized in a GGUF to get another type
    threads:  worker threads; None uses one for each CPU; the output does not depend on it
    force:    replace `out` if it exists
    pre:      llama.cpp's name of the pre-tokenizer, if the tokenizer's rules are not recognized
    mla:      how latent attention is stored, as in `load_model`
    set_keys: keys to change or add, as `--set KEY=VALUE` does
    split:    how to cut the output into shards; None leaves it to the recipe
    leave_out: globs of stored names to leave out, for tensors that are no part of the model
    merge_adapter: PEFT adapters to merge into the weights, in order: folders or hf:// names
    base:     makes `model` a PEFT adapter of this model, which is converted for llama.cpp
    fetch:    how weights elsewhere are read: "download" fetches the whole model first, "shards" one
              file after the other and deletes each, "stream" requests ranges of rows
    target:   the size that rules with `choose` fill, as in `solve_recipe`
    sensitivity: a file of `dynquant sensitivity` for it
    restart:  start over instead of resuming an interrupted run
    manifest: the sha256 of source files in the manifest beside the output: "auto" takes the Hub's
              own if they are known and computes the others, "read" computes all, "none" has none;
              False writes no manifest
    verify_sample: ranges of rows that are encoded again at the end and compared; 0 for none
    progress: called with bytes and weights done, in this thread; "tqdm" draws a bar
    reuse:    an earlier output with its manifest: tensors that would have the same bytes are copied
              from it; `Result.reused` says which

    Raises a kind of DynquantError for everything that the caller can fix.
    """
    made = make_plan(
        model,
        recipe,
        imatrix=imatrix,
        moments=moments,
        effort=effort,
        allow_requantize=allow_requantize,
        pre=pre,
        mla=mla,
        set_keys=set_keys,
        split=split,
        leave_out=leave_out,
        merge_adapter=merge_adapter,
        base=base,
        fetch=fetch,
        target=target,
        sensitivity=sensitivity,
        threads=threads,
    )
    return made.write(
        out,
        threads=threads,
        force=force,
        restart=restart,
        manifest=manifest,
        verify_sample=verify_sample,
        progress=progress,
        reuse=reuse,
    )


def ladder(
    model: str | Path | Model,
    out: str | Path,
    *,
    recipes: Sequence[str | Path | Mapping[str, Any] | Recipe] = (),
    sizes: Sequence[Target | str | int] = (),
    recipe: str | Path | Mapping[str, Any] | Recipe = "budget",
    imatrix: str | Path | Imatrix | None = None,
    moments: str | Path | Moments | None = None,
    effort: Effort | None = None,
    allow_requantize: bool = False,
    threads: int | None = None,
    force: bool = False,
    pre: str | None = None,
    mla: Mla | None = None,
    set_keys: Mapping[str, KeyValue | str] | None = None,
    split: Split | None = None,
    leave_out: Sequence[str] = (),
    merge_adapter: Sequence[str | Path] = (),
    sensitivity: str | Path | None = None,
    restart: bool = False,
    manifest: ManifestOption = "auto",
    verify_sample: int = SAMPLES,
    progress: ProgressOption = None,
) -> list[Result]:
    """Convert a checkpoint to several GGUF files in one pass over its weights.

    out:     a folder, for MODEL-RECIPE.gguf or MODEL-SIZE.gguf; or a name with {} in place of the
             recipe or the size
    recipes: a file for each
    sizes:   a file for each, instead of recipes: what `solve_recipe` takes as a target
    recipe:  for sizes, one with `choose`

    The other arguments are those of `convert`; the bytes of each file are, too. Returns the results
    in the order of the recipes or sizes. Outputs that a run of the same ladder completed are kept,
    and those that it began are resumed.

    Raises a kind of DynquantError for everything that the caller can fix, with the problems of all
    files; nothing is written then.
    """
    if bool(recipes) == bool(sizes):
        raise PlanError("a ladder is of recipes or of sizes; give one of both")
    reading = Reading(model, imatrix, moments, pre, mla, leave_out, merge_adapter)
    options: dict[str, Any] = {
        "effort": effort,
        "allow_requantize": allow_requantize,
        "set_keys": set_keys,
        "split": split,
    }
    if recipes:
        rungs = rungs_of_recipes(reading, recipes, options)
    else:
        rungs = rungs_of_sizes(
            reading,
            [named_size(size) for size in sizes],
            recipe,
            options,
            threads=threads or default_threads(),
            sensitivity=Path(sensitivity) if sensitivity is not None else None,
        )
    return convert_ladder(
        [(rung.plan, output_of(out, model, rung)) for rung in rungs],
        threads=threads,
        force=force,
        restart=restart,
        manifest=manifest or None,
        verify_sample=verify_sample,
        progress=tqdm_progress() if progress == "tqdm" else progress,
    )


def inspect(path: str | Path) -> GGUFFile:
    """Return the keys and the tensor table of a GGUF; raise CheckpointError if it is damaged."""
    return read_gguf(gguf_elsewhere(str(path)) or Path(path))


def read_manifest(path: str | Path) -> Manifest:
    """Return the manifest of an output, given the GGUF, one of its shards, or the manifest.

    Raises ManifestError if it is missing or not valid.
    """
    return read_manifest_file(find_manifest(Path(path)))


def types() -> Mapping[str, QuantType]:
    """Return the quant types that recipes can name, by name."""
    return dict(ALL)


__all__ = [
    "Plan",
    "convert",
    "inspect",
    "ladder",
    "load_imatrix",
    "load_moments",
    "load_plan",
    "load_recipe",
    "make_plan",
    "read_manifest",
    "solve_recipe",
    "types",
]


def publish(
    folder: str | Path,
    repository: str,
    *,
    private: bool = False,
    force: bool = False,
    dry_run: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Published:
    """Upload a release folder to the Hugging Face Hub; see `dynquant publish`.

    folder:     a folder that `dynquant release` wrote
    repository: `hf://ORG/NAME` or `hf://ORG/NAME@BRANCH`; it is created if it does not exist
    progress:   called with a message for each GGUF that is uploaded

    Raises PublishError for everything that the caller can fix; nothing in the repository is
    replaced without `force`.
    """
    from dynquant.publishing.publish import publish_release
    from dynquant.publishing.target import repository_name

    return publish_release(
        Path(folder),
        repository_name(repository),
        private=private,
        force=force,
        dry_run=dry_run,
        say=progress,
    )
