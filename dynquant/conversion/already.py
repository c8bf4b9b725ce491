"""Whether a file holds already what a conversion would write."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynquant.conversion.second_look import encode_again
from dynquant.conversion.work import TensorWork, Work, work_of
from dynquant.plan.plan import Plan
from dynquant.quants.encoder import CORE, Encoder

_CHUNK = 1 << 22
"""Bytes of rows that are read and encoded at a time."""


def is_written(plan: Plan, out: Path, encoder: Encoder = CORE) -> bool:
    """Return whether a plan's files exist with the bytes that a conversion would write.

    Encodes all rows, so it takes as long as a conversion; for small outputs, such as projectors.

    Raises CheckpointError if the model cannot be read, NotFiniteError for weights that are not
    finite.
    """
    work = work_of(plan)
    paths = work.layout.paths(out)
    if not all(path.is_file() for path in paths):
        return False
    for file, path in zip(work.layout.files, paths, strict=True):
        if path.stat().st_size != file.file_bytes:
            return False
        with path.open("rb") as found:
            for position, wanted in file.between():
                found.seek(position)
                if found.read(len(wanted)) != wanted:
                    return False
    return all(_is_same(tensor, work, paths[tensor.file], encoder) for tensor in work.tensors)


def _is_same(tensor: TensorWork, work: Work, path: Path, encoder: Encoder) -> bool:
    """Whether a file has a tensor's blocks."""
    size = tensor.row_size
    step = max(1, _CHUNK // max(size, tensor.decoded_row_size))
    with path.open("rb") as file:
        file.seek(tensor.position)
        for first in range(0, tensor.n_rows, tensor.rows_of_matrix):
            for start in range(first, first + tensor.rows_of_matrix, step):
                stop = min(start + step, first + tensor.rows_of_matrix)
                blocks = encode_again(work, tensor, start, stop, encoder)
                there = np.frombuffer(file.read((stop - start) * size), np.uint8)
                if not np.array_equal(there, blocks.reshape(-1)):
                    return False
    return True
