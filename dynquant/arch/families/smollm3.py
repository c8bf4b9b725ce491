"""SmolLM3: a Llama in which every fourth layer has no rotary embeddings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dynquant.arch.attention.windows import window_left_out
from dynquant.arch.base import Architecture, renamed
from dynquant.arch.config import Count, LayersCount, Truth, read_config
from dynquant.arch.decoder import read_decoder
from dynquant.arch.families.llama import llama
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, harmless, reads
from dynquant.errors import ArchitectureError

_NAME = "smollm3"
_INTERVAL = 4
"""A constant of llama.cpp's graph."""

# transformers' defaults.
_DEFAULTS = {"rope_theta": 2e6, "tie_word_embeddings": True}


@dataclass(frozen=True)
class _Smol:
    """config.json's settings besides those of all decoders, with transformers' defaults.

    no_rope_layers: for each layer 1 if it has rotary embeddings, else 0, contrary to the name
    """

    num_hidden_layers: LayersCount
    no_rope_layers: tuple[int, ...] | None = None
    no_rope_layer_interval: Count = 4
    use_sliding_window: Truth = False
    layer_types: tuple[str, ...] | None = None

    def rotates(self) -> list[bool]:
        """Return which layers have rotary embeddings."""
        if self.no_rope_layers is not None:
            return [bool(rotates) for rotates in self.no_rope_layers]
        return _rotating(self.num_hidden_layers, self.no_rope_layer_interval)


def _rotating(n_layers: int, interval: int) -> list[bool]:
    return [(layer + 1) % interval != 0 for layer in range(n_layers)]


def smollm3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a SmolLM3; llama.cpp reads neither biases nor factors of rotary frequencies."""
    config = {**_DEFAULTS, **config}
    own = read_config(_Smol, config, where)
    c = read_decoder(config, where)
    read_rope(config, where, known=("linear", "dynamic", "yarn"))
    ArchitectureError.raise_any(
        chain(_problems(own, where), fixed(c, {"attention_bias": False, "mlp_bias": False}, where))
    )
    found = llama(config, where)
    slides = own.use_sliding_window
    if own.layer_types is not None:
        slides = "sliding_attention" in own.layer_types
    stated = {"sliding_window": None, **config}
    return replace(
        found,
        name=_NAME,
        keys=renamed(found.keys, _NAME),
        deviations=window_left_out(stated, where) if slides else (),
    )


def _problems(own: _Smol, where: str) -> Iterator[str]:
    if own.rotates() != _rotating(own.num_hidden_layers, _INTERVAL):
        yield (
            f"{where}: no_rope_layers or no_rope_layer_interval is not that of every fourth layer"
            " without rotary embeddings, which llama.cpp's graph of this family has"
        )


FAMILIES = {
    "SmolLM3ForCausalLM": Declared(
        smollm3,
        Settings(
            read=DECODER | reads(_Smol, more="sliding_window"),
            harmless=harmless("acts in windows only", "max_window_layers"),
        ),
    )
}
GRAPHS = {
    "smollm3": GGUFGraph("SmolLM3ForCausalLM"),
}
