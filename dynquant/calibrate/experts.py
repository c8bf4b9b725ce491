"""The experts of a mixture, one after another, over the tokens of all windows.

Transformers holds all experts of a layer in two parameters, which a small machine has no memory
for. Here a mixture's module stops where its experts are wanted; then each expert is read from the
checkpoint once, in the form that the GGUF has it, and runs on all tokens that chose it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from dynquant.arch.base import ModelTensor
from dynquant.arrays import U8
from dynquant.calibrate.feeds import DOWN, GATE_UP
from dynquant.calibrate.moments import ExpertMoments
from dynquant.calibrate.sources import floats
from dynquant.calibrate.sums import Sums
from dynquant.tensors import row_bytes

IMPLEMENTATION = "dynquant"
"""Name of our function in transformers' table of implementations."""


@dataclass
class Request:
    """The tokens of some windows that wait for their experts.

    hidden:  float32 [n_tokens, n_hidden]
    chosen:  int64 [n_tokens, n_chosen], numbers of experts
    weights: float32 [n_tokens, n_chosen]
    output:  float32 [n_tokens, n_hidden], the sum over the chosen experts
    tokens:  int64 [n_tokens], their numbers over all windows
    """

    module: Any
    hidden: Any
    chosen: Any
    weights: Any
    output: Any
    tokens: Any = None


Wait = Callable[[Request], None]
"""Returns when the request has its output."""


def install(model: Any, wait: Wait) -> None:
    """Let the model's mixtures stop where their experts are wanted."""

    def forward(module: Any, hidden: Any, chosen: Any, weights: Any) -> Any:
        request = Request(module, hidden, chosen, weights, torch.zeros_like(hidden))
        wait(request)
        return request.output

    ALL_EXPERTS_FUNCTIONS[IMPLEMENTATION] = forward
    for config in {
        id(m.config): m.config for m in model.modules() if hasattr(m, "config")
    }.values():
        config._experts_implementation = IMPLEMENTATION


def run(
    requests: list[Request],
    tensors: Mapping[str, ModelTensor],
    before: tuple[list[Sums] | None, list[Sums] | None],
    moments: ExpertMoments | None,
    *,
    threads: int,
) -> tuple[list[Sums], list[Sums]]:
    """Run all experts of a layer; return the sums of the first and second matrices' inputs.

    requests: of all windows, in order
    tensors:  the layer's, by role and suffix, such as `ffn_down_exps.weight`
    before:   the sums of earlier windows, to which these are added
    moments:  is shown the inputs, too
    """
    for request in requests:
        if moments:
            moments.of_all(request.hidden, request.tokens)
    n_experts = tensors["ffn_down_exps.weight"].shape[0]
    first: list[Sums] = []
    second: list[Sums] = []
    turn = _Turns()

    def one(number: int) -> tuple[Sums, Sums]:
        torch.set_num_threads(1)
        with turn.ended_by_errors(), torch.no_grad():
            expert = _Expert.read(tensors, number, requests[0].hidden.device)
            started = (None if sums is None else sums[number] for sums in before)
            return expert.run(requests, number, turn, moments, *started)

    with ThreadPoolExecutor(threads) as pool:
        for gate_up, down in pool.map(one, range(n_experts)):
            first.append(gate_up)
            second.append(down)
    return first, second


class _EndedError(Exception):
    """Ends an expert that waits for one that has failed."""


class _Turns:
    """Lets experts add their outputs in the order of their numbers, whichever is ready first."""

    def __init__(self) -> None:
        self._next = 0
        self._has_failed = False
        self._changed = threading.Condition()

    @contextmanager
    def ended_by_errors(self) -> Generator[None]:
        """Let no expert wait for this one if it fails."""
        try:
            yield
        except BaseException:
            with self._changed:
                self._has_failed = True
                self._changed.notify_all()
            raise

    def wait(self, number: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._next == number or self._has_failed)
            if self._next != number:
                raise _EndedError

    def done(self) -> None:
        with self._changed:
            self._next += 1
            self._changed.notify_all()


@dataclass
class _Expert:
    """The matrices and biases of an expert; gate is None where it has none."""

    gate: tuple[Any, Any] | None
    up: tuple[Any, Any]
    down: tuple[Any, Any]

    @classmethod
    def read(cls, tensors: Mapping[str, ModelTensor], number: int, device: Any) -> _Expert:
        def part(role: str) -> tuple[Any, Any] | None:
            weight = tensors.get(f"{role}.weight")
            if weight is None:
                return None
            bias = tensors.get(f"{role}.bias")
            matrix = _matrix(weight, number).to(device)
            return matrix, None if bias is None else _matrix(bias, number)[0].to(device)

        gate, up, down = (part(f"ffn_{name}_exps") for name in ("gate", "up", "down"))
        if fused := part("ffn_gate_up_exps"):
            gate, up = _half(fused, 0), _half(fused, 1)
        assert up is not None and down is not None, "a mixture has both"
        return cls(gate, up, down)

    def run(
        self,
        requests: list[Request],
        number: int,
        turn: _Turns,
        moments: ExpertMoments | None,
        first: Sums | None,
        second: Sums | None,
    ) -> tuple[Sums, Sums]:
        first = first or Sums.nothing(self.up[0].shape[1])
        second = second or Sums.nothing(self.down[0].shape[1])
        results: list[tuple[Any, Any, Any]] = []
        shown: dict[str, list[Any]] = {GATE_UP: [], DOWN: []}
        tokens: list[Any] = []
        for request in requests:
            token, place = torch.where(request.chosen == number)
            inputs = request.hidden[token]
            inner = self._inner(request.module, inputs)
            first += Sums.of(inputs)
            second += Sums.of(inner)
            if moments:
                shown[GATE_UP].append(inputs)
                shown[DOWN].append(inner)
                tokens.append(request.tokens[token.cpu()])
            output = torch.nn.functional.linear(inner, *self.down)
            results.append((request.output, token, output * request.weights[token, place, None]))
        parts = {
            kind: moments.part(rows, tokens)
            for kind, rows in shown.items()
            if moments and moments.wants(kind)
        }
        turn.wait(number)
        for output, token, values in results:
            output.index_add_(0, token, values.to(output.dtype))
        for kind, part in parts.items():
            if moments:
                moments.add(kind, number, part)
        turn.done()
        return first, second

    def _inner(self, module: Any, inputs: Any) -> Any:
        linear = torch.nn.functional.linear
        up = linear(inputs, *self.up)
        if self.gate is None:
            return module.act_fn(up)
        gate = linear(inputs, *self.gate)
        if module.is_concatenated:
            return module._apply_gate(torch.cat([gate, up], dim=-1))
        return module._apply_gate(torch.stack([gate, up], dim=-1).flatten(-2))


def _half(fused: tuple[Any, Any], number: int) -> tuple[Any, Any]:
    """Return the upper or lower half of a matrix and of its bias."""
    weight, bias = fused
    return weight.chunk(2)[number], None if bias is None else bias.chunk(2)[number]


def _matrix(tensor: ModelTensor, number: int) -> Any:
    """Return the weights of one expert, float32 [n_out, n_in]; [1, n_out] for a bias."""
    source = tensor.source
    n = tensor.n_rows // tensor.shape[0]
    content: U8 = np.empty(n * row_bytes(source), np.uint8)
    source.read(number * n, (number + 1) * n, content)
    return floats(content.reshape(n, -1), source.stored, tensor.n_per_row)
