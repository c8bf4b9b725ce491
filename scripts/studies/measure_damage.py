"""What quantized tensors cost a model: KL divergence beside the errors of their outputs.

    pip install -e '.[dev]'
    python scripts/studies/measure_damage.py MODEL --imatrix FILE --moments FILE --text FILE \
        [--windows 16] [--mixes 60] [--each ROLE] --json OUT.json

MODEL is a checkpoint or a GGUF with float weights. Three kinds of files are made and compared with
the model over the text's first windows of 512 tokens, the second half of each:

    groups  the tensors of one role in one part of the depth are quantized, all else is F16; with
            two types, of few and of more bits
    mixes   every tensor has a type that is drawn for it, around a number of bits that is drawn for
            the mix
    each    one tensor of the roles of --each is quantized, with few bits, all else is F16

The JSON has for each file its KL divergence (`kl`, of each window `windows`), and of each quantized
tensor its type, `diagonal`: sum h e^2 / sum h w^2, with h the mean squares of the inputs, limited
as dynquant/budget/sample.py does, and `output`: the same ratio for the outputs on the held-out
windows of the moments. Without `output` (the embedding), moments have no input of the tensor.
fit_damage.py reads these files.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from losses import Losses
from replicas import InMemory, replica, weights_of

import dynquant
from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32
from dynquant.budget.sample import usual_inputs
from dynquant.conversion.write import convert_plan
from dynquant.importance.audit import audit
from dynquant.plan.make import make_plan
from dynquant.quants import ALL, decode, encode
from dynquant.recipe.loader import parse_recipe
from dynquant.recipe.protection import protection

# fmt: off
LADDER = (
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "Q2_K", "IQ3_XXS", "IQ3_S", "Q3_K", "IQ4_XS",
    "Q4_K", "Q5_K", "Q6_K",
)
# fmt: on
SMALL_BLOCKS = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
PARTS = 4
"""Parts of the depth."""


class Study:
    """The model, the reference, and the errors of its tensors, which are computed once."""

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self._folder = folder
        self._model = replica(dynquant.load_model(given.model), None)
        imatrix = dynquant.load_imatrix(given.imatrix)
        self._importance = audit(imatrix, self._model.tensors)[0]
        self._moments = dynquant.load_moments(given.moments)
        architecture = self._model.architecture
        self.tensors = [
            t
            for t in self._model.tensors
            if len(t.shape) > 1 and protection(t, architecture) is None
        ]
        self.n_layers = 1 + max(t.parts.layer or 0 for t in self.tensors)
        reference = self._written({}, "reference.gguf", "F32")
        self._losses = Losses(reference, given.text, given.windows, given.threads, folder / "cache")
        reference.unlink()
        self._known: dict[tuple[str, str], tuple[F32, dict[str, Any]]] = {}

    def fitting(self, tensor: ModelTensor) -> list[str]:
        """Return the types that a tensor can have, from few to many bits."""
        rows = tensor.n_per_row
        names = LADDER if rows % 256 == 0 else SMALL_BLOCKS
        return [n for n in names if tensor.name in self._importance or n in ("Q4_K", "Q6_K")]

    def file(self, types: Mapping[str, str]) -> dict[str, Any]:
        """Quantize some tensors, and return what it costs."""
        weights: dict[str, F32] = {}
        errors: dict[str, Any] = {}
        by_name = {t.name: t for t in self.tensors}
        for name, kind in types.items():
            weights[name], errors[name] = self._quantized(by_name[name], kind)
        kl = self._losses.of(self._written(weights, "file.gguf", "F16"))[1]
        return {"kl": float(kl.mean()), "windows": kl.mean(axis=1).tolist(), "tensors": errors}

    def _quantized(self, tensor: ModelTensor, kind: str) -> tuple[F32, dict[str, Any]]:
        key = tensor.name, kind
        if key not in self._known:
            self._known[key] = self._quantize(tensor, kind)
        return self._known[key]

    def _quantize(self, tensor: ModelTensor, kind: str) -> tuple[F32, dict[str, Any]]:
        w, n = weights_of(tensor), tensor.n_per_row
        found = {"type": kind, "bits": ALL[kind].bpw, "diagonal": [0.0, 0.0], "output": [0.0, 0.0]}
        its = self._importance.get(tensor.name)
        sums = None
        if tensor.name in self._moments.inputs:
            sums = self._moments.arrays(tensor.name)["held_out"]
        decoded = list[F32]()
        for i, x in enumerate(w.reshape(-1, *w.shape[-2:])):
            h = its.of(i) if its else None
            y = decode(encode(x, kind, h), kind, n)
            decoded.append(y)
            weight = np.ones(n) if h is None else usual_inputs(h).astype(np.float64)
            pairs = [("diagonal", (x - y) * np.sqrt(weight), x * np.sqrt(weight))]
            if sums is not None:
                s = sums[i % len(sums)].T
                pairs.append(("output", (x - y) @ s, x @ s))
            for label, error, whole in pairs:
                found[label][0] += float(np.square(error, dtype=np.float64).sum())
                found[label][1] += float(np.square(whole, dtype=np.float64).sum())
        for label in ("diagonal", "output"):
            error, whole = found[label]
            found[label] = error / whole if whole else None
        return np.stack(decoded).reshape(w.shape), found

    def _written(self, weights: Mapping[str, F32], name: str, default: str) -> Path:
        tensors = tuple(
            ModelTensor(t.name, InMemory(weights[t.name])) if t.name in weights else t
            for t in self._model.tensors
        )
        model, file = replace(self._model, tensors=tensors), self._folder / name
        convert_plan(
            make_plan(model, parse_recipe(f"default: {default}", "study", default)),
            file,
            force=True,
            verify_sample=0,
        )
        return file


def groups_of(study: Study) -> dict[str, list[ModelTensor]]:
    """Return the tensors of each role and part of the depth."""
    found: dict[str, list[ModelTensor]] = {}
    for t in study.tensors:
        layer = t.parts.layer
        part = "" if layer is None else f" {layer * PARTS // study.n_layers}"
        found.setdefault(f"{t.parts.role}{part}", []).append(t)
    return found


def main() -> None:
    """Measure what the command line asks for, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL")
    parser.add_argument("--imatrix", type=Path, required=True)
    parser.add_argument("--moments", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens")
    parser.add_argument("--mixes", type=int, default=60)
    parser.add_argument("--each", action="append", default=[], metavar="ROLE")
    parser.add_argument("--threads", type=int, default=2, help="of llama.cpp")
    parser.add_argument("--json", type=Path, required=True, help="resumed if it is there")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(given, Path(folder))
        document: dict[str, Any] = {"model": given.model.name, "n_layers": study.n_layers}
        document |= {"groups": [], "mixes": [], "each": []}
        if given.json.exists():
            document |= json.loads(given.json.read_text("utf-8"))
        known = {one["label"] for kind in ("groups", "mixes", "each") for one in document[kind]}

        def measured(kind: str, label: str, types: Mapping[str, str]) -> None:
            if label in known:
                return
            document[kind].append({"label": label} | study.file(types))
            given.json.write_text(json.dumps(document, indent=1) + "\n", "utf-8")
            print(label, f"{document[kind][-1]['kl']:.4e}", file=sys.stderr, flush=True)

        for label, tensors in groups_of(study).items():
            for position in (0.25, 0.75):
                types = {t.name: study.fitting(t) for t in tensors}
                chosen = {n: names[int(position * len(names))] for n, names in types.items()}
                measured("groups", f"{label} {'few' if position < 0.5 else 'more'}", chosen)
        for t in study.tensors:
            if t.parts.role in given.each:
                names = study.fitting(t)
                measured("each", t.name, {t.name: names[len(names) // 4]})
        rng = np.random.default_rng(0)
        for i in range(given.mixes):
            middle = rng.uniform(0, 1)
            drawn: dict[str, str] = {}
            for t in study.tensors:
                names = study.fitting(t)
                at = np.clip(middle + rng.normal(0, 0.2), 0, 0.999)
                drawn[t.name] = names[int(at * len(names))]
            measured("mixes", f"mix {i}", drawn)


if __name__ == "__main__":
    main()
