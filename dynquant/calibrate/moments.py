"""Collects the second moments of the inputs that matrices share, while a model runs.

What runs in the threads of groups or experts is added in their order, in float32: the result is the
same for any number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dynquant.arch.base import ModelTensor
from dynquant.calibrate.channels import factor_of, in_order, order_of
from dynquant.calibrate.feeds import DOWN, GATE_UP, KEYS, PARAMETER, VALUES, Feed
from dynquant.calibrate.given import Detail
from dynquant.calibrate.sources import Source
from dynquant.calibrate.sums import Sums
from dynquant.importance.audit import with_same_inputs
from dynquant.importance.moments import N_SIGNS, Input, MomentsWriter, upper_triangle

HELD_OUT = 8
"""Of so many windows, the last is held out."""

_PANEL = 512
"""Columns of a product at a time: about half of the matrix is not computed."""


def held_out(n_windows: int) -> NDArray[np.bool_]:
    """Return which windows are held out: every eighth; of fewer, the last, if it is not alone."""
    found = np.arange(n_windows) % HELD_OUT == HELD_OUT - 1
    if 1 < n_windows < HELD_OUT:
        found[-1] = True
    return found


@dataclass(frozen=True)
class Place:
    """Where an input is seen.

    experts: the number of experts whose inputs are seen there together, or 0
    matrix:  the number of the expert, where each is a separate module
    """

    input: Input
    experts: int = 0
    matrix: int = 0


def inputs_of(
    source: Source, places: Mapping[str, tuple[Feed, ...]], detail: Detail
) -> list[Input]:
    """Return the inputs of a model's matrices: not those of routers, of MLA's heads, and of
    parameters that are no linear layer's.
    """
    found: dict[str, list[str]] = {}
    without = (KEYS, VALUES, PARAMETER)
    tensors = {tensor.name: tensor for tensor in source.model.tensors}
    for tensor in source.model.tensors:
        feeds = places.get(tensor.name, ())
        similar = set(with_same_inputs(tensor))
        is_router = tensor.parts.role == "ffn_gate_inp" or "router" in tensor.parts.role
        if is_router or not feeds or feeds[0].kind in without:
            continue
        same = (name for name in found if feeds == places[name] or name in similar)
        first = next((name for name in same if _is_alike(tensors[name], tensor)), tensor.name)
        found.setdefault(first, []).append(tensor.name)
    inputs: list[Input] = []
    for first, names in found.items():
        tensor = tensors[first]
        n_matrices = prod(tensor.shape[:-2])
        n_moments = n_matrices if detail == "experts" else 1
        name = first.removesuffix(".weight")
        inputs.append(Input(name, tuple(names), tensor.n_per_row, n_matrices, n_moments))
    return inputs


def _is_alike(one: ModelTensor, other: ModelTensor) -> bool:
    """Return whether the channels of two tensors have the same order and factor."""
    return factor_of(one) == factor_of(other) and np.array_equal(order_of(one), order_of(other))


class _Sum:
    """The moments of one input, or of one expert's."""

    def __init__(self, n: int) -> None:
        self.products = torch.zeros(n, n)
        self.signed = torch.zeros(N_SIGNS, n)
        self.held = 0

    def add(self, part: Part) -> None:
        for at, panel in part.panels:
            self.products[at : at + len(panel), at:] += panel
        self.signed += part.signed
        self.held += part.held


@dataclass(frozen=True)
class Part:
    """What some tokens add; panels: rows from `at` of the products, on and above the diagonal."""

    panels: list[tuple[int, Any]]
    signed: Any
    held: int


class Collector:
    """The moments of the layer that is running, and the file that they are written to.

    Raises ImportanceError if the file cannot be written.
    """

    def __init__(
        self,
        out: Path,
        inputs: Sequence[Input],
        places: Mapping[str, tuple[Feed, ...]],
        tensors: Sequence[ModelTensor],
        shape: tuple[int, int],
        metadata: Mapping[str, str],
    ) -> None:
        """Plan a file; shape: the number of windows, and their length."""
        self.inputs = inputs
        n_windows, self._context = shape
        self._held = torch.from_numpy(held_out(n_windows))
        self._feeds = {i.name: places[i.tensors[0]] for i in inputs}
        self._places: dict[Feed, Place] = {}
        for each in inputs:
            feeds = self._feeds[each.name]
            for matrix, feed in enumerate(feeds):
                together = each.n_matrices if len(feeds) == 1 and each.n_matrices > 1 else 0
                self._places[feed] = Place(each, together, matrix)
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._sums: dict[tuple[str, int], _Sum] = {}
        self.unseen: set[str] = set()
        self.writer = MomentsWriter(out, inputs, metadata)

    def place(self, feed: Feed) -> Place | None:
        """Return the input that is seen at a place; None if it is seen elsewhere, too."""
        return self._places.get(feed)

    def part(self, rows: Any, tokens: Any) -> Part:
        """Return what rows add.

        rows: float32 [n, n_channels]; tokens: int64 [n], their numbers over all windows
        """
        held = self._held[tokens // self._context].to(rows.device)
        fit, out = rows[~held], rows[held]
        panels = [
            (at, (fit[:, at : at + _PANEL].T @ fit[:, at:]).cpu())
            for at in range(0, fit.shape[1], _PANEL)
        ]
        signed = _signs(tokens[held.cpu()]).to(rows.device).T @ out
        return Part(panels, signed.cpu(), len(out))

    def add(self, each: Input, matrix: int, part: Part) -> None:
        """Add a part; the caller sees to the order."""
        key = each.name, matrix if each.n_moments > 1 else 0
        if key not in self._sums:
            self._sums[key] = _Sum(each.n)
        self._sums[key].add(part)

    def end_layer(self, totals: Mapping[Feed, Sequence[Sums]]) -> None:
        """Write the inputs that were seen, and forget them."""
        for each in self.inputs:
            feeds = self._feeds[each.name]
            if all(feed in totals for feed in feeds):
                self._write(each, [sums for feed in feeds for sums in totals[feed]])

    def _write(self, each: Input, sums: Sequence[Sums]) -> None:
        counts = np.array([s.count for s in sums])
        squares = np.stack([s.squares for s in sums]) / np.maximum(counts, 1)[:, None]
        tensor = self._tensors[each.tensors[0]]
        squares = in_order(tensor, squares) / factor_of(tensor) ** 2
        self.writer.write(f"{each.name}.counts", counts)
        self.writer.write(f"{each.name}.squares", squares)
        for row in range(each.n_moments):
            if each.n_moments == 1 or (each.name, row) in self._sums:
                self.write_moments(each, row)

    def write_moments(self, each: Input, row: int) -> None:
        """Write what was added of an input, or of one expert's; nothing leaves zeros."""
        found = self._sums.pop((each.name, row), None)
        if found is None:
            self.unseen.add(each.name)
            return
        tensor = self._tensors[each.tensors[0]]
        scale = 1 / (np.sqrt(N_SIGNS * max(found.held, 1)) * factor_of(tensor))
        products, order = found.products.numpy(), order_of(tensor)
        if not np.array_equal(order, np.arange(each.n)):
            products = products + np.triu(products, 1).T
            products = products[np.ix_(order, order)]
        held_out = found.signed.numpy()[:, order] * scale
        self.writer.write(f"{each.name}.correlations", upper_triangle(products), row)
        self.writer.write(f"{each.name}.held_out", held_out, row)


class ExpertMoments:
    """The moments of a layer's experts, as they run one by one."""

    def __init__(self, collector: Collector, module: str) -> None:
        self._collector = collector
        self._places = {kind: collector.place(Feed(module, kind)) for kind in (GATE_UP, DOWN)}

    def wants(self, kind: str) -> bool:
        """Return whether each expert shows its inputs of a kind.

        What all experts of a layer choose from is seen before them: each token has as many experts.
        """
        place = self._places[kind]
        return place is not None and (kind == DOWN or place.input.n_moments > 1)

    def of_all(self, rows: Any, tokens: Any) -> None:
        """Add the inputs that experts choose from, in the order of the calls."""
        place = self._places[GATE_UP]
        if place is not None and not self.wants(GATE_UP):
            self._collector.add(place.input, 0, self._collector.part(rows, tokens))

    def part(self, rows: Sequence[Any], tokens: Sequence[Any]) -> Part:
        """Return what an expert's rows add."""
        return self._collector.part(torch.cat(list(rows)), torch.cat(list(tokens)))

    def add(self, kind: str, number: int, part: Part) -> None:
        """Add an expert's part, in the order of their numbers."""
        place = self._places[kind]
        assert place is not None, "its inputs are wanted"
        self._collector.add(place.input, number, part)
        if place.input.n_moments > 1:
            self._collector.write_moments(place.input, number)


def _signs(tokens: Any) -> Any:
    """Return signs of some tokens, float32 [n, N_SIGNS], the same whenever they are asked for."""
    words = N_SIGNS // 64
    found = np.empty((len(tokens), words), np.uint64)
    for row, number in zip(found, tokens.tolist(), strict=True):
        row[:] = np.random.Philox(key=number).random_raw(words)
    bits = np.unpackbits(found.astype("<u8").view(np.uint8), axis=1)
    return torch.from_numpy(bits.astype(np.float32) * 2 - 1)
