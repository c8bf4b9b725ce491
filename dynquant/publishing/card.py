"""The part of a repository's card that dynquant writes: one table of all files, then details.

It follows from the entries, in whatever order they were published.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence

from dynquant.distribution import requirement
from dynquant.figures import counted, figure, size_column
from dynquant.publishing.document import DOCUMENT, Entry
from dynquant.quants.readers import readers_text
from dynquant.release.card import SUMS, link, projectors_text, running
from dynquant.release.markdown import ERROR_WORDS, block, code, table, text
from dynquant.report.evaluation import nats, percent, perplexity, shown


def card_part(
    entries: Sequence[Entry],
    others: Mapping[str, tuple[int, str | None]],
    repository: str,
    base_model: str | None,
) -> str:
    """Return the part of the card.

    entries:    of the repository, in order
    others:     other GGUFs in the repository: bytes and SHA-256, by name
    repository: ORG/NAME
    base_model: ORG/NAME of the source; None if it is not known
    """
    models = [e for e in entries if e.kind == "model"]
    projectors = [e for e in entries if e.kind == "projector"]
    usual = _usual(models)
    lines = [
        *_head(models, base_model),
        *_files(models, projectors, others),
        *_scores(models),
        *running(
            usual.files[0].name,
            usual.stem,
            n_files=len(usual.files),
            embeds=usual.embeds,
            projectors=[p.files[0].name for p in projectors],
            able=abilities_of(projectors),
            repository=repository,
        ),
        *_verifying(usual, repository),
        *_readers([*models, *projectors]),
        *_details([*models, *projectors]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _usual(models: Sequence[Entry]) -> Entry:
    """Return the model of the examples: the largest of at most five bits, or the smallest."""
    return next((e for e in models if e.bits_per_weight <= 5), models[-1])


def abilities_of(projectors: Sequence[Entry]) -> list[str]:
    """Return what projectors add to a model: "image", "audio", or both."""
    found = {a for p in projectors for a in p.abilities}
    return [a for a in ("image", "audio") if a in found]


def _head(models: Sequence[Entry], base_model: str | None) -> Iterator[str]:
    yield f"# {text(models[0].name)} as GGUF"
    yield ""
    whose = f" of [{text(base_model)}](https://huggingface.co/{base_model})" if base_model else ""
    yield (
        f"Quantized GGUF files{whose} for llama.cpp and programs built on it. A recipe chose the"
        " type of each tensor. All files are listed with their hashes in"
        f" {link(DOCUMENT, DOCUMENT)} and {link(SUMS, SUMS)}."
    )
    yield ""


def _files(
    models: Sequence[Entry],
    projectors: Sequence[Entry],
    others: Mapping[str, tuple[int, str | None]],
) -> Iterator[str]:
    yield "## Files"
    yield ""
    entries = [*models, *projectors]
    is_evaluated = any(e.score for e in entries)
    head = ["file", "recipe", "size>", "bits per weight>", "error>"]
    sizes = size_column([e.total for e in entries])
    rows: list[list[str]] = []
    for e, size in zip(entries, sizes, strict=True):
        more = f" and {len(e.files) - 1} more" if len(e.files) > 1 else ""
        row = [link(e.files[0].name, e.files[0].name) + more, text(e.recipe), size]
        row += [f"{e.bits_per_weight:.3f}", figure(e.error)]
        if is_evaluated:
            row.append(nats(e.score.mean_kld.value) if e.score else "–")
        rows.append(row)
    yield from table([*head, *(["mean KLD>"] if is_evaluated else [])], rows)
    yield ""
    if projectors:
        yield projectors_text([p.files[0].name for p in projectors], abilities_of(projectors))
        yield ""
    if any(e.error is not None for e in entries):
        yield ERROR_WORDS
        yield ""
    if others:
        yield "### Other files"
        yield ""
        yield "These GGUFs are in the repository, but were not published with `dynquant publish`."
        yield ""
        sizes = size_column([size for size, _ in others.values()])
        facts = zip(others.items(), sizes, strict=True)
        rows_ = [(link(n, n), size, code(sha256 or "")) for (n, (_, sha256)), size in facts]
        yield from table(("file", "size>", "SHA-256"), rows_)
        yield ""


def _scores(models: Sequence[Entry]) -> Iterator[str]:
    """Yield a table for each reference: only figures of one reference can be compared."""
    by_reference: dict[str, list[Entry]] = {}
    for e in models:
        if e.score:
            by_reference.setdefault(e.score.distributions_sha256, []).append(e)
    if not by_reference:
        return
    yield "## Evaluation"
    yield ""
    yield (
        "KLD is the KL divergence of a file's predictions from those of the reference, in nats for"
        " each token; smaller is better. Same top p is the share of tokens after which both choose"
        " the same next token."
        + (" Figures of different references cannot be compared." if len(by_reference) > 1 else "")
    )
    yield ""
    for sha256, entries in by_reference.items():
        scores = [e.score for e in entries if e.score]
        first = scores[0]
        yield (
            f"Reference {code(first.reference)}: {counted(first.windows, 'window')} of"
            f" {first.context:,} tokens, {max(s.tokens for s in scores):,} tokens scored;"
            f" distributions with SHA-256 {code(sha256)}"
        )
        yield ""
        rows = [
            (
                code(e.stem),
                text(shown(s.mean_kld, nats)),
                nats(s.kld_99.value),
                text(shown(s.same_top, percent)),
                perplexity(s.ppl_ratio.value),
                link("all figures", e.evaluation_file and e.evaluation_file.name),
            )
            for e, s in zip(entries, scores, strict=True)
        ]
        head = ("model", "mean KLD>", "99.0% KLD>", "same top p>", "PPL(Q)/PPL(base)>", "")
        yield from table(head, rows)
        yield ""


def _verifying(first: Entry, repository: str) -> Iterator[str]:
    yield "## How to verify"
    yield ""
    version = first.dynquant if first.dynquant != "unknown" else ""
    name = shlex.quote(first.files[0].name)
    yield from block(
        [
            f"hf download {repository} --include {SUMS} --local-dir .",
            f"sha256sum --check --ignore-missing {SUMS}",
            f"pip install {requirement(version=version)}",
            f"dynquant verify {name}",
        ],
        "sh",
    )
    yield ""


def _readers(entries: Sequence[Entry]) -> Iterator[str]:
    yield "## Programs that read the files"
    yield ""
    rows = [
        (code(e.stem), text(", ".join(e.type_counts)), _of_readers(e.type_counts, e.architecture))
        for e in entries
    ]
    yield from table(("model", "types", "programs"), rows)
    yield ""


def _of_readers(types: Mapping[str, int], architecture: str) -> str:
    return text(readers_text(dict(types), architecture))


def _details(entries: Sequence[Entry]) -> Iterator[str]:
    yield "## Details"
    yield ""
    for e in entries:
        yield f"### {text(e.stem)}"
        yield ""
        yield from (f"- {line}" for line in _facts(e))
        yield ""
        sizes = size_column([f.bytes for f in e.files])
        rows = [(code(f.name), s, code(f.sha256)) for f, s in zip(e.files, sizes, strict=True)]
        yield from table(("file", "size>", "SHA-256"), rows)
        yield ""
        yield "<details><summary>Types by role</summary>"
        yield ""
        sizes = size_column([r.bytes for r in e.roles])
        yield from table(
            ("role", "types", "size>", "bits per weight>"),
            (
                (code(r.role), text(r.types), size, f"{r.bits_per_weight:.3f}")
                for r, size in zip(e.roles, sizes, strict=True)
            ),
        )
        yield ""
        yield "</details>"
        yield ""


def _facts(e: Entry) -> Iterator[str]:
    if e.source:
        yield f"source: {code(e.source)}"
    recipe = f"recipe: {link(e.recipe, e.recipe_file and e.recipe_file.name)}"
    yield recipe + (f", SHA-256 {code(e.recipe_file.sha256)}" if e.recipe_file else "")
    sha256 = f", SHA-256 {code(e.imatrix_sha256)}" if e.imatrix_sha256 else ""
    yield f"imatrix: {code(e.imatrix) if e.imatrix else 'none'}{sha256}"
    yield f"made by dynquant {text(e.dynquant)}"
    if e.manifest_file:
        yield (
            f"offset, hash, rule and error of each tensor: {link('manifest', e.manifest_file.name)}"
        )
    if e.plan_file:
        yield f"chart of all tensors by layer and role: {link('plan', e.plan_file.name)}"
