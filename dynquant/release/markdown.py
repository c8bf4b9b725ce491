"""Markdown for the model card and the job summary; names from files are escaped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from dynquant.conversion.losses import Loss, loss_of
from dynquant.figures import figure, size_column
from dynquant.release.finished import Finished
from dynquant.report.tables import ranges
from dynquant.report.totals import Share, by_role

ERROR_WORDS = (
    "Error is the weighted relative squared error: for each tensor, the sum of squared differences"
    " between stored and source weights, divided by the sum of squared source weights. Each term is"
    " multiplied by the importance of its input channel if there is an imatrix. For several tensors"
    " it is the mean by number of weights."
)

_SPECIAL = re.compile(r"([\\`*{}\[\]<>()#+!|~$&:]|(?<![^\W_])_|_(?![^\W_]))")
"""Characters that Markdown may interpret; an underscore within a word (Q4_K) is not one."""

_WHITE = re.compile(r"[\s\x00-\x1f\x7f]+")


def text(words: str) -> str:
    """Return text that Markdown shows unchanged, on one line."""
    return _SPECIAL.sub(r"\\\1", _line(words))


def code(words: str) -> str:
    """Return text as code, on one line; `|` is replaced by `¦`, so that it works in tables."""
    line = _line(words).replace("|", "¦")
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else ""


def block(lines: Iterable[str], language: str = "") -> list[str]:
    """Return lines of code as a fenced block."""
    found = list(lines)
    longest = max((len(run) for line in found for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + language, *found, fence]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table of Markdown cells; a head that ends in > is aligned right."""
    rule = ["---:" if name.endswith(">") else "---" for name in head]
    lines = [[name.rstrip(">") for name in head], rule, *map(list, rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _line(words: str) -> str:
    return _WHITE.sub(" ", words).strip()


def file_table(models: Sequence[Finished]) -> list[str]:
    """Return a table with a line for each model: first file, recipe, size, bits and error."""
    head = ("file", "recipe", "size>", "bits per weight>", "error>")
    sizes = size_column([m.file_bytes for m in models])
    return table(head, (_line_of(m, size) for m, size in zip(models, sizes, strict=True)))


def _line_of(model: Finished, size: str) -> tuple[str, ...]:
    n = len(model.paths)
    more = f" and {n - 1} more" if n > 1 else ""
    return (
        code(model.path.name) + more,
        text(model.recipe),
        size,
        f"{model.bits_per_weight:.3f}",
        figure(_weighted(model.loss)),
    )


def role_table(model: Finished) -> list[str]:
    """Return a table with a line for each role: types, size, bits and errors.

    If a role has several types, each is followed by its layers.
    """
    head = ["role", "types", "size>", "bits per weight>"]
    if model.errors:
        head += ["error>", "1 − cos²>", "largest difference>"]
    rows: list[list[str]] = []
    shares = by_role(model.tensors)
    for share, size in zip(shares, size_column([s.n_bytes for s in shares]), strict=True):
        row = [code(share.name), text(types_text(share)), size]
        row.append(f"{share.bits_per_weight:.3f}")
        if model.errors:
            loss = loss_of(share.tensors, model.errors)
            row += [figure(_weighted(loss)), figure(loss and loss.one_minus_cos2)]
            row.append(figure(loss and loss.max))
        rows.append(row)
    return table(head, rows)


def types_text(share: Share) -> str:
    """Return the types of a share; if there are several, each is followed by its layers."""
    parts = share.by_type
    return ", ".join(
        f"{part.name} ({ranges(part.layers)})" if len(parts) > 1 and part.layers else part.name
        for part in parts
    )


def _weighted(loss: Loss | None) -> float | None:
    return loss.weighted if loss else None
