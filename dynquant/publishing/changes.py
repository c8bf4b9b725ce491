"""What a publication changes in a repository: every file that is created, replaced or deleted."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dynquant.distribution import our_version
from dynquant.errors import PublishError
from dynquant.json_documents import document_text
from dynquant.publishing.card import abilities_of, card_part
from dynquant.publishing.document import DOCUMENT, Entry, FilePart, Publication, in_order
from dynquant.publishing.folder import LocalFile, ReleaseFolder, front_of
from dynquant.publishing.readme import (
    CARD,
    Readme,
    listed,
    merged_front,
    part_sha256,
    readme_text,
    value_text,
)
from dynquant.release.card import SUMS
from dynquant.release.folder import sums_text
from dynquant.release.front import is_hub_id, task_of

Action = Literal["create", "update", "replace", "keep", "delete"]


@dataclass(frozen=True)
class StoredFile:
    """A file in the repository.

    sha256:  of a large file; None for a file that git stores
    blob_id: git's hash of a small file
    """

    bytes: int
    sha256: str | None
    blob_id: str

    def has(self, file: LocalFile) -> bool:
        """Whether it has the bytes of another file."""
        if self.bytes != file.bytes:
            return False
        if self.sha256:
            return self.sha256 == file.sha256
        return self.blob_id == _git_hash(file.content)


def _git_hash(content: bytes | Path) -> str:
    found = content if isinstance(content, bytes) else content.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(found) + found).hexdigest()


@dataclass(frozen=True)
class Stored:
    """A repository as it is.

    commit:      its newest commit; None if the repository does not exist
    has_branch:  whether the branch exists; a new branch starts with the files of main
    is_private:  None if the repository does not exist
    files:       at the top of the repository, by name
    publication: None if nothing was published with dynquant
    """

    commit: str | None = None
    has_branch: bool = True
    is_private: bool | None = None
    files: Mapping[str, StoredFile] = field(default_factory=dict[str, StoredFile])
    publication: Publication | None = None
    readme: Readme | None = None


@dataclass(frozen=True)
class Change:
    """What happens to one file.

    action: update is for card, checksums and document, which every publication writes again
    file:   None if it is deleted
    """

    name: str
    action: Action
    bytes: int
    file: LocalFile | None = None


@dataclass(frozen=True)
class Changes:
    """All changes of a publication, and warnings; the GGUFs come first, deletions last."""

    files: tuple[Change, ...]
    warnings: tuple[str, ...]

    def of(self, *actions: Action) -> tuple[Change, ...]:
        """Return the changes of some kinds."""
        return tuple(c for c in self.files if c.action in actions)


def make_changes(
    release: ReleaseFolder, stored: Stored, *, repository: str, where: str, force: bool
) -> Changes:
    """Return what a publication changes.

    repository: ORG/NAME; where: what messages call it
    force:      files and edits in the repository may be replaced, and replaced models' files
                deleted

    Raises PublishError if the repository is of another model, or, without `force`, if anything
    would be lost; all reasons are reported.
    """
    front = front_of(release, release.entries)
    PublishError.raise_any(_other_models(release, stored, front, where))
    warnings: list[str] = []
    known = list(stored.publication.entries) if stored.publication else []
    stems = {e.stem for e in release.entries}
    replaced = [e for e in known if e.stem in stems]
    kept: list[Entry] = []
    for e in known:
        if e.stem in stems:
            continue
        if gone := [f.name for f in e.files if not _is_there(f, stored)]:
            warnings.append(f"{where}: {gone[0]} was removed or changed; {e.stem} leaves the card")
            continue
        kept.append(e)
    files, entries = _with_free_names(release, stored, kept, replaced)
    entries = in_order([*kept, *entries])
    changes = [_change(file, stored) for file in files.values()]
    problems = [_conflict(c.name, where) for c in changes if c.action == "replace"]
    used = {f.name for e in entries for f in e.every_file()}
    unused = {f.name for e in replaced for f in e.every_file()} - used
    deleted = [
        Change(name, "delete", stored.files[name].bytes)
        for name in sorted(unused & {*stored.files})
    ]
    problems += [
        f"{where}: {c.name} belongs to a model that this release replaces, and would be deleted;"
        " --force deletes it"
        for c in deleted
    ]
    texts, more, edits = _texts(stored, entries, used, front, repository, where, force)
    warnings += more
    if not force:
        PublishError.raise_any([*problems, *edits])
    return Changes(
        (*changes, *(_change(t, stored, "update") for t in texts), *deleted), tuple(warnings)
    )


def _is_there(file: FilePart, stored: Stored) -> bool:
    found = stored.files.get(file.name)
    return found is not None and found.bytes == file.bytes and found.sha256 in (None, file.sha256)


def _change(file: LocalFile, stored: Stored, different: Action = "replace") -> Change:
    found = stored.files.get(file.name)
    action = "create" if found is None else "keep" if found.has(file) else different
    return Change(file.name, action, file.bytes, file)


def _conflict(name: str, where: str) -> str:
    return (
        f"{where}: {name} exists with other bytes; publish under another file name, or replace it"
        " with --force"
    )


def _with_free_names(
    release: ReleaseFolder, stored: Stored, kept: Sequence[Entry], replaced: Sequence[Entry]
) -> tuple[dict[str, LocalFile], list[Entry]]:
    """Return files and entries with recipes named so that no other model's recipe is replaced."""
    theirs = {e.recipe_file.name for e in kept if e.recipe_file}
    ours = {e.recipe_file.name for e in replaced if e.recipe_file} - theirs
    files: dict[str, LocalFile] = {}
    names: dict[str, str] = {}
    recipes = {e.recipe_file.name for e in release.entries if e.recipe_file}
    for name, file in release.files.items():
        free, number = name, 1
        while (
            name in recipes
            and free not in ours
            and (_is_taken(free, file, stored) or free in files)
        ):
            number += 1
            free = f"{name.removesuffix('.yaml')}-{number}.yaml"
        names[name] = free
        files[free] = LocalFile(free, file.content, file.bytes, file.sha256)
    entries = [
        e.model_copy(update={"recipe_file": files[names[e.recipe_file.name]].part()})
        if e.recipe_file
        else e
        for e in release.entries
    ]
    return files, entries


def _is_taken(name: str, file: LocalFile, stored: Stored) -> bool:
    found = stored.files.get(name)
    return found is not None and not found.has(file)


def _texts(
    stored: Stored,
    entries: Sequence[Entry],
    used: set[str],
    front: Mapping[str, Any],
    repository: str,
    where: str,
    force: bool,
) -> tuple[list[LocalFile], list[str], list[str]]:
    """Return card, checksums and document, warnings, and what --force would replace."""
    publication, readme = stored.publication, stored.readme
    projectors = [e for e in entries if e.kind == "projector"]
    if able := abilities_of(projectors):
        front = {**front, "pipeline_tag": task_of(able, embeds=False)}
    front = {**front, "quantized_by": repository.partition("/")[0]}
    recorded = dict(publication.front) if publication else {}
    merged, warnings = merged_front(
        front,
        readme.front if readme else {},
        recorded,
        where=f"{where}: {CARD}",
        force=force,
    )
    others = {
        name: (file.bytes, file.sha256)
        for name, file in sorted(stored.files.items())
        if name.endswith(".gguf") and name not in used
    }
    base = str(merged.get("base_model"))
    part = card_part(entries, others, repository, base if is_hub_id(base) else None)
    edits: list[str] = []
    if readme and readme.part is not None:
        written = publication.card_sha256 if publication else None
        if part_sha256(readme.part) not in (written, part_sha256(part)):
            edits.append(
                f"{where}: {CARD} was edited between the marks of dynquant; move the text above or"
                " below them, or replace it with --force"
            )
    document = Publication(
        published=1,
        dynquant=our_version(),
        card_sha256=part_sha256(part),
        front=recorded | {key: value_text(value) for key, value in front.items()},
        entries=list(entries),
    )
    parts = {f.name: f for e in entries for f in e.every_file()}
    sums = sums_text((f.sha256, f.name) for f in parts.values())
    texts = [
        _text_file(SUMS, sums),
        _text_file(DOCUMENT, document_text(document)),
        _text_file(CARD, readme_text(readme, merged, part)),
    ]
    if publication is None:
        edits += [
            _conflict(t.name, where)
            for t in texts
            if t.name != CARD and _is_taken(t.name, t, stored)
        ]
    return texts, warnings, edits


def _text_file(name: str, text: str) -> LocalFile:
    content = text.encode("utf-8", "backslashreplace")
    return LocalFile(name, content, len(content), hashlib.sha256(content).hexdigest())


def _other_models(
    release: ReleaseFolder, stored: Stored, front: Mapping[str, Any], where: str
) -> Iterator[str]:
    """Yield how the repository is of another model than the release."""
    end = "; publish to another repository"
    mine = next(e for e in release.entries if e.kind == "model")
    theirs = listed(stored.readme.front.get("base_model")) if stored.readme else []
    ours = listed(front.get("base_model"))
    if ours and theirs and not {*ours} & {*theirs}:
        yield f"{where}: is of {theirs[0]!r}, but the release is of {ours[0]!r}{end}"
        return
    known = stored.publication.entries if stored.publication else []
    for e in known:
        if e.kind != "model":
            continue
        for what, own, its in (
            ("architecture", mine.architecture, e.architecture),
            ("source", mine.base_model or e.base_model, e.base_model or mine.base_model),
            ("embedding", mine.embedding, e.embedding),
        ):
            if own != its:
                yield (
                    f"{where}: is of another model: {e.stem} has {what} {its!r}, the release"
                    f" {own!r}{end}"
                )
                return
