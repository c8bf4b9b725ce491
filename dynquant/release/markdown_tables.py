"""Tables that the model card and the job summary share."""

from __future__ import annotations

from collections.abc import Sequence

from dynquant.conversion.losses import Loss, loss_of
from dynquant.figures import figure, gigabytes
from dynquant.release.finished import Finished
from dynquant.release.markdown import code, table, text
from dynquant.report.tables import ranges
from dynquant.report.totals import by_role

ERROR_WORDS = (
    "Error is the squared difference between what was stored and what the source holds, over the"
    " squares of the source, each weighed by the importance of its input channel where there is"
    " one; a mean over weights."
)


def file_table(made: Sequence[Finished]) -> list[str]:
    """Return a line for each model: its first file, size, bits and errors."""
    head = ("file", "recipe", "size>", "bits per weight>", "error>")
    return table(head, (_line_of(m) for m in made))


def _line_of(made: Finished) -> tuple[str, ...]:
    n = len(made.paths)
    more = f" and {n - 1} more" if n > 1 else ""
    return (
        code(made.path.name) + more,
        text(made.recipe),
        gigabytes(made.file_bytes),
        f"{made.bits_per_weight:.3f}",
        figure(_weighted(made.loss)),
    )


def role_table(made: Finished) -> list[str]:
    """Return a line for each role: types, with their layers where they are several, and errors."""
    head = ["role", "types", "size>", "bits per weight>"]
    if made.errors:
        head += ["error>", "1 − cos²>", "largest>"]
    rows: list[list[str]] = []
    for share in by_role(made.tensors):
        parts = share.by_type
        types = [
            f"{part.name} ({ranges(part.layers)})" if len(parts) > 1 and part.layers else part.name
            for part in parts
        ]
        row = [code(share.name), text(", ".join(types)), gigabytes(share.n_bytes)]
        row.append(f"{share.bits_per_weight:.3f}")
        if made.errors:
            loss = loss_of(share.tensors, made.errors)
            row += [figure(_weighted(loss)), figure(loss and loss.one_minus_cos2)]
            row.append(figure(loss and loss.max))
        rows.append(row)
    return table(head, rows)


def _weighted(loss: Loss | None) -> float | None:
    return loss.weighted if loss else None
