"""Publish a release: a repository on the Hub gets its files, and a card with all that it has.

Each new GGUF is a commit, so an interrupted publication resumes with the next file. Everything
else is one last commit, which follows the state that it was made for: if somebody else commits in
the meantime, it is made again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynquant.checkpoint.hub import HubName
from dynquant.errors import PublishError
from dynquant.figures import size_text
from dynquant.publishing.changes import Change, Changes, Stored, make_changes
from dynquant.publishing.folder import ReleaseFolder, read_release
from dynquant.publishing.hub import MovedError, Repository
from dynquant.publishing.readme import CARD

_ATTEMPTS = 5
"""Last commits: other publications of the same repository each need one."""

Say = Callable[[str], None]


@dataclass(frozen=True)
class Published:
    """The result of a publication.

    repository: ORG/NAME; branch: its branch
    is_new:     whether the repository is created
    changes:    made or, in a dry run, to make
    commit:     the last commit; None in a dry run, and if nothing had to be changed
    others:     files of the folder that are not part of the release
    """

    repository: str
    branch: str
    is_new: bool
    changes: tuple[Change, ...]
    commit: str | None
    warnings: tuple[str, ...]
    others: tuple[str, ...]


def publish_release(
    folder: Path,
    name: HubName,
    *,
    private: bool = False,
    force: bool = False,
    dry_run: bool = False,
    say: Say | None = None,
) -> Published:
    """Upload a release folder to a repository on the Hub, which is created if it does not exist.

    name:    ORG/NAME, with the branch as its revision; a missing branch is created from main
    private: create a private repository
    force:   replace files that the repository has with other bytes
    dry_run: report the changes, and change nothing
    say:     called with a message for each file that is uploaded

    Raises PublishError for a folder that is no release, a repository of another model, anything
    that would be lost, and each failure of the Hub.
    """
    release = read_release(folder)
    repository = Repository(name)
    if not dry_run:
        repository.require_token()
    stored = repository.read(force=force)
    changes = _changes(release, stored, name, private, force)
    is_new = stored.commit is None and stored.is_private is None
    warnings = [*release.warnings, *changes.warnings]
    if is_new and not repository.has_token:
        warnings.append(f"{name}: no token was found; a private repository cannot be seen")
    _check_card(repository, changes)
    commit: str | None = None
    if not dry_run:
        if is_new:
            repository.create(private=private)
        if not stored.has_branch:
            repository.create_branch()
        commit = _write(release, repository, changes, force, say or _silent)
    return Published(
        name.repo,
        name.revision or "main",
        is_new,
        changes.files,
        commit,
        tuple(warnings),
        release.others,
    )


def _changes(
    release: ReleaseFolder, stored: Stored, name: HubName, private: bool, force: bool
) -> Changes:
    if private and stored.is_private is False:
        raise PublishError(
            f"{name}: exists and is public; make it private on its page, or leave out --private"
        )
    return make_changes(release, stored, repository=name.repo, where=str(name), force=force)


def _check_card(repository: Repository, changes: Changes) -> None:
    for change in changes.of("create", "update"):
        if change.name == CARD and change.file and isinstance(change.file.content, bytes):
            repository.check_card(change.file.content.decode())


def _write(
    release: ReleaseFolder, repository: Repository, changes: Changes, force: bool, say: Say
) -> str | None:
    operations: dict[str, Any] = {}
    sent: set[str] = set()
    large = [c for c in changes.of("create", "replace") if _is_gguf(c)]
    for number, change in enumerate(large, 1):
        assert change.file
        say(f"{change.name}: uploading {size_text(change.bytes)}, file {number} of {len(large)}")
        operations[change.name] = repository.addition(change.file)
        if change.action == "create":
            _add(repository, change.name, operations.pop(change.name))
            sent.add(change.name)
    for _ in range(_ATTEMPTS):
        stored = repository.read(force=force)
        changes = make_changes(
            release,
            stored,
            repository=repository.name.repo,
            where=str(repository.name),
            force=force,
        )
        waiting = changes.of("create", "update", "replace")
        deleted = [c.name for c in changes.of("delete")]
        PublishError.raise_any(
            f"{repository.name}: {c.name} was sent, but is not there; look at the repository's"
            " .gitignore, then run the same command again"
            for c in waiting
            if c.name in sent and c.action != "update"
        )
        if not waiting and not deleted:
            return stored.commit
        for c in waiting:
            if c.file and c.name not in operations:
                operations[c.name] = repository.addition(c.file)
        try:
            repository.commit(
                [operations[c.name] for c in waiting],
                deleted,
                f"Publish {', '.join(e.stem for e in release.entries)}",
                stored.commit,
            )
        except MovedError:
            say(f"{repository.name}: was changed in the meantime; reading it again")
            operations = {n: o for n, o in operations.items() if n.endswith(".gguf")}
        else:
            sent |= {c.name for c in waiting}
            operations.clear()
    raise _busy(repository)


def _add(repository: Repository, name: str, operation: Any) -> None:
    """Commit one new file; other commits may come first."""
    for _ in range(_ATTEMPTS):
        try:
            repository.commit([operation], (), f"Add {name}")
            return
        except MovedError:
            continue
    raise _busy(repository)


def _busy(repository: Repository) -> PublishError:
    return PublishError(
        f"{repository.name}: was changed {_ATTEMPTS} times in the meantime; run the same command"
        " again when nobody else writes to it"
    )


def _is_gguf(change: Change) -> bool:
    return change.name.endswith(".gguf")


def _silent(_: str) -> None:
    pass
