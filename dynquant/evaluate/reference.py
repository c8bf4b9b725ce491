"""A reference: a store with the distributions of a model at each position of a text.

Its header says of which model, text, tokens and context it is, and which build of llama.cpp
computed it. Files are compared with a reference only if all of that fits them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import numpy as np
from pydantic import Field, ValidationError

from dynquant.errors import EvalError
from dynquant.evaluate.distributions import Distributions
from dynquant.evaluate.store import Store
from dynquant.evaluate.texts import SMALLEST_CONTEXT, Windows, n_scored
from dynquant.json_documents import Count, FileName, Part, Sha256

WINDOWS, TOKENS = "windows", "tokens"
"""The series of distributions, a piece for each window; and that of the token ids, one piece."""


class FilePart(Part):
    """A file of a model."""

    name: FileName
    """Name of the file."""
    bytes: Count
    """Size of the file."""
    sha256: Sha256
    """Hash of the file."""


class ModelPart(Part):
    """A GGUF that is a reference."""

    name: str
    """What the user calls the model: the name of its first file or of its checkpoint's folder."""
    architecture: str
    """general.architecture of the file."""
    files: Annotated[list[FilePart], Field(min_length=1)]
    """The file, or all shards in order."""
    n_tokens: Annotated[int, Field(gt=0, lt=2**24)]
    """Tokens of the vocabulary."""
    vocabulary_sha256: Sha256
    """Hash of the tokens' texts, each preceded by its length as a 32-bit number."""


class TextPart(Part):
    """A text, which is one domain of the figures."""

    name: str
    """Name of the text's file."""
    sha256: Sha256
    """Hash of the text's bytes."""
    windows: Count
    """Windows of the text that are used, from its beginning."""


class EnginePart(Part):
    """The program that computes: part of what a reference is."""

    wheel: str
    """Package and version."""
    version: str
    """Version that llama.cpp reports."""
    commit: str
    """Commit that llama.cpp reports."""
    gpu_layers: Count
    """Layers that a GPU computes."""


class Header(Part):
    """What a reference is of."""

    reference: Literal[1]
    """Version of this form."""
    model: ModelPart
    """The model."""
    texts: Annotated[list[TextPart], Field(min_length=1)]
    """The texts, in order."""
    context: Annotated[int, Field(ge=SMALLEST_CONTEXT, le=1 << 24)]
    """Tokens of a window."""
    tokens_sha256: Sha256
    """Hash of all windows' token ids, little-endian int32."""
    tail: Annotated[float, Field(ge=0, lt=1)]
    """Limit on the probability of the tokens that are kept as a random sample."""
    engine: EnginePart
    """What computed the distributions."""

    @property
    def n_windows(self) -> int:
        """Return the number of windows of all texts."""
        return sum(text.windows for text in self.texts)


def read_header(store: Store) -> Header:
    """Return the header of a reference, which anybody may have written.

    Control characters are escaped: terminals obey those of a name.
    """
    if "results" in store.header:
        raise EvalError(
            f"{store.path}: has the results of files, not the reference; give the file that ends in"
            " .reference"
        )
    try:
        return Header.model_validate(_printable(store.header))
    except ValidationError as e:
        first = e.errors(include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise EvalError(
            f"{store.path}: is not a reference of this version of dynquant ({where}:"
            f" {first['msg']}); make it again"
        ) from e


def _printable(value: Any) -> Any:
    """Return a JSON value whose texts have no control characters."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    if isinstance(value, list):
        return [_printable(item) for item in cast(list[Any], value)]
    if isinstance(value, dict):
        return {key: _printable(item) for key, item in cast(dict[str, Any], value).items()}
    return value


def windows_of(store: Store, header: Header) -> Windows:
    """Return the windows of a reference; raise EvalError if they are not those of its header."""
    content = store.get(TOKENS, 0) or b""
    n = header.n_windows
    if not n or len(content) != 4 * n * header.context:
        raise EvalError(f"{store.path}: its tokens are damaged; make the reference again")
    tokens = np.frombuffer(content, "<i4").astype(np.int32).reshape(n, header.context)
    texts = tuple(i for i, text in enumerate(header.texts) for _ in range(text.windows))
    windows = Windows(tokens, texts)
    is_valid = 0 <= tokens.min() <= tokens.max() < header.model.n_tokens
    if windows.sha256 != header.tokens_sha256 or not is_valid:
        raise EvalError(f"{store.path}: its tokens are damaged; make the reference again")
    return windows


def distributions_of(store: Store, header: Header, number: int) -> Distributions:
    """Return the distributions of a window; raise EvalError if they are missing or damaged."""
    content = store.get(WINDOWS, number)
    if content is None:
        raise EvalError(f"{store.path}: window {number} is missing; make the reference again")
    where = f"{store.path}: window {number}"
    found = Distributions.from_bytes(content, header.model.n_tokens, where)
    if len(found) != (n := n_scored(header.context)):
        raise EvalError(f"{where}: has {len(found)} positions, not {n}; make the reference again")
    return found


@dataclass(frozen=True)
class Completed:
    """A reference that has all windows.

    sha256: of its distributions, window after window
    """

    path: Path
    header: Header
    windows: Windows
    sha256: str

    def to_json(self) -> dict[str, Any]:
        """Return the header and the hash."""
        return self.header.model_dump() | {"distributions_sha256": self.sha256}
