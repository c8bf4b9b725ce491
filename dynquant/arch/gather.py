"""Match the checkpoint's tensors with the tensor table: each is used, or ignored for a reason."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dynquant.arch.adapters.folder import Adapter
from dynquant.arch.adapters.merge import merge
from dynquant.arch.base import Architecture, ModelTensor, Prediction, TensorName, Via
from dynquant.arch.buffers import constants
from dynquant.arch.leave_out import LeaveOut
from dynquant.arch.mixtures.stacks import unreadable_stacks
from dynquant.arch.towers.whole import CLIP
from dynquant.arch.wanted_tensors import Spelling, Wanted, wanted_of
from dynquant.checkpoint.packed import Packed, Weight, unpack
from dynquant.checkpoint.safetensors import Checkpoint
from dynquant.checkpoint.safetensors_header import StoredTensor
from dynquant.errors import ArchitectureError, CheckpointError
from dynquant.name_lists import grouped
from dynquant.quants.table import FLOATS, KEPT
from dynquant.tensors import Kept, TensorSource
from dynquant.transforms import Product, Reshaped, joined, stack

HEADS = ("lm_head.weight", "embed_out.weight")
"""The tensor that checkpoints of tied models omit; config.json may not declare them tied."""

TABLES = frozenset({"ffn_gate_tid2eid"})
"""Roles of integer tables, whose numbers are indices and not weights."""

_CHUNK = 1 << 22


def gather(
    architecture: Architecture,
    checkpoint: Checkpoint,
    leave_out: Sequence[str] = (),
    adapters: Sequence[Adapter] = (),
) -> tuple[tuple[ModelTensor, ...], dict[str, str], Prediction | None]:
    """Return the model's tensors, the stored tensors left out, and the prediction layers.

    leave_out: globs of stored names to leave out, which must not be tensors of the model
    adapters:  merged into the weights, in order

    Tensors that are left out come with the reason. Prediction layers are None if the checkpoint
    has none.

    Raises ArchitectureError listing all tensors that are missing, unknown or of a shape other than
    config.json implies. Raises CheckpointError listing all that are not stored as weights, or whose
    parts do not make up a weight. Raises AdapterError for adapters that do not fit.
    """
    unpacked = unpack(checkpoint)
    stored: Mapping[str, Weight] = unpacked.tensors
    ignored = unpacked.ignored | _ignored(architecture, stored)
    spell = Spelling.of(stored.keys() - ignored.keys(), architecture.rows[0].stored)
    tied = None
    if architecture.tied is not None:
        tied = (spell(architecture.tied[0]), spell(architecture.tied[1]))
    if adapters:
        own = {name: weight for name, weight in stored.items() if name not in ignored}
        stored = {**stored, **merge(architecture, own, tied, adapters)}
    wanted = list(wanted_of(architecture, spell, stored))
    prediction = architecture.prediction
    ahead = [w for w in wanted if _is_ahead(w, prediction)]
    if not any(name in stored for want in ahead for name in want.stored_names):
        wanted, prediction = [w for w in wanted if w not in ahead], None
    wanted = [w for w in wanted if not w.optional or any(name in stored for name in w.stored_names)]
    if tied is not None:
        wanted, untied = _tie(wanted, stored, *tied)
        ignored |= untied
    needed = {name for want in wanted for name in want.stored_names}
    known = needed | ignored.keys()
    ignored |= _zero_biases(unpacked.tensors, known) | constants(unpacked.tensors, known)
    left_out = LeaveOut(leave_out, {**stored, **ignored}, needed | ignored.keys())
    tensors, unusable = _use(architecture, checkpoint.folder, wanted, stored)
    problems = list(_problems(architecture, checkpoint.folder, stored, wanted, ignored, left_out))
    problems += left_out.problems(needed, architecture.name, checkpoint.folder)
    ignored |= left_out.reasons()
    ArchitectureError.raise_any([*problems, *unusable] if problems else [])
    CheckpointError.raise_any(unusable)
    return (*architecture.extra, *tensors), ignored, prediction


def _is_ahead(want: Wanted, prediction: Prediction | None) -> bool:
    return bool(prediction and TensorName.parse(want.name).layer in prediction.layers)


def _ignored(architecture: Architecture, stored: Iterable[str]) -> dict[str, str]:
    patterns = [(re.compile(p), reason) for p, reason in architecture.ignored.items()]
    return {
        name: reason for name in stored for pattern, reason in patterns if pattern.fullmatch(name)
    }


def _tie(
    wanted: list[Wanted], stored: Mapping[str, Weight], head: str, embedding: str
) -> tuple[list[Wanted], dict[str, str]]:
    """Drop the output matrix if the embedding replaces it.

    As in transformers, two stored matrices that differ are not tied, even if config.json declares
    them so; and if only the head is stored, it serves as the embedding.
    """
    without_head = [w for w in wanted if w.stored_names != (head,)]
    if head not in stored:
        return without_head, {}
    if embedding not in stored:
        return [
            replace(w, stored_names=(head,)) if w.stored_names == (embedding,) else w
            for w in without_head
        ], {}
    if _equal(stored[head], stored[embedding]):
        return without_head, {head: f"equal to {embedding}, which llama.cpp uses in its place"}
    return wanted, {}


def _zero_biases(stored: Mapping[str, Weight], known: Iterable[str]) -> dict[str, str]:
    """Return all-zero biases, which quantizers write beside weights that have no bias."""
    known = set(known)
    return {
        name: "zero in every element, and the model has no such bias"
        for name, bias in stored.items()
        if name.endswith(".bias") and name not in known and isinstance(bias, StoredTensor)
        if isinstance(stored.get(f"{name.removesuffix('bias')}weight"), Packed) and _is_zero(bias)
    }


def _is_zero(tensor: StoredTensor) -> bool:
    found = np.empty(tensor.n_bytes, np.uint8)
    tensor.file.read(tensor.offset, found)
    return not found.any()


def _equal(a: Weight, b: Weight) -> bool:
    """Return whether two tensors hold the same bytes, reading up to the first difference.

    Packed tensors count as different: heads and embeddings that share weights are stored as floats.
    """
    if not (isinstance(a, StoredTensor) and isinstance(b, StoredTensor)):
        return False
    if (a.dtype, a.shape, a.n_bytes) != (b.dtype, b.shape, b.n_bytes):
        return False
    for start in range(0, a.n_bytes, _CHUNK):
        found = [np.empty(min(_CHUNK, a.n_bytes - start), np.uint8) for _ in range(2)]
        for tensor, into in zip((a, b), found, strict=True):
            tensor.file.read(tensor.offset + start, into)
        if not np.array_equal(found[0], found[1]):
            return False
    return True


def _use(
    architecture: Architecture, folder: Path, wanted: list[Wanted], stored: Mapping[str, Weight]
) -> tuple[list[ModelTensor], list[str]]:
    """Return a tensor for each wanted one that is stored, and messages for unreadable dtypes."""
    tensors: list[ModelTensor] = []
    unusable: list[str] = []
    names = {want.name for want in wanted}
    for want in wanted:
        if not want.fits(stored):
            continue
        is_table = TensorName.parse(want.name).role in TABLES or want.name in architecture.integers
        weights = [stored[name] for name in want.stored_names]
        try:
            parts = [_rows(weight, is_table=is_table) for weight in weights]
        except CheckpointError as e:
            unusable += e.messages
            continue
        copied = next((part.stored.name for part in parts if part.stored.name in KEPT), None)
        if copied and not is_table:
            unusable += [
                f"{folder}: {name} is stored as {copied}, which is not supported for weights;"
                f" supported are {', '.join(FLOATS)}, F64"
                for name in grouped(want.stored_names)
            ]
            continue
        # A graph that has another factor under the name of the blocks' factor has only that one.
        is_free = f"{want.name.removesuffix('weight')}scale" not in names
        whole = is_free and not want.is_joined and want.factor is None
        source = _together(want, parts)
        kept = _kept(weights, want.is_stack, want.via) if whole else None
        rows = want.via(source) if want.via else source
        tensors.append(ModelTensor(want.name, rows, kept, want.stored_names))
    return tensors, unusable


def _rows(weight: Weight, *, is_table: bool) -> TensorSource:
    """Return the rows of a weight; the numbers of tables stay as they are stored."""
    if is_table and isinstance(weight, StoredTensor):
        return weight.as_stored()
    return weight.source()


def _together(want: Wanted, parts: Sequence[TensorSource]) -> TensorSource:
    """Return the stored tensors that a wanted one is made of, as one source."""
    if want.factor is not None:
        return Product(*parts)
    if want.is_stack:
        return stack(parts)
    return joined(parts) if want.is_joined else parts[0]


def _kept(weights: list[Weight], is_stack: bool, via: Via | None) -> Kept | None:
    """Return the stored blocks of a tensor if all its parts are blocks and whole rows are moved."""
    found = [w.kept for w in weights if isinstance(w, Packed) and w.kept]
    if not found or len(found) < len(weights):
        return None
    if not is_stack:
        blocks, factor = [found[0].blocks, *found[0].others], found[0].factor
    else:
        blocks = [stack([kept.blocks for kept in found])]
        factor = Reshaped(stack([kept.factor for kept in found]), (len(found),))
    try:
        moved = [via(b) if via else b for b in blocks]
    except ValueError:  # the transform moves columns
        return None
    if any(m.stored != b.stored for m, b in zip(moved, blocks, strict=True)):
        return None
    return Kept(moved[0], factor, tuple(moved[1:]))


def _problems(
    architecture: Architecture,
    folder: Path,
    stored: Mapping[str, Weight],
    wanted: list[Wanted],
    ignored: Iterable[str],
    left_out: LeaveOut,
) -> Iterator[str]:
    known: set[str] = set()
    missing: list[str] = []
    shapes: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
    for want in wanted:
        known.update(want.again)
        for name in want.stored_names:
            if name in known:
                continue
            known.add(name)
            if name not in stored:
                missing.append(name)
            elif not want.is_of(name, stored[name].shape):
                shapes.setdefault((stored[name].shape, want.shape_of(name)), []).append(name)
    yield from (m for want in wanted for m in _other_rows(folder, stored, want))
    known |= {*ignored, *left_out.reasons()}
    unknown = [name for name in stored if name not in known]
    # Projectors have other forms of names, and no experts.
    experts = [] if architecture.name == CLIP else wanted
    stacks = unreadable_stacks(folder, stored, experts, unknown)
    yield from stacks.messages
    for name in grouped(n for n in missing if n not in stacks.names):
        tied = name in HEADS and architecture.tied is None
        hint = " (tie_word_embeddings in config.json is false)" if tied else ""
        yield (
            f"{folder}: {name} is missing{hint}; {_called(architecture)} needs it, download the"
            " checkpoint again"
        )
    for (found, expected), names in shapes.items():
        for name in grouped(n for n in names if n not in stacks.names):
            yield (
                f"{folder}: {name} has shape {list(found)}, but config.json implies"
                f" {list(expected)}; take both from one model"
            )
    unknown = [name for name in unknown if name not in stacks.names]
    beyond = {name: layer for name in unknown if (layer := _layer(name, architecture)) is not None}
    if beyond:
        first, last = min(beyond.values()), max(beyond.values())
        layers = f"layers {first} to {last}" if first < last else f"layer {first}"
        yield (
            f"{folder}: {next(iter(beyond))} and all others of {layers} are beyond the"
            f" {architecture.n_layers} layers of config.json; take both from one model"
        )
    yield from left_out.unknown(
        (name for name in unknown if name not in beyond),
        _called(architecture),
        folder,
        is_whole=not (missing or shapes or beyond or stacks.messages) and architecture.name != CLIP,
    )


def _called(architecture: Architecture) -> str:
    """Return what messages call an architecture."""
    return "the projector" if architecture.name == CLIP else architecture.name


def _other_rows(folder: Path, stored: Mapping[str, Weight], want: Wanted) -> Iterator[str]:
    """Yield a message if the rows of all stored parts are not as many as config.json implies."""
    parts = want.stored_names
    if all(n in stored and want.is_of(n, stored[n].shape) for n in parts) and (
        missing := want.n_missing_rows(stored)
    ):
        names = ", ".join(grouped(parts))
        yield (
            f"{folder}: {names} have {want.shape[0] - missing} rows together, but config.json"
            f" implies {want.shape[0]}; take both from one model"
        )


def _layer(name: str, architecture: Architecture) -> int | None:
    """Return the layer of a stored name if it is beyond those of config.json, else None."""
    found = re.search(r"(?:^|\.)(?:layers|h|blocks)\.([0-9]{1,4})\.", name)
    layer = int(found[1]) if found else -1
    ahead = architecture.prediction.layers if architecture.prediction else ()
    return layer if layer >= architecture.n_layers and layer not in ahead else None
