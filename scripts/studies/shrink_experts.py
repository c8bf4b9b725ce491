"""What a mixture of experts loses by the importance that seldom chosen experts have.

    pip install -e '.[dev,calibrate]'
    python scripts/studies/shrink_experts.py MODEL --calibration FILE --text FILE \
        [--recipes dynamic-moe-1.58bit,dynamic-moe-2bit] [--chunks 2,10] [--context 64] \
        [--shrink 0,4,16,64,256,1024] [--unseen mean] [--windows 16] [--folder DIR]

Makes an imatrix of each number of windows, converts the model with each recipe, imatrix and
`importance: {shrink: N}`, and prints the mean KL divergence from the model over the first windows
of 512 tokens of each text (`--text` may be repeated). With --folder, files and results are kept,
and the same command resumes.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.calibrate.imatrix import Settings, make_imatrix
from dynquant.errors import CalibrationError
from dynquant.texts import read_texts

WINDOW = 512


def imatrix_of(given: argparse.Namespace, chunks: int, folder: Path) -> Path:
    """Return the imatrix of some windows of the calibration text."""
    out = folder / f"{chunks}-of-{given.context}.imatrix.gguf"
    if not out.exists():
        texts = tuple(read_texts([given.calibration], CalibrationError))
        settings = Settings(texts, context=given.context, chunks=chunks)
        make_imatrix(
            Path(given.model),
            out,
            settings,
            force=False,
            progress=lambda _, __: None,
            say=lambda _: None,
        )
    return out


def main() -> None:
    """Make the files that are missing, evaluate all, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--recipes", default="dynamic-moe-1.58bit,dynamic-moe-2bit")
    parser.add_argument("--chunks", default="2,10")
    parser.add_argument("--context", type=int, default=WINDOW)
    parser.add_argument("--shrink", default="0,4,16,64,256,1024")
    parser.add_argument("--unseen", choices=["mean", "uniform"], default="mean")
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder: Path = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True, parents=True)
        Console(width=160).print(table(given, folder))


def table(given: argparse.Namespace, folder: Path) -> Table:
    """Return a line for each recipe and imatrix, with the KL divergence of each `shrink`."""
    shrinks = [int(n) for n in given.shrink.split(",")]
    found = Table("recipe", "windows", "fewest tokens", *(f"shrink {n}" for n in shrinks), box=None)
    for recipe in given.recipes.split(","):
        for chunks in map(int, given.chunks.split(",")):
            imatrix = imatrix_of(given, chunks, folder)
            files = [folder / f"{recipe}-{chunks}-{n}-{given.unseen}.gguf" for n in shrinks]
            for out, shrink in zip(files, shrinks, strict=True):
                policy = {"shrink": shrink, "unseen": given.unseen}
                rules = {"extends": recipe, "importance": policy}
                if not out.exists():
                    dynquant.convert(given.model, out, recipe=rules, imatrix=imatrix)
            result = dynquant.evaluate_files(
                files,
                given.model,
                texts=given.text,
                tokens=given.windows * WINDOW,
                cache=folder / "cache",
            )
            audit = dynquant.audit_imatrix(imatrix, given.model)
            fewest = min(t.counts[0] for t in audit.tensors if t.mixed and t.counts)
            figures = (f"{f.figures.mean_kld.value:.5f}" for f in result.files)
            found.add_row(recipe, f"{chunks} of {given.context}", str(fewest), *figures)
    return found


if __name__ == "__main__":
    main()
