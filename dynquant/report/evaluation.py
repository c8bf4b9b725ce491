"""Tables of an evaluation for terminals, and the text of its figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from dynquant.evaluate.results import Answers, Estimate, Evaluation, Figures, FileResult, Pair
from dynquant.figures import counted, size_column, size_text, three_digits

_BESIDE = 4
"""Files whose figures are all shown, in columns beside each other."""
_ALL_PAIRS = 5
"""Files of which every two are compared; of more, those that follow each other in KLD."""

Figure = tuple[str, Callable[[Figures], Estimate | float], Callable[[float], str]]


def nats(value: float) -> str:
    """Return a divergence as llama-perplexity prints it: six places."""
    return f"{value:.6f}"


def perplexity(value: float) -> str:
    """Return a perplexity, four places."""
    return f"{value:.4f}"


def percent(value: float) -> str:
    """Return a share as a percentage, two places."""
    return f"{100 * value:.2f} %"


FIGURES: tuple[Figure, ...] = (
    ("Mean PPL(Q)", lambda f: f.ppl, perplexity),
    ("Mean PPL(base)", lambda f: f.ppl_base, perplexity),
    ("Mean PPL(Q)/PPL(base)", lambda f: f.ppl_ratio, perplexity),
    ("Mean KLD", lambda f: f.mean_kld, nats),
    ("Maximum KLD", lambda f: f.maximum_kld, nats),
    ("99.9% KLD", lambda f: f.kld_999, nats),
    ("99.0% KLD", lambda f: f.kld_99, nats),
    ("95.0% KLD", lambda f: f.kld_95, nats),
    ("90.0% KLD", lambda f: f.kld_90, nats),
    ("Median KLD", lambda f: f.median_kld, nats),
    ("Mean Δp", lambda f: f.mean_dp, percent),
    ("RMS Δp", lambda f: f.rms_dp, percent),
    ("Same top p", lambda f: f.same_top, percent),
)
"""The figures in the order and with the names of llama-perplexity --kl-divergence."""


def shown(figure: Estimate | float, text: Callable[[float], str]) -> str:
    """Return a figure and its interval: `0.012345 [0.011902, 0.012801]`."""
    if not isinstance(figure, Estimate):
        return text(figure)
    return f"{text(figure.value)} [{text(figure.low)}, {text(figure.high)}]"


def sampler_text(answers: Answers) -> str:
    """Return how the tokens of answers were chosen: `greedy`, or the settings."""
    s = answers.sampler
    if s.temperature <= 0:
        return "greedy"
    rest = [f"top-k {s.top_k}"] if s.top_k else []
    rest += [f"top-p {s.top_p:g}"] if s.top_p < 1 else []
    rest += [f"min-p {s.min_p:g}"] if s.min_p else []
    return ", ".join([f"temperature {s.temperature:g}", *rest, f"seed {s.seed}"])


def evaluation_tables(evaluation: Evaluation) -> Iterator[RenderableType]:
    """Yield the tables of an evaluation."""
    yield Text(headline(evaluation))
    files = evaluation.files
    yield _overview(files)
    if len(files) <= _BESIDE:
        yield Text()
        yield _all_figures(files)
    for file in files:
        if file.domains:
            yield Text()
            yield _domains(file)
    if any(file.answers for file in files):
        yield Text()
        yield _answers(files)
    if pairs := chosen_pairs(evaluation):
        yield Text()
        yield _pairs(pairs)
    if any(file.cost for file in files):
        yield Text()
        yield _costs(files)


def headline(evaluation: Evaluation) -> str:
    """Return what was compared with what, in a line."""
    reference = evaluation.reference
    figures = evaluation.files[0].figures
    texts = ", ".join(text.name for text in reference.texts)
    return (
        f"reference {reference.model.name}, {counted(figures.windows, 'window')} of"
        f" {reference.context:,} tokens of {texts}, {figures.tokens:,} scored;"
        f" {evaluation.level:.0%} intervals over windows"
    )


def _overview(files: Sequence[FileResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("file", overflow="fold")
    for name in ("size", "bits", "Mean KLD", "99.0% KLD", "Same top p", "PPL(Q)/PPL(base)"):
        table.add_column(name, justify="right", overflow="fold")
    for file, size in zip(files, size_column([f.bytes for f in files]), strict=True):
        f = file.figures
        table.add_row(
            file.name,
            size,
            f"{file.bits_per_weight:.3f}",
            shown(f.mean_kld, nats),
            nats(f.kld_99.value),
            percent(f.same_top.value),
            perplexity(f.ppl_ratio.value),
        )
    return table


def _all_figures(files: Sequence[FileResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("figure", overflow="fold")
    for file in files:
        table.add_column(file.name, justify="right", overflow="fold")
    for name, of, text in FIGURES:
        table.add_row(name, *(shown(of(file.figures), text) for file in files))
    return table


def _domains(file: FileResult) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(f"{file.name} by text", overflow="fold")
    for name in ("windows", "Mean KLD", "Same top p", "PPL(Q)/PPL(base)"):
        table.add_column(name, justify="right", overflow="fold")
    for domain in file.domains:
        f = domain.figures
        table.add_row(
            domain.text,
            f"{f.windows:,}",
            shown(f.mean_kld, nats),
            shown(f.same_top, percent),
            perplexity(f.ppl_ratio.value),
        )
    return table


def _answers(files: Sequence[FileResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("answers", overflow="fold")
    for name in ("sampler", "prompts", "identical", "first difference", "loops", "reference's"):
        table.add_column(name, justify="right", overflow="fold")
    for name in ("empty", "not UTF-8", "not finite"):
        table.add_column(name, justify="right", overflow="fold")
    for file in files:
        for a in file.answers:
            table.add_row(
                file.name,
                sampler_text(a),
                str(a.prompts),
                shown(a.identical, percent),
                f"{a.first_divergence.value:.1f} of {a.n_predict}",
                shown(a.loops, percent),
                percent(a.reference_loops.value),
                str(a.dead_ends),
                str(a.replacement_characters),
                str(a.not_finite),
            )
    return table


def chosen_pairs(evaluation: Evaluation) -> list[Pair]:
    """Return the pairs that tables show: all of a few files, of many those that are neighbours."""
    if len(evaluation.files) <= _ALL_PAIRS:
        return evaluation.pairs
    ordered = sorted(evaluation.files, key=lambda f: f.figures.mean_kld.value)
    wanted = [{a.name, b.name} for a, b in pairwise(ordered)]
    return [pair for pair in evaluation.pairs if {pair.a, pair.b} in wanted]


def verdict(pair: Pair) -> str:
    """Return which of two files is closer to the reference, if the interval says so."""
    if pair.mean_kld.low > 0:
        return f"{pair.b} is closer"
    if pair.mean_kld.high < 0:
        return f"{pair.a} is closer"
    return "no difference is shown"


def _pairs(pairs: Sequence[Pair]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("difference on the same tokens", overflow="fold")
    for name in ("Mean KLD", "Same top p"):
        table.add_column(name, justify="right", overflow="fold")
    table.add_column("", overflow="fold")
    for pair in pairs:
        table.add_row(
            f"{pair.a} - {pair.b}",
            shown(pair.mean_kld, lambda v: f"{v:+.6f}"),
            shown(pair.same_top, lambda v: f"{100 * v:+.2f} %"),
            verdict(pair),
        )
    return table


def _costs(files: Sequence[FileResult]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("cost on this machine", overflow="fold")
    for name in ("threads", "prompt tokens/s", "generated tokens/s", "load", "resident memory"):
        table.add_column(name, justify="right", overflow="fold")
    for file in files:
        if cost := file.cost:
            table.add_row(
                file.name,
                str(cost.threads),
                three_digits(cost.prompt_tokens_per_second),
                three_digits(cost.generated_tokens_per_second),
                f"{cost.load_seconds:.2f} s",
                size_text(cost.resident_bytes),
            )
    return table
