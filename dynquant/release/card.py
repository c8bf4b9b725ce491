"""The model card: the README.md of a repository with GGUFs."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from dynquant.conversion.manifest import Manifest, Source
from dynquant.distribution import requirement
from dynquant.evaluate.results import Evaluation
from dynquant.figures import counted, figure, size_column
from dynquant.quants.readers import readers_text
from dynquant.release.evaluated import EVALUATION, evaluation_markdown
from dynquant.release.finished import Finished, version_of
from dynquant.release.front import embeds, imatrix_of
from dynquant.release.markdown import (
    ERROR_WORDS,
    block,
    code,
    file_table,
    role_table,
    table,
    text,
)
from dynquant.release.projectors import abilities
from dynquant.report.picture import text_of

SUMS = "SHA256SUMS"

_SHOWN = 8
"""Source files that are listed; the manifest lists all."""


@dataclass(frozen=True)
class FileNames:
    """File names of recipes, manifests and pages in the release, by the stem of their GGUF.

    sha256: of the recipes' files
    """

    recipes: Mapping[str, str]
    manifests: Mapping[str, str]
    pages: Mapping[str, str]
    sha256: Mapping[str, str]


def card_body(
    models: Sequence[Finished],
    projectors: Sequence[Finished],
    names: FileNames,
    *,
    base_model: str | None,
    repository: str | None,
    evaluation: Evaluation | None = None,
) -> str:
    """Return the card without its front matter.

    projectors: what lets the models see and hear
    base_model: ORG/NAME of the source; None if unknown
    repository: ORG/NAME that the files will be uploaded to; None if unknown
    evaluation: of the files; None leaves its section out
    """
    lines = [
        *_head(models, base_model),
        *_files(models, projectors),
        *(_evaluation(evaluation) if evaluation else ()),
        *running(
            models[0].path.name,
            models[0].stem,
            n_files=len(models[0].paths),
            embeds=embeds(models[0]),
            projectors=[p.path.name for p in projectors],
            able=abilities(projectors),
            repository=repository,
        ),
        *_verifying(models),
        *_types([*models, *projectors]),
        *_sources([*models, *projectors], names, base_model),
    ]
    return "\n".join(lines) + "\n"


def _head(models: Sequence[Finished], base_model: str | None) -> Iterator[str]:
    first = models[0]
    yield f"# {text(first.name)} as GGUF"
    yield ""
    whose = f"[{text(base_model)}](https://huggingface.co/{base_model})" if base_model else ""
    source = f" of {whose}" if whose else ""
    by = f"dynquant {version_of(first)}" if version_of(first) != "unknown" else "an unknown program"
    yield (
        f"Quantized GGUF files{source} for llama.cpp and programs built on it, made by {text(by)}."
        " A recipe chose the type of each tensor"
        + ("; it is included in this repository." if first.manifest else ".")
    )
    yield ""


def _files(models: Sequence[Finished], projectors: Sequence[Finished]) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield from file_table([*models, *projectors])
    yield ""
    if projectors:
        yield projectors_text([p.path.name for p in projectors], abilities(projectors))
        yield ""
    if any(m.loss for m in models):
        yield ERROR_WORDS
        yield ""


def projectors_text(names: Sequence[str], able: Sequence[str]) -> str:
    """Return a sentence about projector files.

    able: what they add: "image", "audio"
    """
    (*most, last) = map(code, names)
    listed = f"{', '.join(most)} and {last} are projectors" if most else f"{last} is a projector"
    senses = " and ".join({"image": "pictures", "audio": "sounds"}[a] for a in able)
    return f"{listed}, with which llama.cpp reads {senses}."


def _evaluation(evaluation: Evaluation) -> Iterator[str]:
    yield from evaluation_markdown(evaluation).split("\n")
    yield f"All figures and some answers: {link(EVALUATION, EVALUATION)}"
    yield ""


def running(
    file: str,
    stem: str,
    *,
    n_files: int,
    embeds: bool,
    projectors: Sequence[str],
    able: Sequence[str],
    repository: str | None,
) -> Iterator[str]:
    """Yield the section with the commands that run a model.

    file:       name of its first file; stem: without the number of a shard and `.gguf`
    projectors: names of their files; able: what they add: "image", "audio"
    repository: ORG/NAME that the files are fetched from; None if it is not known
    """
    name = shlex.quote(file)
    seeing = f" --mmproj {shlex.quote(projectors[0])}" if projectors else ""
    yield "## How to run"
    yield ""
    lines: list[str] = []
    if repository:
        wanted = (f"{stem}*.gguf", *projectors[:1])
        patterns = " ".join(map(shlex.quote, wanted))
        lines.append(f"hf download {repository} --include {patterns} --local-dir .")
    if embeds:
        lines.append(f"llama-embedding -m {name} -p 'a text'")
    elif projectors:
        medium = "--image picture.jpg" if "image" in able else "--audio sound.wav"
        lines.append(f"llama-mtmd-cli -m {name}{seeing} {medium} -p 'a question'")
    else:
        lines.append(f"llama-cli -m {name} -p 'a question'")
    lines.append(f"llama-server -m {name}{seeing} --port 8080")
    yield from block(lines, "sh")
    yield ""
    if n_files > 1:
        yield "Give llama.cpp the first shard; it loads the others from the same folder."
        yield ""


def _verifying(models: Sequence[Finished]) -> Iterator[str]:
    first = models[0]
    yield "## How to verify"
    yield ""
    version = version_of(first) if version_of(first) != "unknown" else ""
    lines = [
        f"sha256sum --check --ignore-missing {SUMS}",
        f"pip install {requirement(version=version)}",
        f"dynquant verify {shlex.quote(first.path.name)}",
    ]
    source = source_name(first)
    if source and first.manifest:
        importance = first.manifest.importance
        imatrix = f" --imatrix {shlex.quote(importance.file)}" if importance else ""
        if moments := first.manifest.moments:
            imatrix += f" --moments {shlex.quote(moments.file)}"
        name = shlex.quote(first.path.name)
        against = f"--against {shlex.quote(source)}"
        layout = " --mla merged" if first.manifest.model.mla == "merged" else ""
        for adapter in first.manifest.merged_adapters:
            layout += f" --merge-adapter {shlex.quote(adapter.name)}"
        lines.append(f"dynquant verify {name} \\\n  {against}{imatrix}{layout}")
    yield from block(lines, "sh")
    yield ""
    if source and first.manifest:
        yield (
            "The last command encodes rows of the source again and compares the bytes. The same"
            " version of dynquant gives the same bytes on every machine."
        )
        yield ""
    elif first.manifest:
        yield (
            "The file was made from local files, which the manifest names with their hashes."
            " `dynquant verify --against` needs these files; another copy of the model may have"
            " other numbers."
        )
        yield ""


def _types(models: Sequence[Finished]) -> Iterator[str]:
    yield "## Types by role"
    yield ""
    for m in models:
        if len(models) > 1:
            yield f"### {text(m.stem)}"
            yield ""
        yield from role_table(m)
        yield ""
        readers = readers_text(m.type_counts, m.architecture)
        yield f"Programs that read these types: {text(readers)}."
        yield ""


def _sources(models: Sequence[Finished], names: FileNames, base_model: str | None) -> Iterator[str]:
    yield "## Source, recipe and imatrix"
    yield ""
    previous: list[str] = []
    for m in models:
        source = list(_source(m, base_model))
        if source != previous:
            yield from source
        previous = source
        if len(models) > 1:
            yield f"### {text(m.stem)}"
            yield ""
        yield from (f"- {line}" for line in _settings(m, names))
        yield ""


def _source(model: Finished, base_model: str | None) -> Iterator[str]:
    if name := source_name(model):
        yield f"Source: {code(name)}"
        yield ""
    elif base_model:
        yield f"Base model: {code(f'hf://{base_model}')}; made from local files"
        yield ""
    if model.manifest and model.manifest.sources:
        yield from _source_table(model.manifest)
        yield ""


def _settings(model: Finished, names: FileNames) -> Iterator[str]:
    manifest = model.manifest
    yield f"recipe: {link(model.recipe, names.recipes.get(model.stem))}" + (
        _recipe_hashes(manifest, names.sha256[model.stem]) if manifest else ""
    )
    if manifest and manifest.importance:
        of = manifest.importance
        sets = f", computed on {text(', '.join(of.datasets))}" if of.datasets else ""
        chunks = f" ({of.chunks} chunks)" if of.chunks is not None else ""
        yield f"imatrix: {code(of.file)}{sets}{chunks}, SHA-256 {code(of.sha256)}"
    else:
        yield f"imatrix: {text(imatrix_of(model) or 'none')}"
    if manifest and (moments := manifest.moments):
        n = sum(t.feedback is not None for t in manifest.tensors)
        yield (
            f"error feedback: {counted(n, 'tensor')}, second moments {code(moments.file)}, header"
            f" SHA-256 {code(moments.header_sha256)}"
        )
    if manifest:
        yield f"effort {manifest.effort}, dynquant {text(manifest.dynquant.version)}"
        for adapter in manifest.merged_adapters:
            yield (
                f"merged adapter: {code(adapter.name)}, SHA-256 {code(adapter.sha256)} of the"
                f" factors, {code(adapter.config_sha256)} of the settings"
            )
        if manifest.model.mla:
            yield f"latent attention {manifest.model.mla} (`--mla {manifest.model.mla}`)"
    if model.loss:
        yield f"error of all weights: {figure(model.loss.weighted)}"
    if name := names.manifests.get(model.stem):
        yield f"offset, hash, rule and error of each tensor: {link('manifest', name)}"
    if name := names.pages.get(model.stem):
        yield f"chart of all tensors by layer and role: {link('plan', name)}"


def _recipe_hashes(manifest: Manifest, sha256: str) -> str:
    """Return the hash of the recipe's file, and that of the texts that it was joined from."""
    if not manifest.recipe.extends:
        return f", SHA-256 {code(sha256)}"
    return (
        f", SHA-256 {code(sha256)}; one file for the recipe and those that it extends, whose texts"
        f" have the hash {code(manifest.recipe.sha256)} (`dynquant.recipe_sha256`)"
    )


def _source_table(manifest: Manifest) -> list[str]:
    listed = manifest.sources[:_SHOWN]
    rows = [
        (code(s.name), size, code(_hash_of(s)))
        for s, size in zip(listed, size_column([s.bytes for s in listed]), strict=True)
    ]
    lines = table(("source file", "size>", "SHA-256"), rows)
    more = len(manifest.sources) - len(listed)
    return [*lines, "", f"{more} more are listed in the manifest."] if more else lines


def _hash_of(source: Source) -> str:
    """Return the SHA-256 of a source file; the BLAKE3 or the header's where it is not known."""
    if source.sha256:
        return source.sha256
    return f"BLAKE3 {source.blake3}" if source.blake3 else f"header {source.header_sha256}"


def source_name(model: Finished) -> str | None:
    """Return the source on the Hub that the file was made from, with its commit if it is known.

    None for a file that was made from local files. A local GGUF may keep the key of the repository
    that it was made from, whose numbers are not its own.
    """
    recorded = model.manifest.model.repository if model.manifest else None
    name = recorded or text_of(model.keys, "dynquant.source")
    sources = model.manifest.sources if model.manifest else []
    from_gguf = any(s.name.endswith(".gguf") for s in sources)
    if name is None or (sources and from_gguf != name.endswith(".gguf")):
        return None
    commit = model.manifest.model.commit if model.manifest else None
    repository, file = name, ""
    if from_gguf:
        parts = name.removeprefix("hf://").split("/")
        repository, file = "hf://" + "/".join(parts[:2]), "/" + "/".join(parts[2:])
    return repository + (f"@{commit}" if commit else "") + file


def link(words: str, name: str | None) -> str:
    """Return a link to a file of the same folder, or only the words if there is no file."""
    return f"[{text(words)}](<{quote(name)}>)" if name else text(words)
