"""A repository on the Hugging Face Hub, through huggingface_hub, which is imported when needed.

The library finds the token (HF_TOKEN, or `hf auth login`), repeats requests that fail for a
moment, splits large files, and sends no part that the Hub has.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, cast

from dynquant.checkpoint.hub import HubName
from dynquant.distribution import requirement
from dynquant.errors import PublishError
from dynquant.json_documents import MAX_BYTES, parse_document
from dynquant.publishing.changes import Stored, StoredFile
from dynquant.publishing.document import DOCUMENT, VERSION, Publication
from dynquant.publishing.folder import LocalFile
from dynquant.publishing.readme import CARD, Readme, read_readme
from dynquant.untrusted import read_regular

MAIN = "main"

_MAX_CARD = 1 << 22
_SIGN_IN = "sign in (`hf auth login`, or HF_TOKEN)"
_RESUME = "run the same command again, which resumes"


class MovedError(Exception):
    """Another commit was made in the meantime."""


class Repository:
    """A branch of a model's repository.

    name: with the branch as its revision
    """

    def __init__(self, name: HubName) -> None:
        try:
            import huggingface_hub
        except ImportError as e:
            raise PublishError(
                f"{name}: huggingface_hub is not installed; pip install '{requirement('hub')}'"
            ) from e
        self.name = name
        self._branch = name.revision or MAIN
        self._hub: Any = huggingface_hub
        self._api: Any = huggingface_hub.HfApi(library_name="dynquant")

    @property
    def has_token(self) -> bool:
        """Whether requests are made in the name of a user."""
        return self._hub.get_token() is not None

    def require_token(self) -> None:
        """Raise PublishError if there is no token."""
        if not self.has_token:
            raise PublishError(
                f"{self.name}: no token was found; {_SIGN_IN} with a token that may write"
            )

    def read(self, *, force: bool) -> Stored:
        """Return the repository as it is.

        force: a damaged document counts as missing
        """
        errors = self._hub.errors
        with self._reported("cannot be read"):
            try:
                info = self._api.repo_info(self.name.repo, revision=self._branch)
                has_branch = True
            except errors.GatedRepoError:
                raise
            except errors.RepositoryNotFoundError:
                return Stored(has_branch=self._branch == MAIN)
            except errors.RevisionNotFoundError:
                if self._branch == MAIN or self._branch.startswith("refs/"):
                    raise
                info = self._api.repo_info(self.name.repo)
                has_branch = False
            commit = cast("str | None", info.sha)
            files = self._files(commit) if commit else {}
            document, card = self._texts(files, commit)
        publication: Publication | None = None
        readme: Readme | None = None
        where = f"{self.name}: "
        if document is not None:
            try:
                publication = parse_document(
                    document, where + DOCUMENT, Publication, "published", VERSION, PublishError
                )
            except PublishError:
                if not force:
                    raise
        if card is not None:
            readme = read_readme(card.decode("utf-8", "replace"), where + CARD)
        return Stored(commit, has_branch, bool(info.private), files, publication, readme)

    def _files(self, commit: str) -> dict[str, StoredFile]:
        found: dict[str, StoredFile] = {}
        for item in self._api.list_repo_tree(self.name.repo, revision=commit):
            if isinstance(item, self._hub.hf_api.RepoFile):
                sha256 = item.lfs.sha256 if item.lfs else None
                found[item.path] = StoredFile(item.size, sha256, item.blob_id)
        return found

    def _texts(
        self, files: dict[str, StoredFile], commit: str | None
    ) -> tuple[bytes | None, bytes | None]:
        """Return document and card, each None if the repository does not have it."""
        found: list[bytes | None] = []
        with tempfile.TemporaryDirectory() as cache:
            for name, at_most in ((DOCUMENT, MAX_BYTES), (CARD, _MAX_CARD)):
                if name not in files:
                    found.append(None)
                    continue
                if files[name].bytes > at_most:
                    raise PublishError(f"{self.name}: {name} is too large; remove it first")
                path = self._api.hf_hub_download(
                    self.name.repo, name, revision=commit, cache_dir=cache
                )
                found.append(read_regular(Path(path).resolve(), at_most))
        return found[0], found[1]

    def create(self, *, private: bool) -> None:
        """Create the repository; without `private`, the organization's default applies."""
        with self._reported("cannot be created"):
            self._api.create_repo(self.name.repo, private=private or None, exist_ok=True)

    def create_branch(self) -> None:
        """Create the branch, with the files of main."""
        with self._reported(f"branch {self._branch!r} cannot be created"):
            self._api.create_branch(self.name.repo, branch=self._branch, exist_ok=True)

    def check_card(self, text: str) -> None:
        """Raise PublishError if the Hub does not accept a card, before long uploads."""
        with self._reported(f"{CARD} is not accepted"):
            self._hub.ModelCard(text).validate()

    def addition(self, file: LocalFile) -> Any:
        """Return the operation that adds a file in a commit; a GGUF is uploaded already.

        Raises PublishError if the SHA-256 of an uploaded file is not the expected one.
        """
        content = file.content
        if isinstance(content, bytes):
            return self._hub.CommitOperationAdd(file.name, content)
        with self._reported(f"{file.name} cannot be uploaded"):
            operation = self._hub.CommitOperationAdd(file.name, content)
            self._api.preupload_lfs_files(
                self.name.repo, [operation], revision=self._branch, free_memory=False
            )
            sha256 = operation.upload_info.sha256.hex()
        if sha256 != file.sha256:
            raise PublishError(
                f"{content}: has another SHA-256 than the release states and is not published;"
                " write the release again"
            )
        return operation

    def commit(
        self,
        operations: Sequence[Any],
        deleted: Sequence[str],
        message: str,
        parent: str | None = None,
    ) -> str:
        """Make a commit and return its hash.

        parent: the commit that it must follow; None is any

        Raises MovedError if the branch has another commit than `parent`.
        """
        removing = [self._hub.CommitOperationDelete(name) for name in deleted]
        with self._reported("cannot be written"):
            try:
                made = self._api.create_commit(
                    self.name.repo,
                    [*operations, *removing],
                    commit_message=message,
                    revision=self._branch,
                    parent_commit=parent,
                )
            except self._hub.errors.HfHubHTTPError as e:
                if _status(e) in (409, 412):
                    raise MovedError from e
                raise
            return made.oid

    @contextlib.contextmanager
    def _reported(self, what: str) -> Generator[None]:
        """Raise each error of the library as a PublishError of one line."""
        errors = self._hub.errors
        # The base class is the HTTP library's error, whichever library is used. OSError and
        # ValueError are errors of files and answers, RuntimeError is raised by uploads.
        http_error = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
        try:
            yield
        except errors.OfflineModeIsEnabled as e:
            raise PublishError(f"{self.name}: HF_HUB_OFFLINE is set; unset it to publish") from e
        except (OSError, ValueError, RuntimeError, http_error) as e:
            raise PublishError(f"{self.name}: {self._reason(_cause(e), what)}") from e

    def _reason(self, e: BaseException, what: str) -> str:
        errors = self._hub.errors
        status = _status(e)
        organization = self.name.repo.partition("/")[0]
        if isinstance(e, errors.RevisionNotFoundError):
            return f"has no revision {self._branch!r}; name a branch"
        if status == 401:
            return f"{what}: the Hub does not accept the token; {_SIGN_IN} again"
        if status == 403:
            return (
                f"{what}: the token has no permission to write to {organization!r}; use a token"
                f" with that permission: {_one_line(e)}"
            )
        if isinstance(e, errors.RepositoryNotFoundError):
            return f"{what}: the repository does not exist, or the token has no access to it"
        if status == 429:
            return f"{what}: the Hub received too many requests{_wait(e)}; wait, then {_RESUME}"
        if status is not None and status >= 500:
            return f"{what}: the Hub failed with {status}; {_RESUME}"
        if status is None and not isinstance(e, ValueError):
            return f"{what}: the connection failed: {_one_line(e)}; {_RESUME}"
        return f"{what}: {_one_line(e)}"


def _cause(e: BaseException) -> BaseException:
    """Return the error that an upload or a download wraps, or the error itself."""
    wraps = isinstance(e, RuntimeError | FileNotFoundError)
    return e.__cause__ if wraps and e.__cause__ else e


def _status(e: BaseException) -> int | None:
    """Return the status of an HTTP answer, or None for an error without an answer."""
    return getattr(getattr(e, "response", None), "status_code", None)


def _wait(e: BaseException) -> str:
    seconds: str = getattr(e, "response").headers.get("Retry-After", "")  # noqa: B009
    return f" (limit ends in {seconds} s)" if seconds.isdecimal() else ""


def _one_line(e: BaseException) -> str:
    return " ".join(str(e).split()) or type(e).__name__
