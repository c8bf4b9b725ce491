"""One pass over a model: all layers, for windows that are in memory together.

Groups of windows follow the model's own code, each in its own thread, and all pause before each
layer. So one layer at a time has its weights in memory, whatever the model keeps from one layer to
another. The arithmetic of a group uses one thread of torch, and its sums are added in the order of
the groups: the result is the same for any number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

from dynquant.arrays import I32
from dynquant.calibrate import attention, experts
from dynquant.calibrate.feeds import (
    DOWN,
    GATE_UP,
    KEYS,
    LINEAR,
    OUTPUT,
    PARAMETER,
    VALUES,
    Feed,
    is_linear,
)
from dynquant.calibrate.memory import give_back_freed
from dynquant.calibrate.moments import Collector, ExpertMoments
from dynquant.calibrate.products import Products
from dynquant.calibrate.resume import Keeper, State, Totals
from dynquant.calibrate.skeleton import blocks
from dynquant.calibrate.sources import Source
from dynquant.calibrate.steps import Steps
from dynquant.calibrate.sums import Sums
from dynquant.errors import CalibrationError

GROUP = 2048
"""Tokens that run together, unless a window is longer. It is a constant, because products of
matrices of another size may be rounded otherwise."""


@dataclass
class Seen:
    """What was collected.

    places: for each tensor of the GGUF that has inputs, where they are seen
    totals: the sums at these places
    """

    places: Mapping[str, tuple[Feed, ...]]
    totals: Totals = field(default_factory=dict[Feed, list[Sums]])


def group_size(n_per_window: int) -> int:
    """Return the number of windows that run together."""
    return max(1, GROUP // n_per_window)


class Pass:
    """One pass over a model; its hooks are called in the threads of the groups."""

    def __init__(
        self,
        source: Source,
        windows: I32,
        share: tuple[int, int],
        seen: Seen,
        threads: int,
        moments: Collector | None,
    ) -> None:
        self._moments = moments
        self._skeleton, self._threads = source.skeleton, threads
        self._tensors = source.model.tensors
        self._share = share
        own, n = windows[slice(*share)], group_size(windows.shape[1])
        self._groups = [
            torch.from_numpy(own[at : at + n].astype("int64")).to(self._skeleton.device)
            for at in range(0, len(own), n)
        ]
        self._numbers = torch.arange(own.size).split([g.numel() for g in self._groups])
        # Some models read the row of token 0 in place of tokens that a table does not have.
        self._tokens: list[int] = sorted({0, *np.unique(windows).tolist()})
        model = source.skeleton.model
        self._mixtures = dict(blocks(model))
        self._names = {id(module): name for name, module in model.named_modules()}
        self._found = seen
        self._output = Feed(source.skeleton.name, OUTPUT)
        self._feeds = {feed.parameter: feed for ps in seen.places.values() for feed in ps}
        self._loaded: dict[int, Feed] = {}
        self._done: set[Feed] = set()
        self._seen: list[Totals] = [{} for _ in self._groups]
        self._requests: dict[int, experts.Request] = {}
        self._first = 0
        self._outputs: dict[int, Any] = {}
        self._is_plain = True
        self._mine = threading.local()
        self._steps = Steps(
            [lambda g=group: self._follow(g) for group in range(len(self._groups))],
            at_once=threads,
        )

    def run(
        self, progress: Callable[[int], None], keeper: Keeper | None, started: State | None
    ) -> None:
        """Run all layers, or those after a stored state."""
        layers = self._skeleton.layers
        torch.set_num_threads(1)
        give_back_freed()
        if started:
            self._first, self._outputs = started.layer, dict(enumerate(started.outputs))
        with self._hooked(), self._skeleton.rest_loaded(self._tokens), self._steps:
            rest = self._feeds_of(self._skeleton.model.named_parameters())
            self._loaded = rest
            self._steps.advance()
            for number in range(self._first, len(layers)):
                progress(number)
                self._layer(number, layers[number], rest)
                if keeper and self._is_plain and number + 1 < len(layers):
                    keeper.offer(lambda n=number + 1: self._state(n))

    def _state(self, layer: int) -> State:
        outputs = [self._outputs[group] for group in range(len(self._groups))]
        return State(self._share, layer, outputs, self._found.totals)

    def _feeds_of(self, parameters: Iterable[tuple[str, Any]]) -> dict[int, Feed]:
        """Return the places of parameters that have weights, by their identities."""
        return {
            id(value): self._feeds[name]
            for name, value in parameters
            if name in self._feeds and not value.is_meta
        }

    def _layer(self, number: int, layer: Any, rest: Mapping[int, Feed]) -> None:
        """Run one layer, from the pause before it to the pause after it.

        rest: the places of the parameters outside of layers
        """
        self._skeleton.load_layer(number, self._mixtures)
        name = f"{self._skeleton.prefix}{number}"
        self._loaded = {**rest, **self._feeds_of(layer.named_parameters(name))}
        self._steps.advance()
        while self._requests:
            self._experts(number)
            self._steps.advance()
        self._skeleton.unload(layer)
        self._loaded = dict(rest)
        for seen in self._seen:
            _add(self._found.totals, seen)
            self._done.update(seen)
            seen.clear()
        totals = {feed: self._found.totals[feed] for feed in self._done}
        _check_finite(number, totals)
        if self._moments:
            self._moments.end_layer(totals)
        self._done.clear()

    def _experts(self, number: int) -> None:
        """Run the experts that all groups wait for."""
        requests = [self._requests[group] for group in range(len(self._groups))]
        self._requests.clear()
        own = {
            tensor.name.split(".", 2)[2]: tensor
            for tensor in self._tensors
            if tensor.parts.layer == number and "_exps." in tensor.name
        }
        name, totals = self._names[id(requests[0].module)], self._found.totals
        places = Feed(name, GATE_UP), Feed(name, DOWN)
        before = totals.get(places[0]), totals.get(places[1])
        moments = ExpertMoments(self._moments, name) if self._moments else None
        sums = experts.run(requests, own, before, moments, threads=self._threads)
        totals |= dict(zip(places, sums, strict=True))
        self._done.update(places)

    @contextmanager
    def _hooked(self) -> Generator[None]:
        """Let the model pause before each layer and show the inputs of its matrices."""
        model = self._skeleton.model
        places = [feed for place in self._found.places.values() for feed in place]
        linear = {feed.module for feed in places if feed.kind != PARAMETER}
        latent = {feed.module for feed in places if feed.kind in (KEYS, VALUES)}
        linear |= {f"{name}.{attention.LATENT}" for name in latent}
        layers = self._skeleton.layers
        for number, layer in enumerate(layers):
            if number < self._first:
                layer.forward = partial(self._skip, number)
        handles = [
            layer.register_forward_pre_hook(self._pause, with_kwargs=True)
            for layer in layers[self._first :]
        ]
        handles += [
            layer.register_forward_hook(self._keep_output) for layer in layers[self._first :]
        ]
        handles += [
            module.register_forward_pre_hook(self._see)
            for name, module in model.named_modules()
            if name in linear and is_linear(module)
        ]
        handles += [
            module.register_forward_hook(self._keep_queries)
            for name in latent
            for own, module in model.get_submodule(name).named_children()
            if own in attention.QUERIES
        ]
        experts.install(model, self._wait_for_experts)
        try:
            with attention.reported(
                lambda module: self._names.get(id(module)) in latent,
                self._latent,
                self._queries,
                self._see_latent,
            ):
                yield
        finally:
            for handle in handles:
                handle.remove()
            for layer in layers[: self._first]:
                del layer.forward  # the class has it

    def _follow(self, group: int) -> None:
        torch.set_num_threads(1)
        with torch.no_grad(), Products(self._see_product):
            done = self._skeleton.decoder(input_ids=self._groups[group], use_cache=False)
        hidden = done.last_hidden_state
        _add(self._seen[group], {self._output: [Sums.of(hidden)]})
        self._see_moments(self._output, hidden)

    def _pause(self, _: Any, __: tuple[Any, ...], more: dict[str, Any]) -> None:
        """Wait before a layer."""
        changing = (dict, list)  # what a layer may change for those after it
        if any(isinstance(value, changing) or hasattr(value, "update") for value in more.values()):
            self._is_plain = False
        self._steps.pause()

    def _keep_output(self, _: Any, __: Any, output: Any) -> None:
        self._outputs[self._steps.number] = output

    def _skip(self, number: int, *inputs: Any, **more: Any) -> Any:
        """Return the stored output in place of a layer's; before it, anything of that form."""
        output = self._outputs[self._steps.number]
        if number == self._first - 1:
            return output
        hidden = inputs[0] if inputs else more["hidden_states"]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _wait_for_experts(self, request: experts.Request) -> None:
        request.tokens = self._numbers[self._steps.number]
        self._requests[self._steps.number] = request
        self._steps.pause()

    def _see(self, module: Any, inputs: tuple[Any, ...]) -> None:
        """Add the inputs of a linear layer; several in a row often have the same tensor."""
        name = self._names[id(module)]
        if name.endswith(attention.LATENT):
            self._mine.latent = inputs[0]
        last = getattr(self._mine, "last", None)
        if last is None or last[0] is not inputs[0]:
            self._mine.last = last = inputs[0], Sums.of(inputs[0])
        feed = Feed(name, LINEAR)
        _add(self._seen[self._steps.number], {feed: [last[1]]})
        self._see_moments(feed, inputs[0])

    def _see_moments(self, feed: Feed, inputs: Any) -> None:
        """Add the products of inputs, if their moments are wanted.

        Those of a part of the tokens, in an order unknown, are not added: the file has zeros.
        """
        moments, tokens = self._moments, self._numbers[self._steps.number]
        place = moments.place(feed) if moments else None
        rows = inputs.reshape(-1, inputs.shape[-1])
        if moments is None or place is None or len(rows) != len(tokens):
            return
        part = moments.part(rows, tokens)
        try:
            with self._steps.in_turn(feed):
                moments.add(place.input, place.matrix, part)
        except ValueError as e:
            raise CalibrationError(
                f"{feed.module}: is used twice in a layer; make the imatrix without --moments"
            ) from e

    def _see_product(self, weight: Any, is_linear: bool, inputs: Callable[[], list[Sums]]) -> None:
        """Add the inputs of a parameter, unless its module shows them."""
        feed = self._loaded.get(id(weight))
        if feed and not (is_linear and feed.kind == LINEAR):
            _add(self._seen[self._steps.number], {feed: inputs()})

    def _latent(self) -> Any:
        return self._mine.latent

    def _keep_queries(self, _: Any, __: Any, output: Any) -> None:
        self._mine.queries = output

    def _queries(self) -> Any:
        return self._mine.queries

    def _see_latent(self, module: Any, keys: list[Sums], values: list[Sums]) -> None:
        name = self._names[id(module)]
        _add(self._seen[self._steps.number], {Feed(name, KEYS): keys, Feed(name, VALUES): values})


def _add(totals: Totals, more: Totals) -> None:
    for feed, sums in more.items():
        if feed in totals:
            totals[feed] = [a + b for a, b in zip(totals[feed], sums, strict=True)]
        else:
            totals[feed] = sums


def _check_finite(layer: int, totals: Totals) -> None:
    bad = [
        "the output matrix" if feed.kind == OUTPUT else feed.module
        for feed, sums in totals.items()
        if not all(s.is_finite for s in sums)
    ]
    if bad:
        raise CalibrationError(
            f"layer {layer}: inputs of {', '.join(dict.fromkeys(bad))} are not finite; this"
            " layer or the one before overflowed: the checkpoint is damaged, or transformers"
            " computes this family wrongly"
        )
