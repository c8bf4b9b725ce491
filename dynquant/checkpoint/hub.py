"""Models on the Hugging Face Hub: hf://org/model, fetched by huggingface_hub into its cache.

The library is an optional extra and is imported only for such names. It finds the token (HF_TOKEN,
or `hf auth login`), resumes interrupted downloads, shows progress on stderr, and uses its cache if
the Hub cannot be reached.
"""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import cast

from dynquant.checkpoint.gguf_shards import shard_names
from dynquant.distribution import requirement
from dynquant.errors import CheckpointError
from dynquant.keys import Keys, string

DESCRIPTION = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "README.md")
"""Files that a conversion reads besides the weights: config, tokenizer, chat templates, card."""

_ELSEWHERE = ("*/*.json", "*/*.model", "*/*.tiktoken", "*/*.txt", "*/README.md")
"""The same files, except templates, in subfolders: those belong to other forms of the model."""

_NAME = re.compile(
    r"hf:/{1,2}"  # pathlib reduces two slashes to one
    r"(?P<repo>[\w.-]+/[\w.-]+)"
    r"(@(?P<revision>refs/[^/@]+/[^/@]+|[^@]+?))?"
    r"(/(?P<file>[^@]+\.gguf))?/?",
    re.ASCII,
)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SIGN_IN = "sign in (`hf auth login`, or HF_TOKEN)"


@dataclass(frozen=True)
class HubName:
    """A model on the Hub, or a GGUF in its repository.

    revision: a branch, tag or commit; None is main
    file:     path of the GGUF in the repository
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf://{self.repo}{at}" + (f"/{self.file}" if self.file else "")


def is_hub_name(text: str) -> bool:
    """Whether a text is the name of a model on the Hub and not a path."""
    return text.startswith("hf:/")


def refuse_address(text: str) -> None:
    """Raise CheckpointError for the address of a web page, with the name to give instead."""
    if re.match(r"https?:/", text):
        page = re.match(r"https?:/+(?:huggingface\.co|hf\.co)/([\w.-]+/[\w.-]+)", text, re.ASCII)
        name = f"hf://{page[1]}" if page else "hf://ORG/MODEL for a model on the Hub"
        raise CheckpointError(f"{text}: is the address of a page; write {name}")


def parse_hub_name(text: str) -> HubName:
    """Parse hf://org/model[@revision][/file.gguf]; raise CheckpointError for other forms."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise CheckpointError(
            f"{text}: is not the name of a model on the Hub; write hf://ORG/MODEL,"
            " hf://ORG/MODEL@REVISION or hf://ORG/MODEL/FILE.gguf"
        )
    return HubName(found["repo"], found["revision"], found["file"])


def fetch_description(name: HubName) -> tuple[Path, HubName]:
    """Fetch all files but the weights; return the folder, and the name with its commit.

    Raises CheckpointError with one line if the library or the Hub fails, as all `fetch_` functions.
    """
    folder = _snapshot(name, DESCRIPTION, _ELSEWHERE)
    return folder, _pinned(name, folder)


def fetch_names(name: HubName, patterns: Iterable[str]) -> tuple[Path, HubName]:
    """Fetch files by patterns; return the folder of the commit, and the name with its commit."""
    folder = _snapshot(name, patterns)
    return folder, _pinned(name, folder)


def fetch_files(name: HubName, files: Iterable[str]) -> Path:
    """Fetch files by their names in the repository; return the folder that contains them.

    Raises CheckpointError also for files that are not in the repository.
    """
    wanted = list(files)
    folder = _snapshot(name, [escape(file) for file in wanted])
    left = [file for file in wanted if not (folder / file).exists()]
    if left:
        raise absent(name, left)
    return folder


def fetch_adapter(name: HubName, files: Iterable[str]) -> Path:
    """Fetch files of an adapter, those that the repository has; return the folder."""
    return _snapshot(name, [escape(file) for file in files])


def fetch_unlisted(name: HubName) -> Path:
    """Fetch the weights of a model without an index: one file, or shards with numbers.

    Returns the folder that contains them; raises CheckpointError also if there are none.
    """
    single, shards = "model.safetensors", "model-*-of-*.safetensors"
    folder = _snapshot(name, [single, shards])
    if not (folder / single).exists() and not any(folder.glob(shards)):
        raise absent(name, [single])
    return folder


def absent(name: HubName, files: Iterable[str]) -> CheckpointError:
    """Return the error for files that a repository does not have."""
    return CheckpointError(
        f"{name}: has no {', '.join(files)}; to take a GGUF of a repository, write"
        " hf://ORG/MODEL/FILE.gguf"
    )


def fetch_gguf(name: HubName) -> tuple[Path, HubName]:
    """Fetch a GGUF and its shards; return its path, and the name with its commit."""
    assert name.file is not None
    parent, slash, last = name.file.rpartition("/")
    folder = fetch_files(name, [parent + slash + n for n in shard_names(last) or [last]])
    return folder / name.file, _pinned(name, folder)


def source_keys(name: HubName) -> Keys:
    """Return the keys that record the origin of a fetched model; name: with its commit."""
    from huggingface_hub import constants

    return {
        "general.source.repo_url": string(f"{constants.ENDPOINT}/{name.repo}"),
        "dynquant.source": string(str(replace(name, revision=None))),
        "dynquant.source_revision": string(name.revision or ""),
    }


def is_sha256(text: str) -> bool:
    """Whether an ETag is a sha256, as those of large files are."""
    return _SHA256.fullmatch(text) is not None


def known_sha256(path: Path) -> str | None:
    """Return the sha256 that the Hub published for a fetched file; None if it is not known.

    In the library's cache, a file is a link to a file that is named by its hash. For files fetched
    by `hf download --local-dir`, their ETag is stored in a metadata file, which is valid until the
    file is modified. Both are a sha256 for large files and a git hash for small ones.
    """
    try:
        target = path.resolve()
        if path.is_symlink() and target.parent.name == "blobs" and _SHA256.fullmatch(target.name):
            return target.name
        place = path.absolute()
        for folder in place.parents[:2]:
            beside = folder / ".cache/huggingface/download" / place.relative_to(folder)
            metadata = beside.with_name(beside.name + ".metadata")
            if metadata.is_file():
                return _fetched_sha256(metadata, path.stat().st_mtime)
    except (OSError, ValueError):
        pass  # metadata that cannot be read count as missing
    return None


def _fetched_sha256(metadata: Path, modified: float) -> str | None:
    """Return the ETag if it is a sha256 and was recorded after the file was written.

    The lines are commit, ETag and time; a difference of one second is allowed, as in the library.
    """
    with metadata.open(encoding="utf-8") as file:
        _, etag, noted, *_ = file.read(4096).split("\n")
    is_current = modified - 1 <= float(noted)
    return etag if is_current and _SHA256.fullmatch(etag) else None


def _pinned(name: HubName, folder: Path) -> HubName:
    return replace(name, revision=folder.name)  # the cache names a snapshot by its commit


def _snapshot(name: HubName, allow: Iterable[str], ignore: Iterable[str] = ()) -> Path:
    check_library(name)
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]

    with hub_errors(name):
        return Path(
            snapshot_download(
                name.repo,
                revision=name.revision,
                allow_patterns=list(allow),
                ignore_patterns=list(ignore) or None,
                library_name="dynquant",
            )
        )


def check_library(name: HubName) -> None:
    """Raise CheckpointError if huggingface_hub is not installed."""
    try:
        import huggingface_hub  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as e:
        raise CheckpointError(
            f"{name}: huggingface_hub is not installed; pip install '{requirement('hub')}'"
        ) from e


@contextmanager
def hub_errors(name: HubName, what: str | None = None) -> Generator[None]:
    """Raise CheckpointError with one line in place of the errors of huggingface_hub.

    name: the model; what: the file that is read, if it is one
    """
    from huggingface_hub import errors

    # The base class is the HTTP library's error, whichever library is used. OSError and ValueError
    # are errors of files and addresses, RuntimeError is raised by hf_xet.
    http_error = cast("type[Exception]", errors.HfHubHTTPError.__bases__[0])
    try:
        yield
    except errors.GatedRepoError as e:
        raise CheckpointError(
            f"{name}: is gated; request access on its page, then {_SIGN_IN}"
        ) from e
    except errors.RepositoryNotFoundError as e:
        raise CheckpointError(
            f"{name}: does not exist or is private; correct the name, or {_SIGN_IN}"
        ) from e
    except errors.RevisionNotFoundError as e:
        raise CheckpointError(f"{name}: the model has no such revision") from e
    except errors.LocalEntryNotFoundError as e:
        raise CheckpointError(
            f"{name}: the Hub cannot be reached, and the cache does not contain the whole model:"
            f" {_one_line(e.__cause__ or e)}"
        ) from e
    except (OSError, ValueError, RuntimeError, http_error) as e:
        raise CheckpointError(f"{what or name}: cannot be fetched: {_one_line(e)}") from e


def _one_line(e: BaseException) -> str:
    text = " ".join(str(e).split())
    return f"{type(e).__name__}: {text}" if text else type(e).__name__
