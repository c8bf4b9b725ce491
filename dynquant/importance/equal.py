"""An imatrix that weights all channels equally, for types that require one where no text can be
read.

Estimates from the weights were tried instead: the gains of the norm before a matrix, the rows of
the matrices before it, and the magnitude of the weights themselves. They help one model and harm
another (docs/explanation/encoders.md, "Without a text").
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dynquant.arch.base import Model
from dynquant.distribution import our_version
from dynquant.errors import ImportanceError
from dynquant.importance.imatrix import write_imatrix
from dynquant.keys import string

DATASET = "no text: all channels are weighted equally"
"""What stands in the imatrix in place of its texts; plans, manifests and outputs repeat it."""


def write_equal(model: Model, out: Path) -> None:
    """Write an imatrix of ones for all matrices of a model, one row for all experts.

    Raises ImportanceError if it cannot be written.
    """
    entries = {
        tensor.name: (np.ones((1, tensor.n_per_row), np.float32), [1])
        for tensor in model.tensors
        if len(tensor.shape) > 1 and tensor.name.endswith(".weight")
    }
    part = out.with_name(f"{out.name}.part")
    try:
        write_imatrix(
            part,
            entries,
            datasets=[DATASET],
            chunk_count=0,
            chunk_size=0,
            more_keys={"dynquant.version": string(our_version())},
        )
        part.replace(out)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ImportanceError(f"{out}: cannot be written: {e.strerror}") from e
