"""How far llama.cpp's embeddings of pictures and sounds are from those of transformers.

    python scripts/checks/show_projectors.py [CASE ...] [--recipe R]

For each tiny model of tests/references/projectors and each of its pictures and sounds: the distance
of the embeddings, as a part of their norm, and the largest difference of a log-probability of the
token after the prompt. llama.cpp (the xllamacpp wheel) computes in float32, with GELU from a table
of half-floats; transformers' results are stored.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

import dynquant

TESTS = Path(__file__).resolve().parents[2] / "tests"
FOLDER = TESTS / "references" / "projectors"
sys.path.insert(0, str(TESTS / "support"))

from multimodal import Multimodal  # noqa: E402  (after the path of the tests' support)


def show(case: str, recipe: str, folder: Path) -> tuple[float, float]:
    """Print a case's distances; return the largest distance and difference."""
    text, projector = folder / f"{case}.gguf", folder / f"mmproj-{case}.gguf"
    dynquant.convert(FOLDER / case, text, recipe="f32", threads=1)
    model = dynquant.load_projector(FOLDER / case)
    dynquant.convert(model, projector, recipe=recipe, threads=1)
    stored = np.load(FOLDER / f"{case}.npz")
    n = sum(name.startswith("media_") for name in stored.files)
    distances: list[float] = []
    differences: list[float] = []
    with Multimodal(text, projector) as loaded:
        for i in range(n):
            seen = loaded.see(str(stored["prompt"]), [stored[f"media_{i}"]])
            found, exact = np.concatenate(seen.embeddings), stored[f"embeddings_{i}"]
            distances.append(float(np.linalg.norm(found - exact) / np.linalg.norm(exact)))
            apart = np.abs(seen.log_probabilities - stored[f"logprobs_{i}"])
            differences.append(float(apart.max()))
    sizes = ", ".join("x".join(map(str, stored[f"media_{i}"].shape[:2])) for i in range(n))
    print(
        f"{case:16} {' '.join(f'{d:.1e}' for d in distances):32}"
        f" {' '.join(f'{d:.4f}' for d in differences):28} of {sizes}"
    )
    return max(distances), max(differences)


def main() -> None:
    """Show the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", metavar="CASE")
    parser.add_argument("--recipe", default="f32", help="of the projector; default: f32")
    given = parser.parse_args()
    known = sorted(path.stem for path in FOLDER.glob("*.npz"))
    print(f"{'case':16} {'distance of embeddings':32} {'difference of log-probability':28}")
    with tempfile.TemporaryDirectory() as folder:
        found = [show(case, given.recipe, Path(folder)) for case in given.cases or known]
    print(
        f"largest of {len(found)}: {max(d for d, _ in found):.1e}, {max(d for _, d in found):.4f}"
    )


if __name__ == "__main__":
    main()
