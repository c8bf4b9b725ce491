"""The folder of a release: GGUFs, manifests, recipes, pages, checksums and the model card."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynquant.conversion.manifest import RecipePart
from dynquant.errors import RecipeError, ReleaseError
from dynquant.recipe.loader import recipe_of_texts
from dynquant.recipe.resolved import resolved_text
from dynquant.release.card import SUMS, FileNames, card_body
from dynquant.release.evaluated import EVALUATION, Evaluated, check_evaluated, of_released
from dynquant.release.finished import Finished, check_same_model, picture_of_file
from dynquant.release.front import front_matter, hub_id
from dynquant.release.projectors import apart
from dynquant.report.html import page_of
from dynquant.report.picture import text_of

CARD = "README.md"

_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r"})
"""How coreutils escapes a file name in SHA256SUMS."""


@dataclass(frozen=True)
class Release:
    """The contents of a release.

    folder:  where the release is written
    models:  language models; projectors: what lets them see and hear
    texts:   files to write, by name, in this order
    links:   GGUFs and manifests, by name; they are linked if they are not in `folder` already
    sha256:  the hash of every file in SHA256SUMS, by name
    missing: warnings about what the card does not state, with the option that adds it
    """

    folder: Path
    models: tuple[Finished, ...]
    projectors: tuple[Finished, ...]
    texts: Mapping[str, bytes]
    links: Mapping[str, Path]
    sha256: Mapping[str, str]
    missing: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All files; the GGUFs come first."""
        return (*self.links, *self.texts)


def make_release(
    files: Sequence[Finished],
    *,
    folder: Path | None = None,
    repository: str | None = None,
    base_model: str | None = None,
    license_: str | None = None,
    evaluated: Evaluated | None = None,
    say: Callable[[str], None] | None = None,
) -> Release:
    """Return the contents of a release of one model's GGUFs, without writing it.

    files:      language models, and projectors for them
    folder:     where the release will be written; None uses the folder of the GGUFs
    repository: ORG/NAME that the files will be uploaded to
    base_model: ORG/NAME of the source; None uses the one recorded in the files
    license_:   of the files; None uses the license of the source
    evaluated:  an evaluation of the files; the folder gets a copy, the card its figures
    say:        called with a message for each file that is read to compute its hash

    Raises ReleaseError if the files are of several models, or in several folders without `folder`,
    or if the evaluation is of other files.
    """
    models, projectors = apart(files)
    check_same_model(models, projectors)
    where = _folder_of(files, folder)
    repository = repository and hub_id(repository, "--repository")
    base_model = base_model and hub_id(base_model, "--base-model")
    base_model = base_model or models[0].repository
    files = [*models, *projectors]
    recipes, own_recipes = recipe_files(files)
    pages = {m.stem: "plan.html" if len(files) == 1 else f"{m.stem}.plan.html" for m in files}
    manifests = {m.stem: m.manifest_path.name for m in files if m.manifest_path}
    drawn = {pages[m.stem]: page_of(picture_of_file(m)) for m in files}
    texts = recipes | {name: page.encode(errors="backslashreplace") for name, page in drawn.items()}
    links = {path.name: path for m in files for path in m.paths}
    links |= {m.manifest_path.name: m.manifest_path for m in files if m.manifest_path}
    sha256 = {path.name: h for m in files for path, h in zip(m.paths, m.sha256(say), strict=True)}
    unknown = check_evaluated(evaluated, sha256) if evaluated else []
    if evaluated and _is_same(where / EVALUATION, evaluated.path):
        links[EVALUATION] = evaluated.path
        sha256[EVALUATION] = _sha256(evaluated.content)
    elif evaluated:
        texts[EVALUATION] = evaluated.content
    for m in files:
        if m.manifest_path:
            sha256[m.manifest_path.name] = _sha256(m.manifest_path.read_bytes())
    sha256 |= {name: _sha256(content) for name, content in texts.items()}
    recipe_sha256 = {stem: sha256[name] for stem, name in own_recipes.items()}
    card = front_matter(
        models, projectors, license_=license_, base_model=base_model, repository=repository
    )
    card += "\n" + card_body(
        models,
        projectors,
        FileNames(own_recipes, manifests, pages, recipe_sha256),
        base_model=base_model,
        repository=repository,
        evaluation=of_released(evaluated.evaluation, links) if evaluated else None,
    )
    # The card is not in SHA256SUMS: people edit it later.
    texts[SUMS] = sums_text((h, name) for name, h in sha256.items()).encode(
        "utf-8", "surrogateescape"
    )
    texts[CARD] = card.encode("utf-8", "backslashreplace")
    missing = (*_missing(files, base_model, license_), *unknown)
    return Release(where, tuple(models), tuple(projectors), texts, links, sha256, missing)


def _missing(
    models: Sequence[Finished], base_model: str | None, license_: str | None
) -> Iterator[str]:
    for m in models:
        if m.manifest is None:
            yield f"{m.path}: has no manifest; the card will not show recipe, sources and errors"
    if base_model is None:
        yield f"{CARD}: does not name the source; add --base-model ORG/NAME"
    if not (license_ or text_of(models[0].keys, "general.license")):
        yield f"{CARD}: has no license, because the source states none; add --license ID"


def write_release(release: Release, *, force: bool) -> None:
    """Write a release; each file gets its name only when it is complete.

    force: replace existing files; GGUFs and manifests are linked, never written

    Raises ReleaseError, with all reasons, if existing files are in the way or writing fails.
    """
    folder = release.folder
    linked = {n: p for n, p in release.links.items() if not _is_same(folder / n, p)}
    ReleaseError.raise_any(_obstacles(release, linked, force))
    try:
        folder.mkdir(exist_ok=True)
        for name, path in linked.items():
            _link(path, folder / name)
        for name, content in release.texts.items():
            _write(content, folder / name)
    except OSError as e:
        raise ReleaseError(
            f"{e.filename or folder}: cannot be written: {e.strerror}; name another folder"
            " (--folder)"
        ) from e


def _obstacles(release: Release, linked: Mapping[str, Path], force: bool) -> list[str]:
    folder = release.folder
    if folder.exists() and not folder.is_dir():
        return [f"{folder}: is not a folder; name another one (--folder)"]
    if not folder.exists() and not folder.parent.is_dir():
        return [f"{folder.parent}: is not a folder; create it first, or name another one"]
    problems: list[str] = []
    for name in (*linked, *release.texts):
        path = folder / name
        if not os.path.lexists(path):
            continue
        if path.is_dir():
            problems.append(
                f"{path}: is a folder; remove it, or name another folder to write to (--folder)"
            )
        elif not force:
            problems.append(
                f"{path}: exists; replace it with --force, or name another folder with --folder"
            )
    return problems


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)


def _link(path: Path, to: Path) -> None:
    """Link a file: a hard link, or a symbolic link if disks or users differ."""
    part = to.with_name(to.name + ".part")
    part.unlink(missing_ok=True)
    try:
        part.hardlink_to(path.resolve())
    except OSError:
        part.symlink_to(path.resolve())
    part.replace(to)


def _write(content: bytes, path: Path) -> None:
    part = path.with_name(path.name + ".part")
    try:
        part.write_bytes(content)
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _folder_of(models: Sequence[Finished], folder: Path | None) -> Path:
    if folder is not None:
        return folder
    folders = dict.fromkeys(m.path.parent for m in models)
    if len(folders) > 1:
        raise ReleaseError(
            f"the files are in {len(folders)} folders: {', '.join(map(str, folders))}; name the"
            " folder of the release (--folder)"
        )
    return models[0].path.parent


def recipe_files(models: Sequence[Finished]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the recipe files by name, and the name of each GGUF's recipe file by its stem.

    A recipe is one file, with those that it extends. Recipes that several GGUFs share are written
    once. A recipe that extends no other is unchanged, so its file has the hash in the manifest.

    Raises ReleaseError if recipes cannot be written as one file.
    """
    files: dict[str, bytes] = {}
    own: dict[str, str] = {}
    problems: list[str] = []
    for m in models:
        if m.manifest is None:
            continue
        recipe = m.manifest.recipe
        try:
            content = _one_file(recipe).encode()
        except RecipeError as e:
            problems += (f"{m.manifest_path}: recipe {message}" for message in e.messages)
            continue
        stem = f"recipe-{_UNSAFE.sub('-', recipe.name).strip('.-') or 'unnamed'}"
        name, number = f"{stem}.yaml", 1
        while files.get(name, content) != content:
            number += 1
            name = f"{stem}-{number}.yaml"
        files[name] = content
        own[m.stem] = name
    ReleaseError.raise_any(problems)
    return files, own


def _one_file(recipe: RecipePart) -> str:
    if not recipe.extends:
        return recipe.text
    return resolved_text(recipe_of_texts([recipe.text, *recipe.extends], recipe.name))


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sums_text(files: Iterable[tuple[str, str]]) -> str:
    """Return SHA256SUMS as coreutils' sha256sum writes it; files: SHA-256 and name of each.

    In a line that starts with a backslash, line breaks and backslashes in the name are escaped.
    """
    return "".join(_sums_line(sha256, name) for sha256, name in files)


def unescaped_name(escaped: str) -> str:
    """Return the name that a line of SHA256SUMS escapes."""
    back = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}
    return re.sub(r"\\[\\nr]", lambda found: back[found[0]], escaped)


def _sums_line(sha256: str, name: str) -> str:
    escaped = name.translate(_ESCAPES)
    mark = "\\" if escaped != name else ""
    return f"{mark}{sha256}  {escaped}\n"


def release_json(release: Release) -> dict[str, Any]:
    """Return a release as `dynquant release --json` prints it; scripts depend on this form."""
    return {
        "folder": str(release.folder),
        "files": [
            {
                "name": name,
                "bytes": (release.folder / name).stat().st_size,
                "sha256": release.sha256.get(name),
            }
            for name in release.names
        ],
        "models": [_model_json(release, m) for m in release.models],
        "projectors": [_model_json(release, m) for m in release.projectors],
        "lacks": list(release.missing),
    }


def _model_json(release: Release, model: Finished) -> dict[str, Any]:
    return {
        "path": str(release.folder / model.path.name),
        "files": [path.name for path in model.paths],
        "architecture": model.architecture,
        "recipe": model.recipe,
        "bytes": model.file_bytes,
        "bits_per_weight": model.bits_per_weight,
        "type_counts": model.type_counts,
        "sha256": [release.sha256[path.name] for path in model.paths],
        "error": model.loss.weighted if model.loss else None,
    }
