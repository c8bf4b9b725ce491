"""An evaluation in a release: a section of the model card, and the document beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynquant.errors import ReleaseError
from dynquant.evaluate.results import Evaluation, Figures, FileResult
from dynquant.figures import counted, size_column, three_digits
from dynquant.json_documents import MAX_BYTES, parse_document
from dynquant.release.markdown import block, code, table, text
from dynquant.report.command import command_text
from dynquant.report.evaluation import nats, percent, perplexity, sampler_text, shown
from dynquant.untrusted import read_regular

EVALUATION = "evaluation.json"

_SHOWN = 8
"""Files of a model that are listed."""


@dataclass(frozen=True)
class Evaluated:
    """A document of `dynquant eval --json`, which anybody may have written.

    content: the bytes of the file
    """

    path: Path
    content: bytes
    evaluation: Evaluation


def read_evaluated(path: Path) -> Evaluated:
    """Read an evaluation; raise ReleaseError with the places of all faults."""
    try:
        content = read_regular(path, MAX_BYTES)
    except OSError as e:
        raise ReleaseError(f"{path}: cannot be read: {e.strerror}") from e
    found = parse_document(content, str(path), Evaluation, "evaluation", 1, ReleaseError)
    return Evaluated(path, content, found)


def check_evaluated(evaluated: Evaluated, released: Mapping[str, str]) -> list[str]:
    """Return warnings if the evaluation does not have all files of a release, or has others.

    released: SHA-256 of each GGUF, by name

    Raises ReleaseError if the evaluation names another file with the name of a released one, or
    has none of the released files.
    """
    path = evaluated.path
    known: dict[str, set[str]] = {}
    for result in evaluated.evaluation.files:
        for file in result.files:
            known.setdefault(file.name, set()).add(file.sha256)
    ReleaseError.raise_any(
        f"{path}: {name} has another SHA-256 than the released file of this name; evaluate the"
        " released file"
        for name, sha256 in released.items()
        if name in known and sha256 not in known[name]
    )
    missing = [name for name in released if name not in known]
    if len(missing) == len(released):
        raise ReleaseError(
            f"{path}: has none of the released files; name the evaluation of these files"
        )
    warnings = [f"{path}: has no figures of {_some(missing)}"] if missing else []
    others = [file.name for file in evaluated.evaluation.files if not _is_among(file, released)]
    if others:
        warnings.append(f"{path}: the card leaves out {_some(others)}, which is not released")
    return warnings


def _some(names: Sequence[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def _is_among(result: FileResult, names: Collection[str]) -> bool:
    return any(file.name in names for file in result.files)


def of_released(evaluation: Evaluation, names: Collection[str]) -> Evaluation:
    """Return an evaluation without the files that are not released.

    names: of the released files
    """
    files = [file for file in evaluation.files if _is_among(file, names)]
    return evaluation.model_copy(update={"files": files})


def evaluation_markdown(evaluation: Evaluation) -> str:
    """Return a section of a model card: figures, hashes of the inputs, and the command."""
    lines = [
        "## Evaluation",
        "",
        *_overview(evaluation),
        *_by_text(evaluation.files),
        *_answers(evaluation.files),
        *_inputs(evaluation),
    ]
    return "\n".join(lines)


def _overview(evaluation: Evaluation) -> Iterator[str]:
    files = evaluation.files
    reference = evaluation.reference
    scored = max((file.figures.tokens for file in files), default=0)
    yield (
        f"Compared with the reference {code(reference.model.name)} by llama.cpp:"
        f" {counted(reference.n_windows, 'window')} of {reference.context:,} tokens,"
        f" {scored:,} tokens scored. KLD is the KL divergence of the file's predictions from those"
        " of the reference, in nats for each token; smaller is better. Same top p is the share of"
        " tokens after which both choose the same next token. Intervals have a level of"
        f" {evaluation.level:.0%}."
    )
    yield ""
    head = ("file", "size>", "bits per weight>", *_HEAD)
    sizes = size_column([file.bytes for file in files])
    rows = [
        (code(file.name), size, f"{file.bits_per_weight:.3f}", *_cells(file.figures))
        for file, size in zip(files, sizes, strict=True)
    ]
    yield from table(head, rows)
    yield ""


_HEAD = ("Mean KLD>", "99.0% KLD>", "Same top p>", "PPL(Q)/PPL(base)>")


def _cells(figures: Figures) -> tuple[str, ...]:
    return (
        text(shown(figures.mean_kld, nats)),
        nats(figures.kld_99.value),
        text(shown(figures.same_top, percent)),
        perplexity(figures.ppl_ratio.value),
    )


def _by_text(files: Sequence[FileResult]) -> Iterator[str]:
    if not any(file.domains for file in files):
        return
    yield "### By text"
    yield ""
    rows = [
        (code(file.name), code(domain.text), f"{domain.figures.windows:,}", *_cells(domain.figures))
        for file in files
        for domain in file.domains
    ]
    yield from table(("file", "text", "windows>", *_HEAD), rows)
    yield ""


def _answers(files: Sequence[FileResult]) -> Iterator[str]:
    rows = [
        (
            code(file.name),
            text(sampler_text(answers)),
            f"{answers.prompts:,}",
            text(shown(answers.loops, percent)),
            percent(answers.reference_loops.value),
            text(shown(answers.identical, percent)),
            f"{three_digits(answers.first_divergence.value)} of {answers.n_predict:,}",
        )
        for file in files
        for answers in file.answers
    ]
    if not rows:
        return
    yield "### Answers"
    yield ""
    yield (
        "The file and the reference continued the same prompts freely. An answer loops if it ends"
        " in a repetition. The first difference is the mean number of tokens before it."
    )
    yield ""
    head = ("file", "tokens chosen", "prompts>", "loops>", "the reference's loops>")
    yield from table((*head, "identical>", "first difference>"), rows)
    yield ""


def _inputs(evaluation: Evaluation) -> Iterator[str]:
    reference = evaluation.reference
    yield "### Repeat the evaluation"
    yield ""
    if evaluation.command:
        yield from block(command_text(evaluation.command).split("\n"), "sh")
        yield ""
    engine = reference.engine
    commit = f", commit {text(engine.commit)}" if engine.commit != "unknown" else ""
    yield f"- dynquant {text(evaluation.dynquant)}"
    yield f"- llama.cpp of {text(engine.wheel)}, version {text(engine.version)}{commit}"
    tokens = reference.n_windows * reference.context
    yield f"- {tokens:,} tokens as little-endian int32, SHA-256 {code(reference.tokens_sha256)}"
    yield f"- distributions of the reference, SHA-256 {code(evaluation.distributions_sha256)}"
    prompts = {a.prompts_sha256: a.prompts for f in evaluation.files for a in f.answers}
    for sha256, n in prompts.items():
        yield f"- tokens of {counted(n, 'prompt')}, SHA-256 {code(sha256)}"
    yield from (f"- {text(warning)}" for warning in evaluation.warnings)
    yield ""
    rows = [("text", text_.name, text_.sha256) for text_ in reference.texts]
    models = [("reference", reference.model.files)]
    models += [("file", file.files) for file in evaluation.files]
    for what, files in models:
        rows += [(what, file.name, file.sha256) for file in files[:_SHOWN]]
        if len(files) > _SHOWN:
            rows.append((what, f"{len(files) - _SHOWN} more", ""))
    yield from table(("input", "name", "SHA-256"), ((w, code(n), code(h)) for w, n, h in rows))
    yield ""
