"""`dynquant eval`: how much a file loses against its reference."""

from __future__ import annotations

import math
import re
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from dynquant.cli import console
from dynquant.cli.options import JsonOption, QuietOption, ThreadsOption
from dynquant.cli.steps import counting, successive


def _schema(wanted: bool) -> None:
    if wanted:
        from dynquant.evaluate.results import evaluation_schema

        console.write_json(evaluation_schema())
        raise typer.Exit


def evaluate(
    given: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE.gguf...",
            help="GGUFs to compare with the reference; of a model in shards, any one of them.",
            show_default=False,
        ),
    ],
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="What the files were made from: a GGUF in F32, BF16, F16 or Q8_0; a checkpoint,"
            " which is converted without any rounding; or the stored reference of an earlier run.",
            show_default=False,
        ),
    ],
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="Text to predict, which the model was not trained on. Repeat it for several"
            " domains, which are also reported separately.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int,
        typer.Option(
            "--context",
            "-c",
            min=8,
            metavar="N",
            help="Tokens of a window; those in its second half are scored.",
        ),
    ] = 512,
    tokens: Annotated[
        str,
        typer.Option(
            "--tokens",
            metavar="N",
            help="Tokens of all windows, at most: 250k, 2M; shared equally among several texts.",
        ),
    ] = "250k",
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            help="Prompts to continue freely, one on each line; default: a list of 300 that is"
            " part of dynquant.",
            show_default=False,
        ),
    ] = None,
    n_prompts: Annotated[
        int,
        typer.Option(
            "--n-prompts",
            min=0,
            metavar="N",
            help="Prompts to use, from the first; 0 skips free-running generation.",
        ),
    ] = 64,
    n_predict: Annotated[
        int,
        typer.Option("--n-predict", "-n", min=1, metavar="N", help="Tokens of an answer, at most."),
    ] = 256,
    temperature: Annotated[
        float | None,
        typer.Option(
            "--temp",
            min=0.0,
            metavar="T",
            help="Continue the prompts a second time, sampled at this temperature, besides the most"
            " likely tokens.",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[
        int,
        typer.Option("--top-k", min=0, max=2**31 - 1, metavar="K", help="With --temp; 0 is off."),
    ] = 40,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.0, max=1.0, metavar="P", help="With --temp; 1 is off.")
    ] = 0.95,
    min_p: Annotated[
        float, typer.Option("--min-p", min=0.0, max=1.0, metavar="P", help="With --temp; 0 is off.")
    ] = 0.05,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="With --temp: of the random numbers.")
    ] = 1,
    chat: Annotated[
        bool,
        typer.Option(
            "--chat/--no-chat",
            help="Put the prompts into the reference's chat template, if it has one.",
        ),
    ] = True,
    max_kl: Annotated[
        float | None,
        typer.Option(
            "--max-kl",
            min=0.0,
            metavar="KL",
            help="Exit with code 3 if the mean KLD of a file is larger.",
            show_default=False,
        ),
    ] = None,
    max_ppl_ratio: Annotated[
        float | None,
        typer.Option(
            "--max-ppl-ratio",
            min=0.0,
            metavar="R",
            help="Exit with code 3 if a file's perplexity is more than R times the reference's.",
            show_default=False,
        ),
    ] = None,
    min_same_top: Annotated[
        float | None,
        typer.Option(
            "--min-same-top",
            min=0.0,
            max=100.0,
            metavar="PERCENT",
            help="Exit with code 3 if a file chooses the reference's token less often.",
            show_default=False,
        ),
    ] = None,
    no_loops: Annotated[
        bool,
        typer.Option(
            "--no-loops",
            help="Exit with code 3 if a file's answers loop more often than the reference's.",
        ),
    ] = False,
    threads: ThreadsOption = None,
    gpu_layers: Annotated[
        int,
        typer.Option(
            "--gpu-layers",
            "-ngl",
            min=0,
            metavar="N",
            help="Layers to compute on a GPU, if the installed xllamacpp supports it.",
        ),
    ] = 0,
    tail: Annotated[
        float,
        typer.Option(
            "--tail",
            min=0.0,
            max=0.5,
            metavar="P",
            help="Probability of the unlikely tokens of which the reference keeps a random sample"
            " only; 0 keeps all and needs more space.",
        ),
    ] = 2.0**-6,
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache",
            metavar="DIR",
            help="Folder for references and results, from which an interrupted run resumes;"
            " default: dynquant/eval in the user's cache folder.",
            show_default=False,
        ),
    ] = None,
    json: JsonOption = False,
    markdown: Annotated[
        Path | None,
        typer.Option(
            "--markdown",
            metavar="OUT.md",
            help="Write the tables in Markdown, for a model card.",
            show_default=False,
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="OUT.html",
            help="Write a self-contained page with charts.",
            show_default=False,
        ),
    ] = None,
    schema: Annotated[  # noqa: ARG001 its callback prints
        bool,
        typer.Option(
            "--schema",
            callback=_schema,
            is_eager=True,
            help="Print the JSON Schema of the document that --json prints.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
    quiet: QuietOption = False,
) -> None:
    """Compare GGUFs with their reference: KL divergence, perplexity, and loops, by llama.cpp."""
    n_tokens = _count(tokens)
    _check_numbers(
        {
            "--temp": temperature,
            "--top-p": top_p,
            "--min-p": min_p,
            "--tail": tail,
            "--max-kl": max_kl,
            "--max-ppl-ratio": max_ppl_ratio,
            "--min-same-top": min_same_top,
        }
    )
    from dynquant.evaluate.extra import check_extra

    check_extra()
    from dynquant.cli import evaluate_checks as checks

    checks.check_sampler(given, temperature)
    checks.check_share(min_same_top)
    from dynquant.cli.text_files import check_text, write_text
    from dynquant.errors import GateError, Problems
    from dynquant.evaluate.evaluation import evaluate as evaluate_files
    from dynquant.evaluate.limits import Limits, exceeded
    from dynquant.evaluate.prompts import read_prompts, shipped_prompts
    from dynquant.evaluate.settings import GREEDY, Settings, default_cache
    from dynquant.evaluate.tasks import SamplerPart
    from dynquant.release.evaluated import evaluation_markdown
    from dynquant.report.command import portable
    from dynquant.report.evaluation import evaluation_tables
    from dynquant.report.evaluation_page import evaluation_html
    from dynquant.report.html import check_page, write_page
    from dynquant.report.svg import check_charts

    problems = Problems()
    if html:
        problems.attempt(lambda: check_page(html, force=force))
        problems.attempt(check_charts)
    if markdown:
        problems.attempt(lambda: check_text(markdown, force=force))
    listed = problems.attempt(lambda: read_prompts(prompts) if prompts else shipped_prompts())
    folder = cache or default_cache()
    outputs = [out for out in (markdown, html) if out]
    inputs = [*files, Path(reference), *(text or ()), *([prompts] if prompts else ())]
    problems.add(*checks.check_outputs(outputs, inputs, folder))
    stored = partial(checks.check_stored, given, Path(reference), context=context)
    problems.add(*(problems.attempt(lambda: [*stored(tokens=n_tokens, tail=tail)]) or ()))
    if no_loops and not n_prompts:
        problems.add("--no-loops: needs answers to judge; use --n-prompts above 0")
    problems.raise_any()
    assert listed is not None, "it is read or a fault"
    if checks.stated(given, "n_prompts") and n_prompts > len(listed):
        console.talk(f"there are {len(listed)} prompts; all are used", quiet=quiet)
    sampled = SamplerPart(
        temperature=temperature or 0.0, top_k=top_k, top_p=top_p, min_p=min_p, seed=seed
    )
    settings = Settings(
        cache=folder,
        texts=tuple(text or ()),
        context=context,
        tokens=n_tokens,
        tail=tail,
        prompts=tuple(listed[:n_prompts]),
        n_predict=n_predict,
        samplers=(GREEDY, sampled) if temperature else (GREEDY,),
        chat=chat,
        threads=threads,
        gpu_layers=gpu_layers,
    )
    try:
        with successive(partial(counting, quiet=quiet)) as progress:
            found = evaluate_files(
                files,
                reference,
                settings,
                command=("dynquant", *portable(sys.argv[1:])),
                progress=progress,
                say=lambda message: console.talk(message, quiet=quiet),
            )
    except (KeyboardInterrupt, SystemExit):
        console.talk(f"interrupted; the same command resumes from {folder}")
        raise
    for warning in found.warnings:
        console.warn(warning, quiet=quiet)
    if json:
        console.write_json(found.model_dump())
    else:
        console.show(*evaluation_tables(found))
    if markdown:
        write_text(evaluation_markdown(found), markdown, force=force)
    if html:
        write_page(evaluation_html(found, files), html, force=force)
    if no_loops:
        checks.check_answers(found)
    limits = Limits(max_kl, max_ppl_ratio, min_same_top and min_same_top / 100, no_loops)
    GateError.raise_any(exceeded(found, limits))


def _count(text: str) -> int:
    """Return the number of an option such as 250k or 2M; another text is wrong usage."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kKmM]?)", text.replace(",", "").replace("_", ""))
    if not found:
        raise typer.BadParameter(f"{text!r} is not a number such as 250k", param_hint="--tokens")
    return round(float(found[1]) * {"": 1, "k": 1000, "m": 1_000_000}[found[2].lower()])


def _check_numbers(options: dict[str, float | None]) -> None:
    """Refuse nan and inf, which Python reads as numbers: no limit is smaller than nan."""
    for name, value in options.items():
        if value is not None and not math.isfinite(value):
            raise typer.BadParameter(f"{value} is not a finite number", param_hint=name)
