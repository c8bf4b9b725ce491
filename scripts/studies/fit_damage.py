"""The factors of damage that measure_damage.py's files show, and how well they rank mixes.

    pip install -e '.[dev]'
    python scripts/studies/fit_damage.py books.json moe.json ...

The factor of a group is its KL divergence over the sum of its tensors' relative errors. First
table: the factors of each role by parts of the depth, relative to the geometric mean of the model's
layers, and the geometric mean of the models: what dynquant/budget/damage.py has. Second table: for
the mixes of each model, Spearman's correlation of the KL divergence with predicted damage:

    bits       less bits per weight, more damage
    error      the sum of all relative errors
    others     factors of the other models
    measured   factors of the model's own groups
    scale      measured KL divergence over predicted damage, by the model's own groups: the
               geometric mean of the mixes, and by what factor most differ from it

Third table, where tensors were measured one at a time (--each): their factors by layer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import spearmanr

PARTS = 4


@dataclass(frozen=True)
class Measured:
    """The groups and mixes of a model.

    factors: by role and part of the depth (None for tensors of no layer)
    """

    name: str
    n_layers: int
    factors: Mapping[tuple[str, int | None], float]
    mixes: Sequence[Mapping[str, Any]]
    each: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Measured:
        """Read a file of measure_damage.py; groups of few bits, whose divergence is above noise."""
        found = json.loads(path.read_text("utf-8"))
        factors = {
            key_of(next(iter(group["tensors"])), found["n_layers"]): group["kl"]
            / sum(t["diagonal"] for t in group["tensors"].values())
            for group in found["groups"]
            if group["label"].endswith(" few")
        }
        each = found.get("each", [])
        return cls(found["model"], found["n_layers"], factors, found["mixes"], each)

    @property
    def middle(self) -> float:
        """The geometric mean of the layers' factors."""
        return float(
            np.exp(np.mean([np.log(f) for (_, p), f in self.factors.items() if p is not None]))
        )

    def relative(self) -> dict[tuple[str, int | None], float]:
        """Return the factors over their middle."""
        return {key: factor / self.middle for key, factor in self.factors.items()}

    def by_layer(self) -> dict[str, dict[int, float]]:
        """Return the factors of tensors that were measured one at a time, by role and layer."""
        found: dict[str, dict[int, float]] = {}
        for one in self.each:
            _, layer, role, _ = one["label"].split(".")
            error = one["tensors"][one["label"]]["diagonal"]
            found.setdefault(role, {})[int(layer)] = one["kl"] / error
        return found

    def predicted(
        self, mix: Mapping[str, Any], factors: Mapping[tuple[str, int | None], float]
    ) -> float:
        """Return the damage of a mix, by factors; one for what they do not have."""
        return sum(
            factors.get(key_of(name, self.n_layers), 1.0) * t["diagonal"]
            for name, t in mix["tensors"].items()
        )


def key_of(name: str, n_layers: int) -> tuple[str, int | None]:
    """Return the role of a tensor, and its part of the depth."""
    parts = name.split(".")
    if parts[0] != "blk":
        return parts[0], None
    return parts[2], int(parts[1]) * PARTS // n_layers


def mean_of(models: Sequence[Measured]) -> dict[tuple[str, int | None], float]:
    """Return the geometric mean of some models' relative factors."""
    logs: dict[tuple[str, int | None], list[float]] = {}
    for model in models:
        for key, factor in model.relative().items():
            logs.setdefault(key, []).append(float(np.log(factor)))
    return {key: float(np.exp(np.mean(values))) for key, values in logs.items()}


def main() -> None:
    """Print both tables."""
    models = [Measured.read(Path(p)) for p in sys.argv[1:]]
    mean = mean_of(models)
    table = Table(title="factors of damage, by parts of the depth", box=None, pad_edge=False)
    for column in ("role", *(m.name for m in models), "mean"):
        table.add_column(column, justify="left" if column == "role" else "right")
    for role in dict.fromkeys(role for role, _ in mean):
        parts = [part for r, part in mean if r == role]
        cells = [
            " ".join(f"{f[role, p]:.2f}" if (role, p) in f else "-" for p in parts)
            for f in (*(m.relative() for m in models), mean)
        ]
        table.add_row(role, *cells)
    ranks = Table(title="rank correlation over mixes", box=None, pad_edge=False)
    for column in ("model", "mixes", "bits", "error", "others", "measured", "scale"):
        ranks.add_column(column, justify="left" if column == "model" else "right")
    for model in models:
        kl = [mix["kl"] for mix in model.mixes]
        if len(kl) < 3:
            continue
        others = mean_of([m for m in models if m is not model])
        own = [model.predicted(mix, model.factors) for mix in model.mixes]
        bits = [-np.mean([t["bits"] for t in mix["tensors"].values()]) for mix in model.mixes]
        predictions = (
            bits,
            [model.predicted(mix, {}) for mix in model.mixes],
            [model.predicted(mix, others) for mix in model.mixes],
            own,
        )
        logs = np.log(np.array(kl) / np.array(own))
        ranks.add_row(
            model.name,
            str(len(kl)),
            *(f"{spearmanr(p, kl).statistic:.3f}" for p in predictions),
            f"{np.exp(logs.mean()):.2f} x/÷ {np.exp(logs.std(ddof=1)):.2f}",
        )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print(table)
    console.print()
    console.print(ranks)
    single = Table(title="factors of one tensor at a time", box=None, pad_edge=False)
    for column in ("model", "role", "from the first layer to the last"):
        single.add_column(column)
    for model in models:
        for role, factors in model.by_layer().items():
            cells = (f"{factor:.2f}" for _, factor in sorted(factors.items()))
            single.add_row(model.name, role, " ".join(cells))
    if single.row_count:
        console.print()
        console.print(single)


if __name__ == "__main__":
    main()
