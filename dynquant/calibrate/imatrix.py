"""Makes an imatrix of a model: what `dynquant imatrix` does."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.arrays import F32, I32
from dynquant.calibrate.channels import factor_of, in_order
from dynquant.calibrate.chats import Chat
from dynquant.calibrate.devices import CPU, find_device, free_bytes
from dynquant.calibrate.feeds import feeds
from dynquant.calibrate.given import (
    Detail,
    moments_of,
    output_problems,
    outputs_of,
    part_of,
    state_of,
)
from dynquant.calibrate.memory import needed_bytes
from dynquant.calibrate.moments import Collector, held_out, inputs_of
from dynquant.calibrate.one_pass import GROUP, Seen, group_size
from dynquant.calibrate.run import Progress, collect, pass_bounds
from dynquant.calibrate.skeleton import blocks
from dynquant.calibrate.sources import Source, open_source
from dynquant.calibrate.sums import Sums
from dynquant.calibrate.tokens import template_hashes
from dynquant.conversion.disk import locked_file
from dynquant.conversion.write import default_threads
from dynquant.distribution import our_version
from dynquant.errors import CalibrationError, ImportanceError, Problems
from dynquant.figures import size_text
from dynquant.importance.imatrix import write_imatrix
from dynquant.importance.moments import Input
from dynquant.keys import string, strings, u32
from dynquant.name_lists import grouped
from dynquant.quants.table import KEPT
from dynquant.texts import Text, shares, windows_of

CONTEXT = 512
"""Tokens of a window, as in llama-imatrix."""


@dataclass(frozen=True)
class Settings:
    """How an imatrix is made.

    texts:   what the model reads, conversations through its chat template
    context: tokens of a window
    chunks:  windows to read, shared equally among the texts; None reads all
    threads: None uses one for each CPU
    moments: also write the second moments, of a layer's experts together or of each
    device:  cpu, torch's name of an accelerator, or auto
    memory:  bytes that a run may use; None uses what is available
    """

    texts: tuple[Text | Chat, ...]
    context: int = CONTEXT
    chunks: int | None = None
    threads: int | None = None
    moments: Detail | None = None
    device: str = CPU
    memory: int | None = None


def make_imatrix(
    given: str | Path,
    out: Path,
    settings: Settings,
    *,
    force: bool,
    progress: Progress,
    say: Callable[[str], None],
) -> tuple[str, ...]:
    """Run a model over texts and write the imatrix; return warnings.

    given: a checkpoint's folder, a GGUF, or hf://...
    force: replace the file if it exists

    Raises DynquantError before the model runs for all that is wrong with the inputs.
    """
    problems = Problems()
    outputs = outputs_of(out, settings.moments)
    problems.add(*output_problems(outputs, force=force, model=str(given), texts=()))
    device = problems.attempt(lambda: find_device(settings.device))
    source = problems.attempt(lambda: open_source(given, device))
    problems.raise_any(CalibrationError)
    assert source is not None, "it is open or a fault"
    windows = _windows(source, settings)
    threads = settings.threads or default_threads()
    moments = _collector(source, windows, out, settings)
    inputs = moments.inputs if moments else ()
    passes, needed = _passes(source, windows, threads, settings.memory, inputs)
    say(
        f"{given}: {len(windows):,} windows of {windows.shape[1]:,} tokens"
        f"{f' in {passes} passes' if passes > 1 else ''}; needs at most {size_text(needed)} of"
        " memory"
    )
    if moments:
        say(f"{moments.writer.out}: will have {size_text(moments.writer.n_bytes)}")
    with _locked(part_of(out)), _moments_removed(moments, state_of(out)):
        seen = collect(
            source,
            windows,
            threads=threads,
            progress=progress,
            moments=moments,
            passes=passes,
            state=state_of(out),
            say=say,
            write=lambda seen: _write(source, seen, windows, out, settings),
        )
    found = _warnings(source, seen)
    if moments and moments.unseen:
        found.append(
            f"no second moments were seen of {', '.join(grouped(sorted(moments.unseen)))}; their"
            " channels are stored as uncorrelated"
        )
    return tuple(found)


@contextmanager
def _locked(part: Path) -> Generator[None]:
    """Keep other runs from the same output.

    Raises ConvertError if one is writing it.
    """
    lock = locked_file(part)
    try:
        yield
    finally:
        part.unlink(missing_ok=True)
        os.close(lock)


@contextmanager
def _moments_removed(moments: Collector | None, state: Path) -> Generator[None]:
    """Remove a begun file of moments after an error, unless a state lets the run resume."""
    try:
        yield
    except BaseException:
        if moments and not state.exists():
            moments.writer.discard()
        raise


def _passes(
    source: Source, windows: I32, threads: int, memory: int | None, moments: Sequence[Input]
) -> tuple[int, int]:
    """Return how often the model is read, and the bytes that a run needs at most.

    memory:  bytes that it may use; None uses what is available
    moments: inputs whose second moments are collected, which takes one pass

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
            moments=moments,
            context=n_per_window if source.has_scores else 0,
        )

    limit = free_bytes(source.skeleton.device) if memory is None else memory
    most = 1 if moments else -(-n_windows // group_size(n_per_window))
    for passes in range(1, most + 1):
        if needed(passes) <= limit:
            return len(pass_bounds(n_windows, n_per_window, passes)), needed(passes)
    raise CalibrationError(
        f"{source.path}: a run needs {size_text(needed(most))} of memory, with one thread"
        f" {size_text(needed(most, 1))}; {size_text(limit)} are"
        f" {'available' if memory is None else 'allowed'}; use fewer --threads, a smaller --context"
        f"{', fewer --chunks, no --moments' if moments else ''} or a larger --memory"
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
            f"--chunks {wanted}: the texts have {sum(available):,} windows of {context:,} tokens,"
            f" and each is used; give {len(tokens):,} to {sum(available):,}"
        )
    return np.concatenate(
        [
            windows_of(its, context, n, source.bos)
            for its, n in zip(tokens, shares(available, wanted), strict=True)
        ]
    )


def _collector(source: Source, windows: I32, out: Path, settings: Settings) -> Collector | None:
    if settings.moments is None:
        return None
    places = feeds(source, dict(blocks(source.skeleton.model)))
    n, context = windows.shape
    metadata = {
        "dynquant": our_version(),
        "model": source.name,
        "tokens_sha256": _tokens_sha256(windows),
        "windows": f"{n} of {context} tokens",
        "held_out": f"{int(held_out(n).sum())} windows",
    }
    inputs = inputs_of(source, places, settings.moments)
    tensors = source.model.tensors
    return Collector(moments_of(out), inputs, places, tensors, (n, context), metadata)


def _tokens_sha256(windows: I32) -> str:
    return hashlib.sha256(windows.astype("<i4").tobytes()).hexdigest()


def _write(source: Source, seen: Seen, windows: I32, out: Path, settings: Settings) -> None:
    entries: dict[str, tuple[F32, Sequence[int]]] = {}
    linear: dict[str, F32] = {}
    for tensor in source.model.tensors:
        if sums := _sums_of(tensor, seen):
            entries[tensor.name], linear[tensor.name] = _entry(tensor, sums)
    part = part_of(out)
    templates = template_hashes(source.model.keys, settings.texts)
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
                "dynquant.imatrix.model": string(source.name),
                "dynquant.imatrix.context": u32(settings.context),
                "dynquant.imatrix.token_weights": string("equal"),
                "dynquant.imatrix.device": string(source.skeleton.device.type),
                "dynquant.imatrix.tokens_sha256": string(_tokens_sha256(windows)),
                "dynquant.imatrix.text_sha256": strings([t.sha256 for t in settings.texts]),
                "dynquant.imatrix.text_form": strings(
                    ["chat" if isinstance(t, Chat) else "text" for t in settings.texts]
                ),
            }
            | ({"dynquant.imatrix.chat_template_sha256": strings(templates)} if templates else {}),
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
    factor = factor_of(tensor)
    squares = np.stack([s.squares for s in sums]) / factor**2
    linear = np.stack([s.linear for s in sums]) / factor
    squares = in_order(tensor, squares.astype(np.float32))
    linear = in_order(tensor, linear.astype(np.float32))
    counts = [s.count for s in sums]
    if "_exps." not in tensor.name:
        squares, linear, counts = squares.reshape(1, -1), linear.reshape(1, -1), counts[:1]
    return (squares, counts), linear


def _warnings(source: Source, seen: Seen) -> list[str]:
    """Return what is missing in an imatrix."""
    found: list[str] = []
    ahead = source.model.prediction.layers if source.model.prediction else ()
    missed = [
        tensor.name
        for tensor in source.model.tensors
        if len(tensor.shape) > 1 and tensor.name.endswith(".weight") and not _sums_of(tensor, seen)
        if tensor.parts.layer is not None and tensor.parts.layer not in ahead
        if not tensor.parts.role.endswith(("norm", "gate_inp", "shortconv.conv", "_ape"))
        if "conv1d" not in tensor.parts.role and tensor.source.stored.name not in KEPT
    ]
    if missed:
        found.append(f"no inputs were seen of {', '.join(grouped(missed))}")
    for tensor in source.model.tensors:
        sums = _sums_of(tensor, seen)
        if "ffn_down_exps." in tensor.name and (idle := sum(not s.count for s in sums)):
            found.append(f"{tensor.name}: {idle} of {len(sums)} experts were not chosen once")
    return found
