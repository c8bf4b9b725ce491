"""The input channels of a GGUF's tensor, made of those that transformers' model has."""

from __future__ import annotations

from typing import Any

import numpy as np

from dynquant.arch.base import ModelTensor
from dynquant.arrays import I64
from dynquant.tensors import parts_of
from dynquant.transforms import Columns, ScaledInputs


def factor_of(tensor: ModelTensor) -> float:
    """Return what the weights of a tensor are multiplied by, so that its inputs need not be."""
    factor = 1.0
    for scaled in parts_of(tensor.source, ScaledInputs, alike=True):
        factor *= scaled.factor
    return factor


def order_of(tensor: ModelTensor) -> I64:
    """Return for each input channel of a tensor its number in the checkpoint, int64 [n_per_row]."""
    return in_order(tensor, np.arange(tensor.n_per_row)[None])[0]


def in_order(tensor: ModelTensor, channels: Any) -> Any:
    """Return numbers of each input channel in the order that the GGUF has.

    channels: an array [n, n_per_row], in the checkpoint's order
    """
    for moved in parts_of(tensor.source, Columns):
        pieces = channels.reshape(len(channels), len(moved.order), -1)
        channels = pieces[:, moved.order].reshape(channels.shape)
    return channels
