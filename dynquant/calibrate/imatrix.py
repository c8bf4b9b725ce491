"""Makes an imatrix of a model: what `dynquant imatrix` does."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32, I32
from dynquant.calibrate.devices import CPU, find_device, free_bytes
from dynquant.calibrate.memory import needed_bytes
from dynquant.calibrate.run import GROUP, Progress, Seen, collect, group_size, pass_bounds
from dynquant.calibrate.sources import Source, open_source
from dynquant.calibrate.sums import Sums
from dynquant.conversion.write import default_threads
from dynquant.distribution import our_version
from dynquant.errors import CalibrationError, ImportanceError, Problems
from dynquant.figures import size_text
from dynquant.importance.imatrix import write_imatrix
from dynquant.keys import string, strings, u32
from dynquant.name_lists import grouped
from dynquant.tensors import parts_of
from dynquant.texts import Text, shares, windows_of
from dynquant.transforms import Columns

CONTEXT = 512
"""Tokens of a window, as in llama-imatrix."""


@dataclass(frozen=True)
class Settings:
    """How an imatrix is made.

    texts:   what the model reads
    context: tokens of a window
    chunks:  windows to read, shared equally among the texts; None reads all
    threads: None uses one for each CPU
    device:  cpu, torch's name of an accelerator, or auto
    memory:  bytes that a run may use; None uses what is available
    """

    texts: tuple[Text, ...]
    context: int = CONTEXT
    chunks: int | None = None
    threads: int | None = None
    device: str = CPU
    memory: int | None = None


def make_imatrix(
    path: Path,
    out: Path,
    settings: Settings,
    *,
    force: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """Run a model over texts and write the imatrix; return warnings.

    path: a checkpoint's folder, or a GGUF

    Raises DynquantError before the model runs for all that is wrong with the inputs.
    """
    problems = Problems()
    if out.exists() and not force:
        problems.add(f"{out}: exists; replace it with --force, or name another output")
    if not out.absolute().parent.is_dir():
        problems.add(f"{out.parent}: is not a folder; create it first, or name another output")
    device = problems.attempt(lambda: find_device(settings.device))
    source = problems.attempt(lambda: open_source(path, device))
    problems.raise_any(CalibrationError)
    assert source is not None, "it is open or a fault"
    windows = _windows(source, settings)
    threads = settings.threads or default_threads()
    passes, needed = _passes(source, windows, threads, settings.memory)
    say(
        f"{path}: {len(windows):,} windows of {windows.shape[1]:,} tokens"
        f"{f' in {passes} passes' if passes > 1 else ''}; needs at most {size_text(needed)} of"
        " memory"
    )
    seen = collect(
        source,
        windows,
        threads=threads,
        progress=progress,
        passes=passes,
        state=out.with_name(f"{out.name}.state"),
    )
    _write(source, seen, windows, out, settings)
    return tuple(_warnings(source, seen))


def _passes(source: Source, windows: I32, threads: int, memory: int | None) -> tuple[int, int]:
    """Return how often the model is read, and the bytes that a run needs at most.

    memory: bytes that it may use; None uses what is available

    Raises CalibrationError if a single group of windows needs more.
    """
    n_windows, n_per_window = windows.shape
    distinct = len(np.unique(windows))

    def needed(passes: int, threads: int = threads) -> int:
        first, end = pass_bounds(n_windows, n_per_window, passes)[0]
        return needed_bytes(
            source.model,
            tokens=(end - first) * n_per_window,
            distinct=distinct,
            group=max(GROUP, n_per_window),
            threads=threads,
        )

    limit = free_bytes(source.skeleton.device) if memory is None else memory
    most = -(-n_windows // group_size(n_per_window))
    for passes in range(1, most + 1):
        if needed(passes) <= limit:
            return len(pass_bounds(n_windows, n_per_window, passes)), needed(passes)
    raise CalibrationError(
        f"{source.path}: a run needs {size_text(needed(most))} of memory, with one thread"
        f" {size_text(needed(most, 1))}; {size_text(limit)} are"
        f" {'available' if memory is None else 'allowed'}; use fewer --threads, a smaller --context"
        " or a larger --memory"
    )


def _windows(source: Source, settings: Settings) -> I32:
    """Return the windows of all texts, int32 [n, context], as llama-imatrix cuts them."""
    context, tokens = settings.context, source.tokenize(settings.texts)
    CalibrationError.raise_any(
        f"{text.name}: has {len(its):,} tokens, too few for a window of {context:,}; use a longer"
        " text or a smaller --context"
        for text, its in zip(settings.texts, tokens, strict=True)
        if len(its) < context
    )
    available = [len(its) // context for its in tokens]
    wanted = sum(available) if settings.chunks is None else settings.chunks
    if not len(tokens) <= wanted <= sum(available):
        raise CalibrationError(
            f"--chunks {wanted}: the texts have {sum(available):,} windows of {context:,} tokens;"
            f" use at least one of each of the {len(tokens)}, and at most all"
        )
    return np.concatenate(
        [
            windows_of(its, context, n, source.bos)
            for its, n in zip(tokens, shares(available, wanted), strict=True)
        ]
    )


def _write(source: Source, seen: Seen, windows: I32, out: Path, settings: Settings) -> None:
    entries: dict[str, tuple[F32, Sequence[int]]] = {}
    linear: dict[str, F32] = {}
    for tensor in source.model.tensors:
        if sums := _sums_of(tensor, seen):
            entries[tensor.name], linear[tensor.name] = _entry(tensor, sums)
    part = out.with_name(f"{out.name}.part")
    tokens = windows.astype("<i4").tobytes()
    try:
        write_imatrix(
            part,
            entries,
            datasets=[text.name for text in settings.texts],
            chunk_count=len(windows),
            chunk_size=settings.context,
            linear=linear,
            more_keys={
                "dynquant.version": string(our_version()),
                "dynquant.imatrix.model": string(source.path.name),
                "dynquant.imatrix.context": u32(settings.context),
                "dynquant.imatrix.device": string(source.skeleton.device.type),
                "dynquant.imatrix.tokens_sha256": string(hashlib.sha256(tokens).hexdigest()),
                "dynquant.imatrix.text_sha256": strings([t.sha256 for t in settings.texts]),
            },
        )
        part.replace(out)
    except OSError as e:
        part.unlink(missing_ok=True)
        raise ImportanceError(f"{out}: cannot be written: {e.strerror}") from e


def _sums_of(tensor: ModelTensor, seen: Seen) -> list[Sums]:
    """Return the sums of a tensor's inputs, for each matrix; nothing if they were not seen."""
    places = seen.places.get(tensor.name, ())
    if not all(place in seen.totals for place in places):
        return []
    return [sums for place in places for sums in seen.totals[place]]


def _entry(tensor: ModelTensor, sums: Sequence[Sums]) -> tuple[tuple[F32, Sequence[int]], F32]:
    """Return the data of a tensor in llama.cpp's form, and the sums with signs.

    Experts have a row and a count each; the heads of latent attention have one row together.
    """
    squares = _in_order(tensor, np.stack([s.squares for s in sums]).astype(np.float32))
    linear = _in_order(tensor, np.stack([s.linear for s in sums]).astype(np.float32))
    counts = [s.count for s in sums]
    if "_exps." not in tensor.name:
        squares, linear, counts = squares.reshape(1, -1), linear.reshape(1, -1), counts[:1]
    return (squares, counts), linear


def _in_order(tensor: ModelTensor, channels: F32) -> F32:
    """Return sums for each input channel in the order that the GGUF has.

    channels: float32 [n, n_per_row], in the checkpoint's order
    """
    for moved in parts_of(tensor.source, Columns):
        pieces = channels.reshape(len(channels), len(moved.order), -1)
        channels = pieces[:, moved.order].reshape(channels.shape)
    return channels


def _warnings(source: Source, seen: Seen) -> list[str]:
    """Return what is missing in an imatrix."""
    found: list[str] = []
    ahead = source.model.prediction.layers if source.model.prediction else ()
    missed = [
        tensor.name
        for tensor in source.model.tensors
        if len(tensor.shape) > 1 and tensor.name.endswith(".weight") and not _sums_of(tensor, seen)
        if tensor.parts.layer is not None and tensor.parts.layer not in ahead
        if not tensor.parts.role.endswith(("norm", "gate_inp", "conv1d", "shortconv.conv"))
    ]
    if missed:
        found.append(f"no inputs were seen of {', '.join(grouped(missed))}")
    for tensor in source.model.tensors:
        sums = _sums_of(tensor, seen)
        if "ffn_down_exps." in tensor.name and (idle := sum(not s.count for s in sums)):
            found.append(f"{tensor.name}: {idle} of {len(sums)} experts were not chosen once")
    return found
