"""The second moments of a model's activations: what error feedback needs beside an imatrix.

An input is what several matrices are multiplied by: Q, K and V have one, and so have gate and up.
For each input x of n channels, with H = E[x xᵀ] over the tokens of a text, a safetensors file has:

    <input>.squares       F32 [n_matrices, n]        H's diagonal; of experts, a row for each
    <input>.counts        F32 [n_matrices]           tokens behind each row
    <input>.correlations  F16 [n_moments, n (n-1)/2] H[i, j] / sqrt(H[i, i] H[j, j]) for i < j, row
                                                     after row; of all experts together, or of each
    <input>.held_out      F32 [n_moments, 256, n]    S, where H' = Sᵀ S estimates the moments of
                                                     the windows that are held out

Squares and counts are of all windows, correlations of those that are not held out. S has the sums
of x over the held-out tokens with 256 random signs for each, in 512 / n of the bytes of H'. For the
errors E of a matrix, tr(E Sᵀ S Eᵀ) is tr(E H' Eᵀ) without bias. Its relative error is about
sqrt(2 / (256 r)), where r directions share the sum: 9 % if one token rules, below 1 % if many do.
Two matrices that are judged by the same S have most of this error in common.

The metadata of the file has `format` = "dynquant.moments.1", `inputs` (JSON: the names of the
tensors of each input), `hashes` (JSON: XXH3-128 of each input's bytes), and where the file is from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open

from dynquant.arrays import F32
from dynquant.checkpoint.gguf import read_gguf
from dynquant.errors import CheckpointError, ImportanceError
from dynquant.importance.legacy import read_legacy
from dynquant.untrusted import open_regular

FORMAT = "dynquant.moments.1"

N_SIGNS = 256
"""Rows of S."""

_NUMPY = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_NO_HASH = "0" * 32
_PIECE = 1 << 24  # bytes that are hashed at a time
_HEAD = 1 << 12  # bytes in which a header names its format
_MOST = 100 << 20  # bytes of a header that safetensors reads


@dataclass(frozen=True)
class Input:
    """What some tensors of a model are multiplied by.

    name:      of the first of the tensors, without `.weight`
    tensors:   the names of all
    n:         channels
    n_matrices: 1, or the number of experts
    n_moments: 1, or the number of experts if each has moments
    """

    name: str
    tensors: tuple[str, ...]
    n: int
    n_matrices: int = 1
    n_moments: int = 1

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return the type and shape of each array of the file, by its name."""
        return {
            f"{self.name}.squares": ("F32", (self.n_matrices, self.n)),
            f"{self.name}.counts": ("F32", (self.n_matrices,)),
            f"{self.name}.correlations": ("F16", (self.n_moments, self.n * (self.n - 1) // 2)),
            f"{self.name}.held_out": ("F32", (self.n_moments, N_SIGNS, self.n)),
        }

    @property
    def n_bytes(self) -> int:
        """Bytes of its arrays."""
        return sum(_NUMPY[kind].itemsize * prod(shape) for kind, shape in self.arrays.values())


def upper_triangle(products: F32) -> NDArray[np.float16]:
    """Return the correlations of second moments, float16 [n (n-1) / 2].

    products: float32 [n, n]; only what is on and above the diagonal is read. A channel that is
              always zero is correlated with none
    """
    n = len(products)
    scale = np.sqrt(products.diagonal().astype(np.float64))
    scale = np.divide(1, scale, out=np.zeros(n), where=scale > 0)
    found = np.empty(n * (n - 1) // 2, np.float16)
    at = 0
    for i in range(n - 1):
        row = products[i, i + 1 :] * (scale[i] * scale[i + 1 :])
        found[at : at + len(row)] = np.clip(row, -1, 1)
        at += len(row)
    return found


def full_matrix(correlations: NDArray[np.float16], n: int) -> F32:
    """Return what `upper_triangle` packed, float32 [n, n], with ones on the diagonal."""
    found = np.eye(n, dtype=np.float32)
    at = 0
    for i in range(n - 1):
        found[i, i + 1 :] = found[i + 1 :, i] = correlations[at : at + n - 1 - i]
        at += n - 1 - i
    return found


class MomentsWriter:
    """A file of moments whose arrays are written one by one, at their places.

    The file is OUT.part until `finish`.
    """

    def __init__(self, out: Path, inputs: Sequence[Input], metadata: Mapping[str, str]) -> None:
        self.out, self._part = out, out.with_name(f"{out.name}.part")
        self._inputs, self._metadata = inputs, metadata
        arrays = {name: each for i in inputs for name, each in i.arrays.items()}
        self._arrays, self._size = _placed(arrays)
        self._empty = self._header({i.name: _NO_HASH for i in inputs})
        self._data_at = len(self._empty)

    @property
    def n_bytes(self) -> int:
        """Bytes of the file."""
        return self._data_at + self._size

    @property
    def is_begun(self) -> bool:
        """Whether an interrupted run left its file."""
        try:
            with self._part.open("rb") as file:
                return file.read(self._data_at) == self._empty and file.seek(0, 2) == self.n_bytes
        except OSError:
            return False

    def begin(self) -> None:
        """Create the file, with zeros.

        Raises ImportanceError if it cannot be written.
        """
        try:
            with self._part.open("wb") as file:
                file.write(self._empty)
                file.truncate(self.n_bytes)
        except OSError as e:
            raise ImportanceError(f"{self._part}: cannot be written: {e.strerror}") from e

    def discard(self) -> None:
        """Remove the file of a run that cannot resume."""
        self._part.unlink(missing_ok=True)

    def write(self, name: str, values: NDArray[Any], row: int | None = None) -> None:
        """Write an array; row: only this one of its first dimension.

        Raises ImportanceError if it cannot be written.
        """
        kind, shape, at = self._arrays[name]
        content = np.require(values, _NUMPY[kind], "C")
        if row is not None:
            at += row * content.nbytes
            shape = shape[1:]
        assert content.shape == shape, (name, content.shape, shape)
        try:
            with self._part.open("r+b") as file:
                file.seek(self._data_at + at)
                file.write(content.data)
        except OSError as e:
            raise ImportanceError(f"{self._part}: cannot be written: {e.strerror}") from e

    def finish(self) -> None:
        """Write the hashes, and give the file its name.

        Raises ImportanceError if it cannot be written.
        """
        try:
            with self._part.open("r+b") as file:
                hashes: dict[str, str] = {}
                for each in self._inputs:
                    file.seek(self._data_at + self._arrays[next(iter(each.arrays))][2])
                    hashes[each.name] = _hash(file, each.n_bytes)
                file.seek(0)
                file.write(self._header(hashes))
            self._part.replace(self.out)
        except OSError as e:
            raise ImportanceError(f"{self.out}: cannot be written: {e.strerror}") from e

    def _header(self, hashes: Mapping[str, str]) -> bytes:
        metadata = {
            "format": FORMAT,
            "inputs": json.dumps({i.name: i.tensors for i in self._inputs}),
            "hashes": json.dumps(hashes),
            **self._metadata,
        }
        arrays = {
            name: {
                "dtype": kind,
                "shape": shape,
                "data_offsets": [at, at + _NUMPY[kind].itemsize * prod(shape)],
            }
            for name, (kind, shape, at) in self._arrays.items()
        }
        text = json.dumps({"__metadata__": metadata, **arrays}).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _hash(file: BinaryIO, n_bytes: int) -> str:
    """Return the hash of the next bytes of a file."""
    digest = xxhash.xxh3_128()
    while n_bytes > 0:
        piece = file.read(min(n_bytes, _PIECE))
        digest.update(piece)
        n_bytes -= _PIECE
    return digest.hexdigest()


def _placed(
    arrays: Mapping[str, tuple[str, tuple[int, ...]]],
) -> tuple[dict[str, tuple[str, tuple[int, ...], int]], int]:
    """Return the type, shape and place of each array, one after another, and the bytes of all."""
    found: dict[str, tuple[str, tuple[int, ...], int]] = {}
    at = 0
    for name, (kind, shape) in arrays.items():
        found[name] = kind, shape, at
        at += _NUMPY[kind].itemsize * prod(shape)
    return found, at


@dataclass(frozen=True)
class Moments:
    """A file of moments whose header was read.

    inputs:   by the name of each tensor
    metadata: where the file is from: `model`, `tokens_sha256`, `windows`, `held_out`
    hashes:   XXH3-128 of the bytes of each input, by its name
    header_sha256: of all bytes before the first array: of the hashes, too, so that it identifies
              the file, which may have many gigabytes
    """

    path: Path
    inputs: Mapping[str, Input]
    metadata: Mapping[str, str]
    hashes: Mapping[str, str]
    header_sha256: str
    _checked: set[str] = field(default_factory=set[str], repr=False, compare=False)

    def row(self, tensor: str, array: str, row: int | None = None) -> NDArray[Any]:
        """Return one array of a tensor's input, or a row of it.

        The first call for an input reads all of it, a row at a time, and compares the hash.

        Raises ImportanceError if the file was changed or damaged.
        """
        each = self.inputs[tensor]
        try:
            with _opened(self.path) as file:
                if each.name not in self._checked:
                    self._check(file, each)
                    self._checked.add(each.name)
                part = file.get_slice(f"{each.name}.{array}")
                return part[:] if row is None else part[row]
        except (OSError, SafetensorError) as e:
            raise ImportanceError(f"{self.path}: cannot be read: {e}") from e

    def peek(self, each: Input, array: str) -> NDArray[Any]:
        """Return an array of an input, without a look at the hash.

        Raises ImportanceError if the file cannot be read.
        """
        try:
            with _opened(self.path) as file:
                return file.get_tensor(f"{each.name}.{array}")
        except (OSError, SafetensorError) as e:
            raise ImportanceError(f"{self.path}: cannot be read: {e}") from e

    def _check(self, file: Any, each: Input) -> None:
        digest = xxhash.xxh3_128()
        for name, (_, shape) in each.arrays.items():
            part = file.get_slice(name)
            for i in range(shape[0]):
                digest.update(np.ascontiguousarray(part[i]).data)
        self._compare(each, digest.hexdigest())

    def _compare(self, each: Input, found: str) -> None:
        if found != self.hashes[each.name]:
            raise ImportanceError(
                f"{self.path}: {each.name}: was changed since it was opened, or is damaged; copy it"
                " again, or make it again"
            )

    def arrays(self, tensor: str) -> dict[str, NDArray[Any]]:
        """Return the arrays of a tensor's input: squares, counts, correlations, held_out.

        Raises ImportanceError if the file was changed or damaged.
        """
        each = self.inputs[tensor]
        found: dict[str, NDArray[Any]] = {}
        digest = xxhash.xxh3_128()
        try:
            with _opened(self.path) as file:
                for name in each.arrays:
                    found[name.rpartition(".")[2]] = array = file.get_tensor(name)
                    digest.update(np.ascontiguousarray(array).data)
        except (OSError, SafetensorError) as e:
            raise ImportanceError(f"{self.path}: cannot be read: {e}") from e
        self._compare(each, digest.hexdigest())
        return found


def _opened(path: Path) -> Any:
    """Open safetensors; the package has no types."""
    return safe_open(path, "numpy")


def read_moments(path: Path) -> Moments:
    """Read the header of a file of moments.

    Raises ImportanceError if the file cannot be read, or is not one of moments.
    """
    try:
        with open_regular(path) as file:
            is_imatrix = _is_imatrix(path, file)
            file.seek(0)
            n = int.from_bytes(file.read(8), "little")
            file.seek(0)
            header_sha256 = hashlib.sha256(file.read(min(n + 8, _MOST))).hexdigest()
    except OSError as e:
        raise ImportanceError(f"{path}: cannot be read: {e.strerror}") from e
    if is_imatrix:
        raise ImportanceError(
            f"{path}: is an imatrix, not a file of second moments; give it as --imatrix, and the"
            " .moments.safetensors beside it as --moments"
        )
    try:
        with _opened(path) as file:
            metadata: dict[str, str] = file.metadata() or {}
            names: list[str] = list(file.keys())
            shapes: dict[str, list[int]] = {
                name: file.get_slice(name).get_shape() for name in names
            }
    except (OSError, SafetensorError) as e:
        raise ImportanceError(
            f"{path}: is incomplete, or not safetensors ({e}); copy it again, or make it again"
        ) from e
    if metadata.get("format") != FORMAT:
        raise ImportanceError(
            f"{path}: is not a file of moments of this version of dynquant; make it with"
            " `dynquant imatrix --moments`"
        )
    try:
        tensors = TypeAdapter(dict[str, list[str]]).validate_json(metadata.pop("inputs"))
        hashes = TypeAdapter(dict[str, str]).validate_json(metadata.pop("hashes"))
        inputs: dict[str, Input] = {}
        if tensors.keys() != hashes.keys():
            raise ValueError("other inputs than hashes")
        for name in hashes:
            n_matrices, n = shapes[f"{name}.squares"]
            n_moments = shapes[f"{name}.held_out"][0]
            if n_moments not in (1, n_matrices):
                raise ValueError(name)
            each = Input(name, tuple(tensors[name]), n, n_matrices, n_moments)
            for own, (_, shape) in each.arrays.items():
                if tuple(shapes[own]) != shape:
                    raise ValueError(own)
            if not inputs.keys().isdisjoint(each.tensors):
                raise ValueError(name)
            inputs |= dict.fromkeys(each.tensors, each)
    except (KeyError, ValueError) as e:  # a ValidationError is a ValueError
        raise ImportanceError(f"{path}: its header is damaged; make the file again") from e
    return Moments(path, inputs, metadata, hashes, header_sha256)


def is_moments(file: BinaryIO) -> bool:
    """Return whether an open file begins as safetensors do that `MomentsWriter` wrote."""
    head = file.read(_HEAD)
    return head[8:9] == b"{" and FORMAT.rpartition(".")[0].encode() in head


def _is_imatrix(path: Path, file: BinaryIO) -> bool:
    """Return whether an open file is an imatrix, in either of its formats."""
    try:
        if file.read(4) != b"GGUF":
            return bool(read_legacy(path, file)[0])
        kind = read_gguf(path).keys.get("general.type")
        return kind is not None and kind.value == "imatrix"
    except (CheckpointError, ImportanceError):
        return False
