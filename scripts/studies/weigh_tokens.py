"""Imatrix files in which tokens of large activations weigh less, to compare what models lose.

    pip install -e '.[dev,calibrate]'
    python scripts/studies/weigh_tokens.py MODEL --text FILE --chunks 20 --folder DIR

The first tokens of a window have activations that are hundreds of times larger than those of
others (attention sinks), and a mean square is mostly theirs. For each input of a matrix, with m the
median of |x|^2 in a group of 2,048 tokens, a token's squares are multiplied by

    all      1
    clipK    min(1, K m / |x|^2)
    unitB    (1 - B) + B m / |x|^2

and DIR/NAME.gguf is the imatrix. compare_importance.py, beside this script, says what each loses.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from dynquant.calibrate import experts, one_pass, products, sums
from dynquant.calibrate.imatrix import Settings, make_imatrix
from dynquant.errors import CalibrationError
from dynquant.texts import read_texts

CHOICES = ("all", "clip100", "clip10", "clip1", "unit0.5", "unit1")


def weighted(name: str) -> type[sums.Sums]:
    """Return sums in which tokens are weighed."""
    kind, number = name.rstrip("0123456789."), name.lstrip("clipunta")

    class Weighted(sums.Sums):
        @classmethod
        def of(cls, inputs: Any) -> Any:
            rows = inputs.reshape(-1, inputs.shape[-1]).to(torch.float64)
            lengths = rows.square().sum(dim=1, keepdim=True).clamp_min(1e-30)
            if kind == "all" or not len(rows):
                weights = torch.ones_like(lengths)
            elif kind == "clip":
                weights = (float(number) * lengths.median() / lengths).clamp_max(1)
            else:
                weights = (1 - float(number)) + float(number) * lengths.median() / lengths
            squares = (rows.square() * weights).sum(dim=0).numpy()
            return sums.Sums(len(rows), rows.sum(dim=0).numpy(), squares)

    return Weighted


def main() -> None:
    """Write a file for each choice."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=20)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--choices", default=",".join(CHOICES))
    given = parser.parse_args()
    settings = Settings(tuple(read_texts([given.text], CalibrationError)), chunks=given.chunks)
    for name in given.choices.split(","):
        for module in (one_pass, experts, products):
            module.Sums = weighted(name)  # type: ignore[attr-defined]
        out = given.folder / f"{name}.gguf"
        make_imatrix(given.model, out, settings, force=True, progress=lambda _, __: None, say=print)


if __name__ == "__main__":
    main()
