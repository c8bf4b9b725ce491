"""Which objective an encoder should have, judged by what the model loses in llama.cpp.

    pip install -e '.[dev]'
    python scripts/studies/compare_objectives.py MODEL --imatrix FILE --text FILE \
        [--types Q4_K,IQ2_XS] [--replicas 6]

For each type, weighting and gain (quants/search.py), and for ggml's own encoder beside them, files
are made in which all matrices of the layers (or --tensors) have the type, the rest F16 or F32; with
the imatrix, and with --without also without it where the type can do without. They are compared
with the model itself over the text's first windows of 512 tokens, the second half of each, as by
`dynquant eval`. Columns:

    error    sum w (x - decoded)^2 / sum w x^2, w the importance, whatever was minimised
    PPL      perplexity
    KL       mean KL divergence of the next token from the model's, in nats
    KL 99%   what one position in a hundred exceeds
    vs best  KL less that of the type's best, in percent of it, with its standard error

What one file loses is partly luck: other roundings of the same quality lose more or less. So each
file is made of several *replicas* of the model: the channels of the residual stream, of the
feed-forward layers and of the values permuted, and some negated. They compute the same function
(checked: KL < 1e-6) and meet the encoder as other blocks. Standard errors are of differences within
replica and window, from the spread over both: sqrt(var_replicas / n + var_windows / n).

A plan does not carry weighting and gain, so the conversion gets an encoder of this script's.
A type that llama.cpp cannot load is reported and passed over.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from losses import WINDOW, Losses
from numpy.typing import NDArray
from replicas import draw_axes, replica, replica_imatrix
from rich.console import Console
from rich.table import Table

import dynquant
from dynquant.arch.base import Model
from dynquant.conversion.write import convert_plan
from dynquant.errors import EvalError
from dynquant.importance.imatrix import Imatrix
from dynquant.plan.make import make_plan
from dynquant.quants import ALL, CORE, Batch, Encoded, decode
from dynquant.quants.error import NO_ERROR
from dynquant.quants.search import GAINS, WEIGHTINGS, Gain, Weighting
from dynquant.recipe.loader import parse_recipe

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))
from oracles import ggml_encode

F64 = NDArray[np.float64]

SAME_FUNCTION = 1e-6
"""Mean KL, in nats, that summing in another order stays below (tiny-books: 1e-10)."""


@dataclass(frozen=True)
class Choice:
    """What is minimised; by ggml's own encoder where neither is said."""

    weighting: Weighting | None = None
    gain: Gain | None = None

    @property
    def is_ggml(self) -> bool:
        """Whether ggml encodes."""
        return self.weighting is None


GGML = Choice()
_GGML = "ggml"
CHOICES = (*(Choice(w, g) for w in WEIGHTINGS for g in GAINS), GGML)


class ChosenEncoder:
    """An `Encoder` that minimises what one choice says, and adds up the errors."""

    preferred_bytes = CORE.preferred_bytes

    def __init__(self, choice: Choice) -> None:
        self._choice = choice
        self._lock = threading.Lock()
        self._squares = np.zeros(2)

    @property
    def error(self) -> float:
        """The weighted relative error of all quantized weights so far."""
        return float(self._squares[0] / self._squares[1])

    def encode(self, batch: Batch, *, measure: bool = True) -> Encoded:
        """Encode rows of a replica, which are float32."""
        if batch.type.is_float:
            return CORE.encode(batch, measure=measure)
        x = batch.rows.view(np.float32).reshape(-1, batch.n_per_row)
        if self._choice.is_ggml:
            with self._lock:
                blocks = ggml_encode(x, batch.type, batch.importance)
        else:
            search = replace(batch.search, weighting=self._choice.weighting, gain=self._choice.gain)
            blocks = CORE.encode(replace(batch, search=search), measure=False).blocks
        w = np.ones(batch.n_per_row, np.float32) if batch.importance is None else batch.importance
        lost = x - decode(blocks, batch.type, batch.n_per_row)
        squares = [float(np.square(y, dtype=np.float64).sum(0) @ w) for y in (lost, x)]
        with self._lock:
            self._squares += squares
        return Encoded(blocks, NO_ERROR)


def write_file(
    model: Model, imatrix: Imatrix | None, name: str, choice: Choice, out: Path, glob: str
) -> float:
    """Write the file with the tensors of a glob in one type; return the weighted error."""
    rest = "F32" if name == "F32" else "F16"
    text = f'default: {rest}\nrules: [{{name: "{glob}", type: {name}}}]\nfallback: [F16]'
    recipe = parse_recipe(text, "compare_objectives", name)
    encoder = ChosenEncoder(choice)
    convert_plan(make_plan(model, recipe, imatrix=imatrix), out, force=True, encoder=encoder)
    return encoder.error if not ALL[name].is_float else 0.0


# ---- the comparison -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Result:
    """One line of the table; kl is float64 [n_replicas, n_windows], means over positions."""

    type: str
    imatrix: bool
    weighting: str
    gain: str
    error: float
    ppl: float
    kl_mean: float
    kl_99: float
    kl: F64

    @property
    def is_ggml(self) -> bool:
        """Whether ggml encoded."""
        return self.weighting == _GGML

    def excess(self, best: Result) -> tuple[float, float]:
        """Return KL less the best one's and its standard error, both as shares of the best."""
        d = self.kl - best.kl
        variance = sum(
            np.var(d.mean(axis=axis), ddof=1) / d.shape[1 - axis]
            for axis in (0, 1)
            if d.shape[1 - axis] > 1
        )
        return float(d.mean()) / best.kl_mean, float(np.sqrt(variance)) / best.kl_mean


class Comparison:
    """The replicas, the reference, and a folder for files that are made, read and forgotten."""

    def __init__(self, arguments: argparse.Namespace, folder: Path) -> None:
        self._folder, self._glob = folder, arguments.tensors
        model = dynquant.load_model(arguments.model)
        imatrix = dynquant.load_imatrix(arguments.imatrix)
        self._replicas = [(replica(model, None), imatrix)]
        for i in range(1, arguments.replicas):
            axes = draw_axes(model, i)
            path = folder / f"replica-{i}.imatrix"
            other = replica(model, axes), replica_imatrix(imatrix, model, axes, path)
            self._replicas.append(other)
        plain = folder / "plain.gguf"
        write_file(self._replicas[0][0], None, "F32", GGML, plain, "*")
        self._losses = Losses(
            plain, arguments.text, arguments.windows, arguments.threads, folder / "cache"
        )
        for i, (other, _) in enumerate(self._replicas[1:], 1):
            write_file(other, None, "F32", GGML, plain, "*")
            _, kl = self._losses.of(plain)
            if not abs(kl.mean()) < SAME_FUNCTION:
                raise AssertionError(f"replica {i} is another model: KL {kl.mean():.1e}")
        self.description = (
            f"{arguments.model.name}: {len(self._replicas)} replicas x {self._losses.n_windows}"
            f" windows of {WINDOW} tokens; perplexity {self._losses.perplexity:.4f}"
        )

    def results(self, name: str, with_imatrix: bool, choices: tuple[Choice, ...]) -> list[Result]:
        """Make, read and compare a type's files; the best first, by KL."""
        file = self._folder / "quantized.gguf"
        found: list[Result] = []
        for choice in choices:
            errors: list[float] = []
            measured: list[tuple[F64, F64]] = []
            for model, imatrix in self._replicas:
                given = imatrix if with_imatrix else None
                errors.append(write_file(model, given, name, choice, file, self._glob))
                measured.append(self._losses.of(file))
            nll, kl = (np.stack(x) for x in zip(*measured, strict=True))
            found.append(
                Result(
                    name,
                    with_imatrix,
                    choice.weighting or _GGML,
                    choice.gain or _GGML,
                    float(np.mean(errors)),
                    float(np.exp(nll.mean())),
                    float(kl.mean()),
                    float(np.quantile(kl, 0.99)),
                    kl.mean(axis=-1),
                )
            )
        return sorted(found, key=lambda r: r.kl_mean)


def best_of_ours(results: list[Result]) -> Result:
    """Return the best of ours; ggml's line is there to be compared with it."""
    return next(r for r in results if not r.is_ggml)


def table_of(groups: list[list[Result]], title: str) -> Table:
    """Lay the results out."""
    table = Table(title=title, box=None, pad_edge=False)
    for column in ("type", "imatrix", "weighting", "gain"):
        table.add_column(column, no_wrap=True)
    for column in ("error", "PPL", "KL", "KL 99%", "vs best"):
        table.add_column(column, justify="right", no_wrap=True)
    for results in groups:
        best = best_of_ours(results)
        for r in results:
            excess, standard_error = r.excess(best)
            table.add_row(
                r.type,
                "yes" if r.imatrix else "-",
                r.weighting,
                r.gain,
                f"{r.error:.3e}",
                f"{r.ppl:.3f}",
                f"{r.kl_mean:.3e}",
                f"{r.kl_99:.2e}",
                "best" if r is best else f"{100 * excess:+.1f} ± {100 * standard_error:.1f} %",
            )
    return table


def verdict(results: list[Result]) -> str:
    """Say which choice is best, and whether the next one of ours is worse by more than luck."""
    best, second, *_ = (r for r in results if not r.is_ggml)
    excess, standard_error = second.excess(best)
    clear = "clear" if excess > 2 * standard_error else "within two standard errors"
    return (
        f"{best.type}{'' if best.imatrix else ' without imatrix'}: {best.weighting}, {best.gain};"
        f" then {second.weighting}, {second.gain}: KL {100 * excess:+.1f} ±"
        f" {100 * standard_error:.1f} %, {clear}"
    )


def main() -> None:
    """Compare what the command line asks for; print the table and the verdicts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL", help="a folder, as for convert")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="unseen by model and imatrix")
    parser.add_argument("--types", help="comma-separated; default: all below 8 bits")
    parser.add_argument("--tensors", default="blk.*", help="glob of those of the type")
    parser.add_argument("--windows", type=int, default=16, help=f"of {WINDOW} tokens")
    parser.add_argument("--replicas", type=int, default=6)
    parser.add_argument("--threads", type=int, default=1, help="of llama.cpp")
    parser.add_argument("--without", action="store_true", help="also encode without the imatrix")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    arguments = parser.parse_args()
    names = [name for name, qtype in ALL.items() if qtype.bpw < 8]
    if arguments.types:
        names = arguments.types.upper().split(",")
    groups: list[list[Result]] = []
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(arguments, Path(folder))
        for name in names:
            for with_imatrix in (True, False) if arguments.without else (True,):
                if not with_imatrix and ALL[name].needs_importance:
                    continue
                try:
                    groups.append(comparison.results(name, with_imatrix, CHOICES))
                except EvalError as e:
                    print(f"{name}: {e}", file=sys.stderr)
                    break
                print(verdict(groups[-1]), file=sys.stderr, flush=True)
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table_of(groups, comparison.description))
    for results in groups:
        print(verdict(results))
    if arguments.json:
        rows: list[dict[str, Any]] = [
            asdict(r) | {"kl": r.kl.tolist()} for results in groups for r in results
        ]
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
