"""A check at the end of a conversion: some rows are encoded again and compared with the files."""

from __future__ import annotations

import hashlib

import numpy as np

from dynquant.arrays import U8
from dynquant.conversion.output import PartFiles
from dynquant.conversion.work import TensorWork, Work
from dynquant.errors import ConvertError
from dynquant.measure.sample import Candidate, draw, encode_rows
from dynquant.quants.codec import NotFiniteError
from dynquant.quants.encoder import Encoder

SAMPLES = 8
"""Ranges of rows that a conversion checks."""


def check_sample(work: Work, parts: PartFiles, n: int, encoder: Encoder) -> None:
    """Encode n ranges of rows again, and compare them with the files.

    The files are read back: from the disk, or from the system's page cache.

    Raises ConvertError with all ranges that differ.
    """
    candidates = [
        Candidate(t.type.name, t.n_rows, t.n_per_row, t.rows_of_matrix) for t in work.tensors
    ]
    seed = b"".join(hashlib.sha256(file.header).digest() for file in work.layout.files)
    problems: dict[str, str] = {}
    for drawn in draw(candidates, n, seed):
        tensor = work.tensors[drawn.index]
        try:
            blocks = encode_again(work, tensor, drawn.start, drawn.stop, encoder)
        except NotFiniteError as e:
            problems[tensor.name] = (
                f"tensor {tensor.name!r}: row {drawn.start + e.row} of the model contains a NaN or"
                " an infinity, which it did not when it was converted; the disk or the memory is"
                " faulty"
            )
            continue
        there = np.empty_like(blocks)
        position = tensor.position + drawn.start * tensor.row_size
        parts.read(tensor.file, there.reshape(-1).data, position)
        wrong = (there != blocks).any(axis=1)
        if wrong.any():
            message = (
                f"{parts.parts[tensor.file]}: tensor {tensor.name!r}: re-encoding row"
                f" {drawn.start + int(wrong.argmax())} gave different bytes"
                f" ({int(wrong.sum())} of rows {drawn.start} to {drawn.stop - 1} differ); memory"
                " or disk is faulty, or the model changed during the conversion: start over"
                " (--restart)"
            )
            problems.setdefault(tensor.name, message)
    ConvertError.raise_any(problems.values())


def encode_again(work: Work, tensor: TensorWork, start: int, stop: int, encoder: Encoder) -> U8:
    """Return the blocks of rows start..stop of one matrix, uint8 [rows, row_size].

    Raises CheckpointError if they cannot be read, NotFiniteError if they are not finite.
    """
    matrix = start // tensor.rows_of_matrix
    return encode_rows(
        tensor.source,
        start,
        stop,
        tensor.type,
        tensor.importance_of(matrix),
        tensor.search,
        tensor.mean_of(matrix),
        work.feedback_of(tensor, matrix),
        encoder=encoder,
    ).blocks
