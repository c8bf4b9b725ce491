"""What a model loses with and without error feedback, type by type.

    pip install -e '.[dev,calibrate]'
    dynquant imatrix MODEL --moments layers -o model.imatrix.gguf
    python scripts/studies/compare_feedback.py MODEL --imatrix model.imatrix.gguf \
        --moments model.moments.safetensors --text FILE [--types IQ2_XXS,Q4_K] [--replicas 2]

MODEL is a checkpoint or a GGUF with float weights. For each type, files are made in which all
matrices of the layers that have moments (but routers) have the type and the rest F16:

    none      without importance
    imatrix   with the mean squares only
    means     with the means of inputs, too
    feedback  with error feedback, without sweeps; `--damping` sets another than the default
    sweeps    with the default number of sweeps

and compared with the model over the text's first windows of 512 tokens, the second half of each, as
by `dynquant eval`. Columns:

    KL, KL 99.9%  mean KL divergence of the next token from the model's, in nats, and what one
                  position in a thousand exceeds
    vs imatrix    KL less that of `imatrix`, in percent of it, with its standard error
    output        error of the matrices' outputs on the held-out windows of the moments, relative to
                  the outputs: the geometric mean of the matrices
    same          mean number of greedy tokens, of 64, before the answer differs from the model's
    seconds       of the conversion, all of it

Replicas and standard errors are as in compare_objectives.py. llama-quantize is beside it in
compare_recipes.py, with whole mixes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from compare_importance import Result as Losing
from compare_importance import without_means
from gguf import GGUFReader
from losses import Losses, prompts_of
from numpy.typing import NDArray
from replicas import draw_axes, replica, replica_imatrix, replica_moments, weights_of
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.arch.base import Model
from dynquant.arrays import F32
from dynquant.conversion.write import convert_plan
from dynquant.importance.imatrix import Imatrix
from dynquant.importance.moments import Moments
from dynquant.plan.make import make_plan
from dynquant.quants import ALL, decode
from dynquant.recipe.feedback import DAMPING, SWEEPS
from dynquant.recipe.loader import parse_recipe

F64 = NDArray[np.float64]
ARMS = ("none", "imatrix", "means", "feedback", "sweeps")


@dataclass(frozen=True)
class Replica:
    """A replica of the model, and what is known of its inputs."""

    model: Model
    imatrix: Imatrix
    plain: Imatrix
    moments: Moments


@dataclass(frozen=True)
class Row:
    """The figures of one type and one arm."""

    losing: Losing
    kl_999: float
    output: float
    same: float
    seconds: float


class Study:
    """The replicas and the reference."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._folder, self._damping = folder, given.damping
        model = dynquant.load_model(given.model)
        imatrix = dynquant.load_imatrix(given.imatrix)
        moments = dynquant.load_moments(given.moments)
        self._replicas: list[Replica] = []
        for i in range(given.replicas):
            axes = draw_axes(model, i) if i else None
            known, its = imatrix, moments
            if axes:
                known = replica_imatrix(imatrix, model, axes, folder / f"i-{i}.gguf")
                its = replica_moments(moments, model, axes, folder / f"m-{i}.safetensors")
            plain = without_means(known, folder / f"plain-{i}.gguf")
            self._replicas.append(Replica(replica(model, axes), known, plain, its))
        self._names = [
            t.name
            for t in model.tensors
            if t.name in moments.inputs
            and t.name.startswith("blk.")
            and t.parts.role != "ffn_gate_inp"
        ]
        reference = folder / "reference.gguf"
        convert_plan(
            make_plan(self._replicas[0].model, parse_recipe("default: F32", "study", "F32")),
            reference,
            force=True,
        )
        prompts = prompts_of(given.text, given.prompts)
        self._losses = Losses(
            reference, given.text, given.windows, given.threads, folder / "cache", prompts
        )
        reference.unlink()
        self.description = (
            f"{given.model.name}: {given.replicas} replicas x {self._losses.n_windows} windows of"
            f" {given.text.name}; {len(prompts)} prompts; damping {given.damping:g}; perplexity"
            f" {self._losses.perplexity:.4f}"
        )

    def row(self, type_name: str, arm: str) -> Row:
        """Make and compare the files of one type and one arm."""
        names = ", ".join(f'{{name: "{n}", type: {type_name}}}' for n in self._names)
        sweeps = SWEEPS if arm == "sweeps" else 0
        text = (
            f"default: F16\nfallback: [F16]\nfeedback: {{damping: {self._damping},"
            f" sweeps: {sweeps}}}\nrules: [{names}]"
        )
        file, kl, seconds = self._folder / "quantized.gguf", list[F64](), 0.0
        output, same = list[float](), list[float]()
        for each in self._replicas:
            imatrix = {"none": None, "imatrix": each.plain}.get(arm, each.imatrix)
            moments = each.moments if arm in ("feedback", "sweeps") else None
            recipe = parse_recipe(text, "compare_feedback", type_name)
            plan = make_plan(each.model, recipe, imatrix=imatrix, moments=moments)
            started = time.perf_counter()
            convert_plan(plan, file, force=True, verify_sample=0)
            seconds += time.perf_counter() - started
            kl.append(self._losses.of(file)[1])
            same.append(self._losses.answers_of(file))
            output += self._errors(each, file)
        all_kl = np.stack(kl)
        losing = Losing(
            type_name,
            arm,
            float(all_kl.mean()),
            float(np.quantile(all_kl, 0.99)),
            all_kl.mean(axis=-1),
        )
        most = float(np.quantile(all_kl, 0.999))
        mean_output = float(np.exp(np.log(output).mean())) if output else np.nan
        return Row(losing, most, mean_output, float(np.mean(same)), seconds)

    def _errors(self, each: Replica, file: Path) -> list[float]:
        """Return the relative error of each quantized matrix's outputs."""
        stored = {t.name: t for t in GGUFReader(file).tensors}
        found: list[float] = []
        for tensor in each.model.tensors:
            kind = stored[tensor.name].tensor_type.name
            if tensor.name not in self._names or kind not in ALL or ALL[kind].is_float:
                continue
            n = tensor.n_per_row
            x = weights_of(tensor).reshape(-1, tensor.shape[-2], n)
            blocks = np.ascontiguousarray(stored[tensor.name].data).view(np.uint8)
            y = decode(blocks.reshape(-1, ALL[kind].row_size(n)), kind, n).reshape(x.shape)
            sums = each.moments.arrays(tensor.name)["held_out"]
            for m, (w, d) in enumerate(zip(x, y, strict=True)):
                s = sums[m if len(sums) > 1 else 0]
                found.append(_squares((w - d) @ s.T) / _squares(w @ s.T))
        return found


def _squares(x: F32) -> float:
    return float(np.square(x.astype(np.float64)).sum())


def table_of(rows: list[Row], title: str) -> Table:
    """Lay the figures out."""
    table = Table(title=title, box=None, pad_edge=False)
    for column in ("type", "with", "KL", "KL 99.9%", "vs imatrix", "output", "same", "seconds"):
        table.add_column(column, justify="left" if column in ("type", "with") else "right")
    first = {r.losing.type: r.losing for r in rows if r.losing.importance == "imatrix"}
    for r in rows:
        its = r.losing
        share, error = its.excess(first[its.type])
        versus = "" if its is first[its.type] else f"{100 * share:+.1f} ± {100 * error:.1f} %"
        table.add_row(
            its.type,
            its.importance,
            f"{its.kl_mean:.4e}",
            f"{r.kl_999:.3e}",
            versus,
            f"{r.output:.3e}",
            f"{r.same:.1f}",
            f"{r.seconds:.1f}",
        )
    return table


def main() -> None:
    """Compare what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--moments", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="unseen by model and imatrix")
    parser.add_argument("--types", default="IQ1_S,IQ2_XXS,Q2_K,IQ3_XXS,Q4_K,IQ4_NL")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--damping", type=float, default=DAMPING)
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    given = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        study = Study(given, Path(folder))
        for type_name in given.types.upper().split(","):
            for arm in given.arms.split(","):
                if arm == "none" and ALL[type_name].needs_importance:
                    continue
                rows.append(study.row(type_name, arm))
                print(type_name, arm, f"{rows[-1].losing.kl_mean:.4e}", file=sys.stderr, flush=True)
        Console(width=None if sys.stdout.isatty() else 120).print(table_of(rows, study.description))
    if given.json:
        document: list[dict[str, Any]] = [
            r.losing.__dict__
            | {"kl": r.losing.kl.tolist(), "kl_999": r.kl_999}
            | {"output": r.output, "same": r.same, "seconds": r.seconds}
            for r in rows
        ]
        given.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
