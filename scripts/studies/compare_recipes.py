"""What a model loses by the shipped recipes, beside llama-quantize's mixes of the nearest sizes.

    pip install -e '.[dev]'
    python scripts/studies/compare_recipes.py MODEL.gguf --imatrix FILE --text FILE \
        --llama-quantize PROGRAM [--moments FILE] [--recipes dynamic-2bit,...] [--windows 40] \
        [--n-prompts 16] [--folder DIR]

MODEL.gguf is in F32, BF16 or F16; PROGRAM is llama-quantize, built from llama.cpp's source. Each
recipe that fits the model is converted with the imatrix, and with error feedback if there are
moments; of llama-quantize's mixes, made with the same imatrix, the nearest in size is taken, and
all files are compared by `dynquant eval` over the text's first windows of 512 tokens. For each
recipe:

    MB        size of the file, and of the mix
    KLD       mean KL divergence from the model
    per size  KLD of the recipe over what the mixes give at its size, between the two nearest along
              a straight line of the logarithm; only with --both
    paired    KLD of the recipe less that of the mix, on the same tokens, with its 95 % interval
    loops     answers that end in a repetition: recipe, mix, the model itself

With --folder, files and results are kept, and the same command resumes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.evaluate.evaluation import evaluate
from dynquant.evaluate.prompts import shipped_prompts
from dynquant.evaluate.results import Evaluation, FileResult
from dynquant.evaluate.settings import Settings
from dynquant.recipe.loader import shipped_recipes

WINDOW = 512
MIXES = [
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ2_M",
    "Q2_K_S",
    "Q2_K",
    "IQ3_XXS",
    "IQ3_XS",
    "IQ3_S",
    "IQ3_M",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "IQ4_XS",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
]


@dataclass(frozen=True)
class Match:
    """A recipe's file, and the files of llama-quantize's mixes that are nearest in size."""

    recipe: Path
    mixes: tuple[Path, ...]


def converted(given: argparse.Namespace, folder: Path) -> list[Path]:
    """Return a file of each recipe that fits the model."""
    found: list[Path] = []
    names = given.recipes.split(",") if given.recipes else shipped_recipes()
    for name in names:
        if not given.recipes and not name.startswith("dynamic-"):
            continue
        out = folder / f"{name}.gguf"
        try:
            if not out.exists():
                inputs = {"imatrix": given.imatrix, "moments": given.moments}
                dynquant.convert(given.model, out, recipe=name, **inputs)
            found.append(out)
        except dynquant.DynquantError as e:
            print(f"{name}: left out: {e.messages[0]}", file=sys.stderr)
    return found


def quantized(given: argparse.Namespace, folder: Path) -> list[Path]:
    """Return a file of each mix that llama-quantize makes of the model."""
    found: list[Path] = []
    for mix in MIXES:
        out = folder / f"llama-{mix}.gguf"
        if not out.exists():
            part = folder / "part.gguf"
            command = [given.llama_quantize, "--imatrix", given.imatrix, given.model, part, mix]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{mix}: left out: {done.stderr.splitlines()[-1:]}", file=sys.stderr)
                continue
            part.rename(out)
        found.append(out)
    return found


def matched(recipes: Sequence[Path], mixes: Sequence[Path], *, both: bool) -> list[Match]:
    """Return for each recipe the nearest mix; with both, the nearest below and above."""

    def size(path: Path) -> int:
        return path.stat().st_size

    found: list[Match] = []
    for recipe in recipes:
        target = size(recipe)
        nearest = min(mixes, key=lambda mix: abs(size(mix) - target))
        below = [mix for mix in mixes if size(mix) <= target]
        above = [mix for mix in mixes if size(mix) >= target]
        if both and below and above:
            pair = (max(below, key=size), min(above, key=size))
            found.append(Match(recipe, tuple(dict.fromkeys((nearest, *pair)))))
        else:
            found.append(Match(recipe, (nearest,)))
    return found


def per_size(file: FileResult, mixes: Sequence[FileResult]) -> float:
    """Return KLD over what two mixes give at this size; nan if they do not enclose it."""
    points = sorted((mix.bytes, np.log(mix.figures.mean_kld.value)) for mix in mixes)
    x, y = [b for b, _ in points], [k for _, k in points]
    along = np.exp(np.interp(file.bytes, x, y, left=np.nan, right=np.nan))
    return file.figures.mean_kld.value / float(along)


def table_of(evaluation: Evaluation, matches: Sequence[Match], title: str) -> Table:
    """Lay the comparison out."""
    table = Table(title=title, box=None)
    for column in ("recipe", "MB", "KLD", "mix", "MB", "KLD", "per size", "paired", "loops"):
        table.add_column(column, justify="left" if column in ("recipe", "mix") else "right")
    files = {file.name: file for file in evaluation.files}
    pairs = {(pair.a, pair.b): pair for pair in evaluation.pairs}
    for match in matches:
        ours, mixes = files[match.recipe.name], [files[mix.name] for mix in match.mixes]
        mix = mixes[0]
        pair, sign = pairs.get((ours.name, mix.name)), 1
        if pair is None:
            pair, sign = pairs[mix.name, ours.name], -1
        ends = sorted((sign * pair.mean_kld.low, sign * pair.mean_kld.high))
        ratio = per_size(ours, mixes)
        table.add_row(
            match.recipe.stem,
            f"{ours.bytes / 1e6:.2f}",
            f"{ours.figures.mean_kld.value:.5f}",
            mix.name.removesuffix(".gguf"),
            f"{mix.bytes / 1e6:.2f}",
            f"{mix.figures.mean_kld.value:.5f}",
            "" if np.isnan(ratio) else f"{ratio:.2f}",
            f"{sign * pair.mean_kld.value:+.5f} [{ends[0]:+.5f}, {ends[1]:+.5f}]",
            loops_text(ours, mix),
        )
    return table


def loops_text(ours: FileResult, mix: FileResult) -> str:
    """Return the shares of greedy answers that loop: recipe, mix, model."""
    if not ours.answers:
        return ""
    shares = (ours.answers[0].loops, mix.answers[0].loops, ours.answers[0].reference_loops)
    return " ".join(f"{100 * share.value:.0f}%" for share in shares)


def main() -> None:
    """Make all files, compare them and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True, help="unseen by model and imatrix")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--moments", type=Path, help="recipes use error feedback; mixes do not")
    parser.add_argument("--llama-quantize", type=Path, required=True)
    parser.add_argument("--recipes", help="comma-separated; default: all dynamic ones that fit")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--n-prompts", type=int, default=16)
    parser.add_argument("--n-predict", type=int, default=192)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--both", action="store_true", help="the nearest mixes below and above")
    parser.add_argument("--folder", type=Path, help="for files and results; default: temporary")
    parser.add_argument("--json", type=Path, help="also write the evaluation there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        matches = matched(converted(given, folder), quantized(given, folder), both=given.both)
        files = dict.fromkeys(path for m in matches for path in (m.recipe, *m.mixes))
        settings = Settings(
            cache=folder / "cache",
            texts=(given.text,),
            context=WINDOW,
            tokens=given.windows * WINDOW,
            prompts=tuple(shipped_prompts()[: given.n_prompts]),
            n_predict=given.n_predict,
            threads=given.threads,
        )
        evaluation = evaluate(list(files), str(given.model), settings)
    figures = evaluation.files[0].figures
    title = (
        f"{given.model.name}: {figures.windows} windows of {given.text.name}, perplexity"
        f" {figures.ppl_base.value:.3f}; {given.n_prompts} prompts x {given.n_predict} tokens"
    )
    Console(width=150).print(table_of(evaluation, matches, title))
    if given.json:
        given.json.write_text(json.dumps(evaluation.model_dump(), indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
