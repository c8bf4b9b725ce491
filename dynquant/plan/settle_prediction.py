"""Keeps or drops the layers that predict further ahead, as the recipe says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from dynquant.arch.base import Model, ModelTensor
from dynquant.keys import Keys
from dynquant.tensors import TensorSource, n_rows, row_bytes
from dynquant.transforms import read_weights

_CHUNK = 1 << 20
"""Weights compared at a time."""

_DROPPED = "predicts further ahead; the recipe drops it (prediction_layers: drop)"


def settle_prediction(model: Model, *, keep: bool, reason: str = _DROPPED) -> Model:
    """Return a model with or without the layers that predict further ahead.

    reason: the reason to leave them out

    If they are kept, some keys change, and tensors that equal a tensor of the model are left out:
    llama.cpp uses that one instead. Both are read and compared, up to the first difference.

    Raises CheckpointError if they cannot be read.
    """
    ahead = model.prediction
    if ahead is None:
        return model
    theirs = [t for t in model.tensors if t.parts.layer in ahead.layers]
    if keep:
        reasons = _copies(model, theirs, ahead.shared)
    else:
        reasons = dict.fromkeys((t.name for t in theirs), reason)
    dropped = [(t, reasons[t.name]) for t in theirs if t.name in reasons]
    ignored = {name: why for tensor, why in dropped for name in tensor.stored_names}
    return replace(
        model,
        keys=_with(model.keys, ahead.keys) if keep else model.keys,
        tensors=tuple(t for t in model.tensors if t.name not in reasons),
        ignored=model.ignored | ignored,
        prediction=ahead if keep else None,
    )


def _copies(model: Model, theirs: list[ModelTensor], shared: Mapping[str, str]) -> dict[str, str]:
    """Return the tensors that equal the model's own, with the reason to drop each."""
    own = {t.name: t.source for t in model.tensors}
    return {
        t.name: f"equal to {original}, which llama.cpp uses in its place"
        for t in theirs
        if (original := shared.get(t.parts.role, "")) in own and _equal(t.source, own[original])
    }


def _equal(a: TensorSource, b: TensorSource) -> bool:
    if a.shape != b.shape:
        return False
    step = max(1, _CHUNK // a.shape[-1])
    for start in range(0, n_rows(a.shape), step):
        stop = min(start + step, n_rows(a.shape))
        if a.stored == b.stored:
            found = [np.empty((stop - start) * row_bytes(a), np.uint8) for _ in range(2)]
            a.read(start, stop, found[0])
            b.read(start, stop, found[1])
        else:
            found = [read_weights(source, start, stop) for source in (a, b)]
        if not np.array_equal(found[0], found[1]):
            return False
    return True


def _with(keys: Keys, changed: Keys) -> Keys:
    """Return keys with some changed; new ones follow the first changed one."""
    found: Keys = {}
    for name, value in keys.items():
        found[name] = changed.get(name, value)
        if name in changed:
            found |= {k: v for k, v in changed.items() if k not in keys}
    return found
