"""The folder of a release: what a publisher uploads, all beside each other."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dynquant.errors import ReleaseError
from dynquant.release.card import Beside, card_body
from dynquant.release.finished import Finished, check_same_model, picture_of_file
from dynquant.release.front import front_matter, hub_id
from dynquant.release.sums import SUMS, sums_text
from dynquant.report.html import page_of
from dynquant.report.picture import text_of

CARD = "README.md"

_UNSAFE = re.compile(r"[^\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Release:
    """What a release consists of.

    folder: where all of it is to be
    texts:  what is written, by file name, in this order
    links:  what is there already, or gets a second name in `folder`: GGUFs and manifests, by name
    sha256: of every file in SHA256SUMS, by name
    missing: what a reader of the card will look for in vain, and which option gives it
    """

    folder: Path
    made: tuple[Finished, ...]
    texts: Mapping[str, bytes]
    links: Mapping[str, Path]
    sha256: Mapping[str, str]
    missing: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All files, those that runtimes load first."""
        return (*self.links, *self.texts)


def make_release(
    made: Sequence[Finished],
    *,
    folder: Path | None = None,
    repository: str | None = None,
    base_model: str | None = None,
    license_: str | None = None,
    say: Callable[[str], None] | None = None,
) -> Release:
    """Return what a release of one model's GGUFs consists of; nothing is written.

    folder:     where it is to be; None: beside the GGUFs
    repository: ORG/NAME where the files will be; base_model: ORG/NAME of the source, where the
                files do not tell it
    license_:   of the files; None takes the source's
    say:        told of each file that has to be read for its hash

    Raises ReleaseError for files of several models, or in several folders without `folder`.
    """
    check_same_model(list(made))
    where = _folder_of(made, folder)
    repository = repository and hub_id(repository, "--repository")
    base_model = base_model and hub_id(base_model, "--base-model")
    base_model = base_model or made[0].repository
    recipes, own_recipes = _recipes(made)
    pages = {m.stem: "plan.html" if len(made) == 1 else f"{m.stem}.plan.html" for m in made}
    manifests = {m.stem: m.manifest_path.name for m in made if m.manifest_path}
    drawn = {pages[m.stem]: page_of(picture_of_file(m)) for m in made}
    texts = recipes | {name: page.encode(errors="backslashreplace") for name, page in drawn.items()}
    links = {path.name: path for m in made for path in m.paths}
    links |= {m.manifest_path.name: m.manifest_path for m in made if m.manifest_path}
    sha256 = {path.name: h for m in made for path, h in zip(m.paths, m.sha256(say), strict=True)}
    for m in made:
        if m.manifest_path:
            sha256[m.manifest_path.name] = _sha256(m.manifest_path.read_bytes())
    sha256 |= {name: _sha256(content) for name, content in texts.items()}
    card = front_matter(made, license_=license_, base_model=base_model, repository=repository)
    card += "\n" + card_body(
        made, Beside(own_recipes, manifests, pages), base_model=base_model, repository=repository
    )
    # The card is left out of the sums: people go on writing it.
    texts[SUMS] = sums_text((h, name) for name, h in sha256.items()).encode(
        "utf-8", "surrogateescape"
    )
    texts[CARD] = card.encode("utf-8", "backslashreplace")
    missing = tuple(_gaps(made, base_model, license_))
    return Release(where, tuple(made), texts, links, sha256, missing)


def _gaps(made: Sequence[Finished], base_model: str | None, license_: str | None) -> Iterator[str]:
    for m in made:
        if m.manifest is None:
            yield f"{m.path}: has no manifest: recipe, sources and errors are not told"
    if base_model is None:
        yield f"{CARD}: does not name the source; give --base-model ORG/NAME"
    if not (license_ or text_of(made[0].keys, "general.license")):
        yield f"{CARD}: has no license, the source does not tell it; give --license ID"


def write_release(release: Release, *, force: bool) -> None:
    """Write a release, each file under its name only when it is complete.

    force: replace what is there; GGUFs and manifests are never written, but linked

    Raises ReleaseError, with all reasons, if something is in the way or cannot be written.
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
        return [f"{folder}: is not a folder; name another one"]
    if not folder.exists() and not folder.parent.is_dir():
        return [f"{folder.parent}: is not a folder; make it first, or name another one"]
    problems: list[str] = []
    for name in (*linked, *release.texts):
        path = folder / name
        if not os.path.lexists(path):
            continue
        if path.is_dir():
            problems.append(f"{path}: is a folder; take it away, or name another one (--folder)")
        elif not force:
            problems.append(f"{path}: exists; --force replaces it, --folder names another folder")
    return problems


def _is_same(path: Path, other: Path) -> bool:
    return path.exists() and path.samefile(other)


def _link(path: Path, to: Path) -> None:
    """Give a file a second name: a hard link, or a symbolic one where disks or users differ."""
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


def _folder_of(made: Sequence[Finished], folder: Path | None) -> Path:
    if folder is not None:
        return folder
    folders = dict.fromkeys(m.path.parent for m in made)
    if len(folders) > 1:
        raise ReleaseError(
            f"the files are in {len(folders)} folders: {', '.join(map(str, folders))}; name the one"
            " to release in (--folder)"
        )
    return made[0].path.parent


def _recipes(made: Sequence[Finished]) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return recipes as files by name, and by GGUF (its stem) the name of its own recipe's file.

    What several share is there once. The bytes are the recipe's own, so that the file of one that
    extends nothing has the hash that the manifest tells.
    """
    files: dict[str, bytes] = {}
    own: dict[str, str] = {}
    for m in made:
        if m.manifest is None:
            continue
        recipe = m.manifest.recipe
        stem = f"recipe-{_UNSAFE.sub('-', recipe.name).strip('.-') or 'unnamed'}"
        texts = [recipe.text, *recipe.extends]
        found = _files_of(stem, texts)
        number = 1
        while any(files.get(name, content) != content for name, content in found.items()):
            number += 1
            found = _files_of(f"{stem}-{number}", texts)
        files |= found
        own[m.stem] = next(iter(found))
    return files, own


def _files_of(stem: str, texts: Sequence[str]) -> dict[str, bytes]:
    """Return a recipe's text by file name, and those that it extends."""
    names = (stem, *(f"{stem}.extends-{i}" for i in range(1, len(texts))))
    return {f"{name}.yaml": text.encode() for name, text in zip(names, texts, strict=True)}


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
