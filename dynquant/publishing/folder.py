"""A release folder, as `dynquant release` wrote it, and what it adds to a repository."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from dynquant.errors import PublishError
from dynquant.evaluate.results import Evaluation
from dynquant.json_documents import MAX_BYTES, plain
from dynquant.publishing.document import Entry, FilePart, RolePart, ScorePart
from dynquant.publishing.readme import CARD, Readme, read_readme
from dynquant.release.card import SUMS, source_name
from dynquant.release.evaluated import EVALUATION, check_evaluated, read_evaluated
from dynquant.release.finished import Finished, check_same_model, open_finished, version_of
from dynquant.release.folder import recipe_files, unescaped_name
from dynquant.release.front import embeds, imatrix_of
from dynquant.release.markdown import types_text
from dynquant.release.projectors import abilities, apart, is_projector
from dynquant.report.totals import by_role
from dynquant.untrusted import read_regular

_MAX_SUMS = 1 << 22
_LINE = re.compile(r"(\\?)([0-9a-f]{64})  (.+)")
_NAME = re.compile(r"[^/\x00-\x1f\x7f]*[^/\x00-\x1f\x7f.][^/\x00-\x1f\x7f]*")


@dataclass(frozen=True)
class LocalFile:
    """A file to publish.

    name:    in the repository
    content: its bytes, or the path of a GGUF
    sha256:  as SHA256SUMS states it; for a path, it is checked while uploading
    """

    name: str
    content: bytes | Path = field(repr=False)
    bytes: int
    sha256: str

    def part(self) -> FilePart:
        """Return its description in a document."""
        return FilePart(name=self.name, bytes=self.bytes, sha256=self.sha256)


@dataclass(frozen=True)
class ReleaseFolder:
    """A release that can be published.

    entries: models and projectors, with the file names of the repository
    files:   everything to upload except card, checksums and document, by name in the repository
    others:  names of files in the folder that are not part of the release
    """

    path: Path
    entries: tuple[Entry, ...]
    files: Mapping[str, LocalFile]
    readme: Readme
    warnings: tuple[str, ...]
    others: tuple[str, ...]


def read_release(folder: Path) -> ReleaseFolder:
    """Read a release folder; the GGUFs' headers are read, but not their tensors.

    Files that every release has under one name get the name of their model: `plan.html` becomes
    `STEM.plan.html`, `evaluation.json` becomes `STEM.evaluation.json`.

    Raises PublishError if the folder was not written by `dynquant release`, or was changed later.
    """
    sums = _read_sums(folder)
    ggufs = _open_ggufs(folder, sums)
    models, projectors = apart(ggufs)
    check_same_model(models, projectors)
    ggufs = [*models, *projectors]
    texts = _read_texts(folder, sums)
    readme = read_readme(_text(folder / CARD), str(folder / CARD))
    evaluated = read_evaluated(folder / EVALUATION) if EVALUATION in texts else None
    files: dict[str, LocalFile] = {}
    warnings: list[str] = []
    evaluation_file: FilePart | None = None
    if evaluated:
        released = {p.name: sums[p.name] for m in ggufs for p in m.paths}
        warnings += check_evaluated(evaluated, released)
        evaluation_file = _add(files, f"{ggufs[0].stem}.{EVALUATION}", texts[EVALUATION])
    _, recipes = recipe_files(ggufs)
    entries: list[Entry] = []
    for m in ggufs:
        for path, size in zip(m.paths, m.sizes, strict=True):
            files[path.name] = LocalFile(path.name, path, size, sums[path.name])
        page = "plan.html" if len(ggufs) == 1 else f"{m.stem}.plan.html"
        manifest = m.manifest_path.name if m.manifest_path else None
        parts: dict[str, FilePart | None] = {
            "recipe_file": _listed(files, texts, recipes.get(m.stem)),
            "manifest_file": _listed(files, texts, manifest),
            "plan_file": _listed(files, texts, page, f"{m.stem}.plan.html"),
        }
        if evaluated and (score := _score(evaluated.evaluation, m)):
            parts["evaluation_file"] = evaluation_file
        else:
            score = None
        entries.append(_entry(m, sums, parts, score))
        if m.manifest is None:
            warnings.append(f"{m.path}: has no manifest; the card will not show recipe and errors")
    listed = {*sums, SUMS, CARD}
    others = tuple(sorted(p.name for p in folder.iterdir() if p.name not in listed))
    return ReleaseFolder(folder, tuple(entries), files, readme, tuple(warnings), others)


def _read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file of a release, by name, in the order of the list."""
    if not folder.is_dir():
        raise PublishError(f"{folder}: is not a folder; name the folder of a release")
    path = folder / SUMS
    if not path.exists():
        raise PublishError(
            f"{folder}: has no {SUMS}; name a folder that `dynquant release --folder` wrote"
        )
    found: dict[str, str] = {}
    problems: list[str] = []
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line:
            continue
        parts = _LINE.fullmatch(line)
        name = unescaped_name(parts[3]) if parts and parts[1] else parts[3] if parts else ""
        if not parts or not _NAME.fullmatch(name):
            problems.append(f"{path}:{number}: is not a line of checksums; write the release again")
        elif not (folder / name).is_file():
            problems.append(f"{folder / name}: is missing; write the release again")
        else:
            found[name] = parts[2]
    if not any(name.endswith(".gguf") for name in found) and not problems:
        problems.append(f"{path}: lists no GGUF; write the release again")
    PublishError.raise_any(problems)
    return found


def _open_ggufs(folder: Path, sums: Mapping[str, str]) -> list[Finished]:
    found: list[Finished] = []
    seen: set[str] = set()
    for name in sums:
        if name.endswith(".gguf") and name not in seen:
            made = open_finished(folder / name)
            seen |= {path.name for path in made.paths}
            found.append(made)
    PublishError.raise_any(
        f"{folder / name}: is not listed in {SUMS}; write the release again"
        for name in sorted(seen - sums.keys())
    )
    return found


def _read_texts(folder: Path, sums: Mapping[str, str]) -> dict[str, LocalFile]:
    """Return all files but the GGUFs, after a check of their hashes."""
    found: dict[str, LocalFile] = {}
    problems: list[str] = []
    for name, sha256 in sums.items():
        if name.endswith(".gguf"):
            continue
        content = _bytes(folder / name, MAX_BYTES)
        if hashlib.sha256(content).hexdigest() != sha256:
            problems.append(
                f"{folder / name}: was changed after the release; write the release again"
            )
        found[name] = LocalFile(name, content, len(content), sha256)
    PublishError.raise_any(problems)
    return found


def _bytes(path: Path, at_most: int) -> bytes:
    try:
        return read_regular(path, at_most)
    except OSError as e:
        raise PublishError(f"{path}: cannot be read: {e.strerror}") from e


def _text(path: Path) -> str:
    try:
        return _bytes(path, _MAX_SUMS).decode()
    except UnicodeDecodeError as e:
        raise PublishError(
            f"{path}: is not UTF-8; give the files names in UTF-8, and write the release again"
        ) from e


def _add(files: dict[str, LocalFile], name: str, file: LocalFile) -> FilePart:
    files[name] = LocalFile(name, file.content, file.bytes, file.sha256)
    return files[name].part()


def _listed(
    files: dict[str, LocalFile],
    texts: Mapping[str, LocalFile],
    name: str | None,
    published: str | None = None,
) -> FilePart | None:
    """Add a file of the folder if the release has it; published: its name in the repository."""
    return _add(files, published or name, texts[name]) if name and name in texts else None


def _entry(
    model: Finished,
    sums: Mapping[str, str],
    parts: Mapping[str, FilePart | None],
    score: ScorePart | None,
) -> Entry:
    importance = model.manifest.importance if model.manifest else None
    imatrix, source = imatrix_of(model), source_name(model)
    embedding = next((t for t in model.tensors if t.name == "token_embd.weight"), None)
    found: dict[str, Any] = {
        "kind": "projector" if is_projector(model) else "model",
        "stem": plain(model.stem),
        "name": plain(model.name),
        "architecture": plain(model.architecture),
        "abilities": list(abilities([model])),
        "embeds": embeds(model),
        "embedding": prod(embedding.shape) if embedding else None,
        "files": [
            FilePart(name=path.name, bytes=size, sha256=sums[path.name])
            for path, size in zip(model.paths, model.sizes, strict=True)
        ],
        "bits_per_weight": model.bits_per_weight,
        "error": model.loss.weighted if model.loss else None,
        "type_counts": model.type_counts,
        "roles": [
            RolePart(
                role=plain(share.name),
                types=types_text(share),
                bytes=share.n_bytes,
                bits_per_weight=share.bits_per_weight,
            )
            for share in by_role(model.tensors)
        ],
        "base_model": model.repository,
        "source": source and plain(source),
        "imatrix": imatrix and plain(imatrix),
        "imatrix_sha256": importance.sha256 if importance else None,
        "recipe": plain(model.recipe),
        "dynquant": plain(version_of(model)),
        "evaluation_file": None,
        "score": score,
    }
    return Entry.model_validate(found | dict(parts))


def _score(evaluation: Evaluation, model: Finished) -> ScorePart | None:
    names = {path.name for path in model.paths}
    for result in evaluation.files:
        if any(file.name in names for file in result.files):
            reference, figures = evaluation.reference, result.figures
            return ScorePart(
                reference=reference.model.name,
                distributions_sha256=evaluation.distributions_sha256,
                windows=figures.windows,
                context=reference.context,
                tokens=figures.tokens,
                mean_kld=figures.mean_kld,
                kld_99=figures.kld_99,
                same_top=figures.same_top,
                ppl_ratio=figures.ppl_ratio,
            )
    return None


def front_of(release: ReleaseFolder, entries: Sequence[Entry]) -> dict[str, Any]:
    """Return the front matter of the release's card; the base model is that of its files if the
    card has none.
    """
    found = dict(release.readme.front)
    if "base_model" not in found and (base := next((e.base_model for e in entries), None)):
        found |= {"base_model": base, "base_model_relation": "quantized"}
    return found
