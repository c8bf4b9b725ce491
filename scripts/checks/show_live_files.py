#!/usr/bin/env python3
"""Source files that `--keep-source none` has on the disk at once, at most.

    python scripts/models/make_sparse_checkpoint.py DeepSeek-R1 /tmp/r1
    python scripts/checks/show_live_files.py /tmp/r1 --recipe deepseek-r1-q2_k_xl

A conversion has one file at a time. Parts and a ladder write in the order of the output: a file is
there from the first tensor that needs it to the last. The weights are not read.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import dynquant
from dynquant.conversion.work import work_of


def main() -> None:
    """Print the largest numbers of bytes, and where several files reach it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="q8_0")
    given = parser.parse_args()
    model = dynquant.load_model(given.folder, needs_vocab=False)
    work = work_of(dynquant.make_plan(model, given.recipe, draft=True))
    first: dict[int, int] = {}
    for tensor in work.tensors:
        for number in tensor.source_files:
            first.setdefault(number, tensor.number)
    sizes = [file.stored.size() for file in work.source_files]
    largest, n_files, name = 0, 0, ""
    for tensor in work.tensors:
        live = [n for n in first if first[n] <= tensor.number <= work.source_files[n].last]
        n_bytes = sum(sizes[n] for n in live)
        if n_bytes > largest:
            largest, n_files, name = n_bytes, len(live), tensor.name
    print(
        f"{len(sizes)} files, {sum(sizes) / 1e9:.1f} GB; convert: one at once, at most"
        f" {max(sizes) / 1e9:.1f} GB; parts and ladder: {n_files} at once, {largest / 1e9:.1f} GB"
        f" ({name})"
    )


if __name__ == "__main__":
    main()
