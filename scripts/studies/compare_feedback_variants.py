"""What variants of error feedback that dynquant does not have would gain.

    pip install -e '.[dev]'
    python scripts/studies/compare_feedback_variants.py MODEL.gguf \
        --moments model.moments.safetensors --calibration FILE --text FILE \
        [--roles ffn_down] [--types IQ2_XXS,Q4_K] [--arms feedback,refit]

MODEL.gguf has float weights. For each type, the matrices of the roles (default: all but routers)
are encoded with error feedback and the default settings; all else stays as it is. The arms:

    feedback      as dynquant does it, with the moments of the file
    refit, half   the scales of all blocks fitted again by least squares under H, codes fixed; or
                  half of the way there
    norm, most    the channels of `ffn_down` in the order of its columns' norms or largest weights,
                  which costs nothing at run time: gate and up get the same order of rows
    own           as `feedback`, with moments of the first windows of the calibration text
    quantized     as `own`, but moments of the inputs in the file that `own` made
    target, half-target
                  as `quantized`, and the outputs aimed at are those of the model's weights for the
                  model's inputs: W C H^-1 in place of W, C the moments of the model's inputs and
                  the file's; or half of the way there

`own` and what follows are for dense models. Each arm is compared with the first of its kind,
`feedback` or `own`, over the text's first windows of 512 tokens, the second half of each; columns
are those of compare_feedback.py.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from losses import WINDOW, Losses, prompts_of
from numpy.typing import NDArray
from replicas import InMemory, replica, weights_of
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "support"))

from activations import inputs_by_window, windows_of_text

import dynquant
from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32, U8
from dynquant.conversion.write import convert_plan
from dynquant.importance.moments import full_matrix, upper_triangle
from dynquant.plan.make import make_plan
from dynquant.quants import ALL, decode
from dynquant.quants.feedback import Feedback, encode_floats_with_feedback, factor_of
from dynquant.quants.search import Search
from dynquant.recipe.feedback import DAMPING, SWEEPS
from dynquant.recipe.loader import parse_recipe

F64 = NDArray[np.float64]
ARMS = ("feedback", "refit", "half", "norm", "most", "own", "quantized", "target", "half-target")
FIRSTS = {"own": "own", "quantized": "own", "target": "own", "half-target": "own"}

_SCALES = {
    "IQ1_S": (0,),
    "IQ2_XXS": (0,),
    "IQ3_XXS": (0,),
    "IQ4_NL": (0,),
    "Q2_K": (80, 82),
    "Q4_K": (0, 2),
}
"""Where the blocks of a type have their F16 scales, in bytes."""


@dataclass(frozen=True)
class Moments:
    """Second moments of the inputs of one matrix.

    h:     float64 [n, n], E[x x'] of what the matrix will be multiplied by
    cross: float64 [n, n], E[x x'] of the model's inputs and these; None if they are the same
    """

    h: F64
    cross: F64 | None = None


def damped(h: F64) -> F64:
    """Return H with the damping that error feedback adds to its correlations."""
    return h + DAMPING * np.diag(h.diagonal())


def fed(w: F32, h: F64, type_name: str) -> U8:
    """Encode a matrix with error feedback, as dynquant does; return uint8 [n_rows, row_size]."""
    n, kind = w.shape[1], ALL[type_name]
    factor = factor_of(upper_triangle(h.astype(np.float32)), n, DAMPING)
    blocks = np.empty((len(w), kind.row_size(n)), np.uint8)
    feedback = Feedback(factor, h.diagonal().astype(np.float32), SWEEPS)
    rows = np.ascontiguousarray(w).view(np.uint8)
    encode_floats_with_feedback(rows, ALL["F32"], kind, blocks, feedback, Search())
    return blocks


def refitted(blocks: U8, w: F32, h: F64, type_name: str, share: float) -> U8:
    """Return blocks whose scales have gone a share of the way to least squares under H."""
    n, kind = w.shape[1], ALL[type_name]
    fields = blocks.reshape(-1, kind.type_size)
    n_blocks = n // kind.block_size
    units = list[F64]()  # what each scale is multiplied by in the row, [n_rows, n_blocks, size]
    for at in _SCALES[type_name]:
        alone = fields.copy()
        for other in _SCALES[type_name]:
            alone[:, other : other + 2] = 0
        alone[:, at : at + 2] = np.frombuffer(np.float16(1).tobytes(), np.uint8)
        values = decode(alone.reshape(blocks.shape), type_name, n).astype(np.float64)
        units.append(values.reshape(len(w), n_blocks, kind.block_size))
    under = damped(h)
    found = blocks.copy().reshape(len(w), n_blocks, kind.type_size)
    for r, row in enumerate(w.astype(np.float64)):
        basis = np.zeros((len(units) * n_blocks, n))
        for k, unit in enumerate(units):
            for b in range(n_blocks):
                start = b * kind.block_size
                basis[k * n_blocks + b, start : start + kind.block_size] = unit[r, b]
        products = basis @ under
        fit, *_ = np.linalg.lstsq(products @ basis.T, products @ row, rcond=1e-9)
        for k, at in enumerate(_SCALES[type_name]):
            old = found[r, :, at : at + 2].copy().view(np.float16)[:, 0].astype(np.float64)
            new = old + share * (fit[k * n_blocks : (k + 1) * n_blocks] - old)
            new = np.where(np.any(units[k][r] != 0, axis=1), new, old)
            found[r, :, at : at + 2] = new.astype(np.float16)[:, None].view(np.uint8)
    return found.reshape(blocks.shape)


def in_order(w: F32, h: F64, type_name: str, order: NDArray[np.int64]) -> F32:
    """Encode with the columns in an order; return the weights in theirs."""
    found = np.empty_like(w)
    blocks = fed(w[:, order], h[np.ix_(order, order)], type_name)
    found[:, order] = decode(blocks, type_name, w.shape[1])
    return found


def aimed(w: F32, moments: Moments, share: float) -> F32:
    """Return the weights whose outputs for the file's inputs are next to the model's outputs."""
    assert moments.cross is not None, "measured with the file's inputs"
    damping = damped(moments.h) - moments.h
    target = np.linalg.solve(moments.h + damping, (moments.cross + damping).T @ w.T).T
    return (w + share * (target - w)).astype(np.float32)


class Study:
    """The model, the reference, and what is known of inputs."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._given, self._folder = given, folder
        self._model = replica(dynquant.load_model(given.model), None)
        self._moments = dynquant.load_moments(given.moments)
        wanted = given.roles.split(",") if given.roles else None
        self._tensors = [
            t
            for t in self._model.tensors
            if t.name in self._moments.inputs
            and t.name.startswith("blk.")
            and t.parts.role != "ffn_gate_inp"
            and (wanted is None or t.parts.role in wanted)
        ]
        self._reference = self._written({}, "reference.gguf")
        prompts = prompts_of(given.text, given.prompts)
        self._losses = Losses(
            self._reference, given.text, given.windows, given.threads, folder / "cache", prompts
        )
        self._measured: dict[tuple[str, bool], Mapping[str, Moments]] = {}

    @property
    def title(self) -> str:
        """What was measured on what."""
        its = self._given
        return (
            f"{its.model.name}, {its.roles or 'all roles'}: {self._losses.n_windows} windows of"
            f" {its.text.name}; {its.prompts} prompts; perplexity {self._losses.perplexity:.4f}"
        )

    def arm(self, type_name: str, arm: str) -> tuple[F64, float, float]:
        """Return KL [n_windows, n_scored], the outputs' error and the tokens that are the same."""
        weights: dict[str, F32] = {}
        errors: list[float] = []
        measured: Mapping[str, Moments] = {}
        if arm in FIRSTS:
            measured = self._of_inputs(type_name, of_file=arm != "own")
        for tensor in self._tensors:
            if tensor.n_per_row % ALL[type_name].block_size:
                continue
            w = weights_of(tensor)
            x = w.reshape(-1, *w.shape[-2:])
            known = (
                [measured[tensor.name]] if arm in FIRSTS else list(map(Moments, self._of(tensor)))
            )
            y = np.stack(
                [
                    self._encoded(tensor, m, known[i % len(known)], type_name, arm)
                    for i, m in enumerate(x)
                ]
            )
            weights[tensor.name] = y.reshape(w.shape)
            sums = self._moments.arrays(tensor.name)["held_out"]
            for i, (a, b) in enumerate(zip(x, y, strict=True)):
                s = sums[i % len(sums)].T
                errors.append(float(np.square((a - b) @ s).sum() / np.square(a @ s).sum()))
        file = self._written(weights, f"{type_name}-own.gguf" if arm == "own" else "file.gguf")
        kl, same = self._losses.of(file)[1], self._losses.answers_of(file)
        return kl, float(np.exp(np.log(errors).mean())), same

    def _encoded(self, tensor: ModelTensor, w: F32, its: Moments, type_name: str, arm: str) -> F32:
        keys: dict[str, Callable[[F32], F64]] = {
            "norm": lambda w: np.linalg.norm(w.astype(np.float64), axis=0),
            "most": lambda w: np.abs(w).max(axis=0).astype(np.float64),
        }
        if arm in keys and tensor.parts.role.startswith("ffn_down"):
            return in_order(w, its.h, type_name, np.argsort(keys[arm](w), kind="stable"))
        if arm in ("target", "half-target"):
            w = aimed(w, its, 0.5 if arm == "half-target" else 1)
        blocks = fed(w, its.h, type_name)
        if arm in ("refit", "half"):
            blocks = refitted(blocks, w, its.h, type_name, 0.5 if arm == "half" else 1)
        return decode(blocks, type_name, w.shape[1])

    def _of(self, tensor: ModelTensor) -> list[F64]:
        """Return the moments of each matrix of a tensor."""
        found = self._moments.arrays(tensor.name)
        each = [full_matrix(c, tensor.n_per_row).astype(np.float64) for c in found["correlations"]]
        roots = np.sqrt(found["squares"].astype(np.float64))
        return [each[i % len(each)] * root[:, None] * root for i, root in enumerate(roots)]

    def _of_inputs(self, type_name: str, *, of_file: bool) -> Mapping[str, Moments]:
        """Return moments of the calibration text's inputs, of the model or of the file `own`."""
        key = type_name if of_file else "", of_file
        if key not in self._measured:
            file = self._folder / f"{type_name}-own.gguf" if of_file else self._reference
            text = self._given.calibration.read_bytes()
            windows = windows_of_text(self._reference, text, WINDOW, self._given.inputs)
            self._measured[key] = self._sums(file, [w.tolist() for w in windows])
        return self._measured[key]

    def _sums(self, file: Path, windows: Sequence[Sequence[int]]) -> Mapping[str, Moments]:
        names = {t.name for t in self._tensors}
        found: dict[str, Moments] = {}
        threads = self._given.threads
        ours = inputs_by_window(self._reference, windows, threads)
        is_own = file == self._reference
        theirs = ours if is_own else inputs_by_window(file, windows, threads)
        n = sum(map(len, windows))
        for x, y in ((x, x) for x in ours) if is_own else zip(ours, theirs, strict=True):
            for name in names:
                a, b = x[name], y[name]
                h = (b.T @ b).astype(np.float64) / n
                cross = h if is_own else (a.T @ b).astype(np.float64) / n
                if name in found:
                    h, cross = h + found[name].h, cross + found[name].cross
                found[name] = Moments(h, cross)
        return found

    def _written(self, weights: Mapping[str, F32], name: str) -> Path:
        tensors = tuple(
            ModelTensor(t.name, InMemory(weights[t.name])) if t.name in weights else t
            for t in self._model.tensors
        )
        model, file = replace(self._model, tensors=tensors), self._folder / name
        recipe = parse_recipe("default: F32", "study", "F32")
        convert_plan(make_plan(model, recipe), file, force=True)
        return file


def main() -> None:
    """Compare what the command line asks for, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("--moments", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True, help="unseen by model and moments")
    parser.add_argument("--roles", help="comma-separated; default: all of the layers")
    parser.add_argument("--types", default="IQ2_XXS,Q2_K,Q4_K")
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--inputs", type=int, default=64, help="windows of the calibration text")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    given = parser.parse_args()
    table = Table(box=None, pad_edge=False)
    for column in ("type", "arm", "KL", "KL 99.9%", "difference", "output", "same"):
        table.add_column(column, justify="left" if column in ("type", "arm") else "right")
    with tempfile.TemporaryDirectory() as folder:
        study = Study(given, Path(folder))
        table.title = study.title
        for type_name in given.types.upper().split(","):
            firsts: dict[str, F64] = {}
            for arm in given.arms.split(","):
                kl, output, same = study.arm(type_name, arm)
                first = firsts.setdefault(FIRSTS.get(arm, "feedback"), kl)
                per_window = (kl - first).mean(axis=1) / first.mean()
                error = per_window.std(ddof=1) / len(per_window) ** 0.5
                text = f"{100 * per_window.mean():+.1f} ± {100 * error:.1f} %"
                table.add_row(
                    type_name,
                    arm,
                    f"{kl.mean():.4e}",
                    f"{np.quantile(kl, 0.999):.3e}",
                    "" if kl is first else text,
                    f"{output:.3e}",
                    f"{same:.1f}",
                )
                print(type_name, arm, f"{kl.mean():.4e}", text, file=sys.stderr, flush=True)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


if __name__ == "__main__":
    main()
