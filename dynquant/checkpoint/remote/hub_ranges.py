"""Ranges of a file on the Hugging Face Hub, requested through huggingface_hub.

Large files are stored elsewhere: the Hub redirects to a signed address, which expires. The address
is kept as long as it is valid, so that the Hub is asked once for many ranges:

    HEAD ENDPOINT/org/model/resolve/COMMIT/FILE    commit, ETag (of large files a sha256), size,
                                                   address
    GET  ADDRESS, Range: bytes=a-b                 206, Content-Range: bytes a-b/size, ETag

huggingface_hub repeats requests that fail (429, 5xx, connections that end), with increasing waits
or as long as the server asks for.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynquant.checkpoint.hub import HubName, hub_errors, is_sha256
from dynquant.errors import CheckpointError

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

WAIT = 1.0
"""Seconds before the first repetition, unless the server asks for another time."""

_BUSY = (408, 429, 500, 502, 503, 504)
_EXPIRED = (401, 403, 404, 410)
_TRIES = 5
_LONGEST_WAIT = 300.0
"""Seconds; limits of the Hub are counted in windows of five minutes."""

_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


@dataclass(frozen=True)
class _Place:
    """Where a file's bytes are, for a time.

    is_hub: whether the Hub itself sends them; it needs the token then, and its ETag is known
    """

    address: str
    is_hub: bool


class HubRanges:
    """Requests for one file of a model on the Hub."""

    def __init__(self, model: HubName, file: str) -> None:
        """Ask the Hub for size, hash and address.

        model: with its commit

        Raises CheckpointError if the file does not exist or the Hub cannot be reached.
        """
        assert model.revision is not None, "a commit"
        self.name = f"{model}/{file}"
        self._model = model
        self._file = file
        self._lock = threading.Lock()
        found = self._ask()
        if found.etag is None or found.size is None:
            raise CheckpointError(
                f"{self.name}: the Hub states no ETag or no size; download the model (without"
                " --stream)"
            )
        self.n_bytes: int = found.size
        self._etag: str = found.etag
        self.sha256 = found.etag if is_sha256(found.etag) else None
        self._place = self._place_of(found)
        self._tag_there: str | None = None

    def version(self) -> Mapping[str, str]:
        """Return commit and hash: they are compared at every request, so nothing is asked again."""
        return {
            "commit": self._model.revision or "",
            ("sha256" if self.sha256 else "ETag"): self._etag,
        }

    def fetch(self, offset: int, into: memoryview) -> int:
        """Request the bytes at `offset` once; return how many arrived."""
        from huggingface_hub import constants, errors
        from huggingface_hub.utils import (
            hf_raise_for_status,
            http_stream_backoff,  # pyright: ignore[reportUnknownVariableType]
        )

        place = self._place
        headers = {"Range": f"bytes={offset}-{offset + len(into) - 1}", **self._headers(place)}
        transport: Any = errors.HfHubHTTPError.__bases__[0]
        with (
            hub_errors(self._model, self.name),
            http_stream_backoff(
                "GET",
                place.address,
                headers=headers,
                timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
                base_wait_time=WAIT,
                retry_on_status_codes=_BUSY,
            ) as response,
        ):
            if response.status_code in _EXPIRED and not place.is_hub:
                self._renew(place)
                return 0
            if response.status_code != 416:
                hf_raise_for_status(response)
            self._check(response.status_code, response.headers, place, offset, len(into))
            done = 0
            try:
                for piece in response.iter_raw():
                    n = min(len(piece), len(into) - done)
                    into[done : done + n] = piece[:n]
                    done += n
            except transport:
                pass  # the connection ended: the rest is requested again
            return done

    def download(self, folder: Path) -> Path:
        """Download the whole file with huggingface_hub, which resumes that."""
        from huggingface_hub import (
            hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
        )

        with hub_errors(self._model, self.name):
            return Path(
                hf_hub_download(
                    self._model.repo,
                    self._file,
                    revision=self._model.revision,
                    local_dir=folder,
                    library_name="dynquant",
                )
            )

    def _check(
        self, status: int, headers: Mapping[str, str], place: _Place, offset: int, n: int
    ) -> None:
        """Raise CheckpointError unless an answer begins a range of the same version of the file."""
        if status == 200:
            raise CheckpointError(
                f"{self.name}: the server sends whole files only, no ranges; download the model"
                " (without --stream)"
            )
        found = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if status == 416 or (found is not None and int(found[3]) != self.n_bytes):
            size = f"now {found[3]}" if found is not None else "now fewer"
            raise self._changed(f"it had {self.n_bytes} bytes, {size}")
        tag = _plain(headers.get("ETag"))
        with self._lock:
            wanted = self._etag if place.is_hub else (self._tag_there or tag)
            self._tag_there = wanted
        if tag != wanted:
            raise self._changed(f"its ETag was {wanted}, and is {tag}")
        if found is None or int(found[1]) != offset or int(found[2]) >= offset + n:
            raise CheckpointError(
                f"{self.name}: asked for bytes {offset} to {offset + n - 1}, the server answers"
                f" {headers.get('Content-Range')!r}; download the model (without --stream)"
            )

    def _changed(self, how: str) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: changed while it was read: {how}; convert it again (--restart)"
        )

    def _ask(self) -> HfFileMetadata:
        """Ask the Hub for the facts of the file; busy servers are asked again."""
        from huggingface_hub import (
            errors,
            get_hf_file_metadata,  # pyright: ignore[reportUnknownVariableType]
            hf_hub_url,
        )

        url = hf_hub_url(self._model.repo, self._file, revision=self._model.revision)
        for tries in range(_TRIES):
            with hub_errors(self._model, self.name):
                try:
                    found = get_hf_file_metadata(url, library_name="dynquant")
                    break
                except errors.HfHubHTTPError as e:
                    if e.response.status_code not in _BUSY or tries == _TRIES - 1:
                        raise
                    time.sleep(_wait(e.response.headers.get("Retry-After"), tries))
        else:
            raise AssertionError("the last attempt returns or raises")
        if found.commit_hash not in (None, self._model.revision):
            raise self._changed(f"the commit is {found.commit_hash}")
        return found

    def _renew(self, expired: _Place) -> None:
        """Ask for another address in place of one that expired; the file must be the same."""
        with self._lock:
            if self._place is not expired:
                return  # another thread was first
            found = self._ask()
            if found.etag != self._etag:
                raise self._changed(f"its ETag was {self._etag}, and is {found.etag}")
            self._place = self._place_of(found)
            self._tag_there = None

    def _place_of(self, found: HfFileMetadata) -> _Place:
        from huggingface_hub import constants

        return _Place(found.location, found.location.startswith(f"{constants.ENDPOINT}/"))

    def _headers(self, place: _Place) -> dict[str, str]:
        from huggingface_hub.utils import (
            build_hf_headers,  # pyright: ignore[reportUnknownVariableType]
        )

        headers = build_hf_headers(token=None if place.is_hub else False, library_name="dynquant")
        return {**headers, "Accept-Encoding": "identity"}


def _plain(etag: str | None) -> str | None:
    return etag.removeprefix("W/").strip('"') if etag else None


def _wait(asked: str | None, tries: int) -> float:
    """Return the seconds to wait: as the server asks, or longer each time."""
    return min(float(asked), _LONGEST_WAIT) if asked and asked.isdigit() else WAIT * 2**tries
