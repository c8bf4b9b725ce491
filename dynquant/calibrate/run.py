"""Runs windows of tokens through a model and collects the inputs of its matrices.

Windows that have no place in memory together run in several passes over the model (one_pass.py).
Sums continue from pass to pass, in the order of the windows: the result is the same for any number
of passes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dynquant.arrays import I32
from dynquant.calibrate.feeds import feeds
from dynquant.calibrate.moments import Collector
from dynquant.calibrate.one_pass import Pass, Seen, group_size
from dynquant.calibrate.resume import Keeper, State, identity
from dynquant.calibrate.skeleton import blocks
from dynquant.calibrate.sources import Source

Progress = Callable[[int, int], None]
"""Called with the number of layers that are done, and of all layers."""

SAVE_SECONDS = 60.0
"""Time between two states that are stored."""


def collect(
    source: Source,
    windows: I32,
    *,
    threads: int,
    progress: Progress,
    moments: Collector | None = None,
    passes: int = 1,
    state: Path | None = None,
    save_seconds: float = SAVE_SECONDS,
    say: Callable[[str], None] = lambda _: None,
    write: Callable[[Seen], None] = lambda _: None,
) -> Seen:
    """Run windows through a model.

    windows: int32 [n_windows, n], token ids
    moments: collects the second moments, too; with one pass only
    passes:  how often the model is read, each time for an equal share of the windows
    state:   a file that a run writes from time to time, and resumes from if it exists; removed at
             the end. In models that hand more than hidden states from layer to layer, a run resumes
             at a pass only
    say:     receives a message about a stored state
    write:   writes what was collected; the state stays until it returns

    Raises CalibrationError if an input is not finite.
    """
    assert moments is None or passes == 1, "moments are written as layers end"
    writer = moments.writer if moments else None
    name = writer.out.name if writer else ""
    of = identity(source.files, windows, source.skeleton.device, name)
    keeper = None if state is None else Keeper(state, of, save_seconds)
    mixtures = dict(blocks(source.skeleton.model))
    seen = Seen(feeds(source, mixtures))
    shares = pass_bounds(len(windows), windows.shape[1], passes)
    started = keeper.load() if keeper and (writer is None or writer.is_begun) else None
    if keeper and state is not None and state.exists():
        resumes = f"the run resumes before layer {started.layer}" if started else ""
        say(f"{state}: {resumes or 'is of another run, and is replaced'}")
    if writer and not started:
        writer.begin()
    if started:
        seen.totals = started.totals
        first, end = started.windows
        shares = [(first, end), *((max(a, end), b) for a, b in shares if b > end)]
    total = len(source.skeleton.layers) * len(shares)
    for number, share in enumerate(shares):
        before = len(source.skeleton.layers) * number
        runner = Pass(source, windows, share, seen, threads, moments)
        runner.run(lambda done, at=before: progress(at + done, total), keeper, started)
        started = None
        if keeper and number + 1 < len(shares):
            following = State(shares[number + 1], 0, [], seen.totals)
            keeper.offer(lambda state=following: state)
    if writer:
        writer.finish()
    write(seen)
    progress(total, total)
    if keeper:
        keeper.remove()
    return seen


def pass_bounds(n_windows: int, n_per_window: int, passes: int) -> list[tuple[int, int]]:
    """Return the first window of each pass, and the first after it: whole groups."""
    n = group_size(n_per_window)
    step = n * -(-n_windows // (n * passes))
    return [(at, min(n_windows, at + step)) for at in range(0, n_windows, step)]
