"""Exaone 4: norms on the heads of Q and K, and on the outputs of attention and MLP.

The large one has windows in three of four layers, and rotary embeddings only in these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.attention.windows import window_keys
from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.arch.config import Count, LayersCount, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    TIED,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed, heads_fill_hidden
from dynquant.arch.positions.rope import llama3_factors, read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import Computed

_NAME = "exaone4"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_LAYER = (
    *(row for row in ATTENTION if "layernorm" not in row.stored),
    *QK_NORMS,
    Row(_IN + "post_attention_layernorm.weight", _OUT + "post_attention_norm.weight", "hidden"),
    *MLP,
    Row(_IN + "post_feedforward_layernorm.weight", _OUT + "post_ffw_norm.weight", "hidden"),
)

LAYERS_WITH_WINDOWS = 64
"""llama.cpp's exaone4 has windows in models with this number of layers (32B), and in no others."""

_PATTERN = 4
"""llama.cpp's default: all layers have a window but every fourth."""


@dataclass(frozen=True)
class Windows:
    """config.json's settings besides those of all decoders.

    sliding_window_pattern: the interval of layers without a window, or a letter for each layer of
                            one round ("LLLG": local, global)
    """

    num_hidden_layers: LayersCount
    sliding_window: Count | None = None
    sliding_window_pattern: Count | str = _PATTERN
    layer_types: tuple[str, ...] | None = None

    def slides(self) -> tuple[bool, ...]:
        """Return which layers have a window, if there is one."""
        n, pattern = self.num_hidden_layers, self.sliding_window_pattern
        if self.layer_types is not None:
            return tuple(kind == "sliding_attention" for kind in self.layer_types)
        if isinstance(pattern, str):
            return tuple(pattern[layer % len(pattern)] == "L" for layer in range(n))
        return tuple((layer + 1) % pattern != 0 for layer in range(n))

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for windows that llama.cpp's graph does not have, or misses."""
        n = self.num_hidden_layers
        if (self.sliding_window is not None) != (n == LAYERS_WITH_WINDOWS):
            yield (
                f"{where}: sliding_window is {self.sliding_window or 'null'} and num_hidden_layers"
                f" {n}; llama.cpp's exaone4 has windows, and layers without rotary embeddings, if"
                f" there are {LAYERS_WITH_WINDOWS} layers, else none"
            )
        if self.sliding_window is None and "sliding_attention" in (self.layer_types or ()):
            yield f"{where}: layer_types has 'sliding_attention', but sliding_window is null"
        yield from self.pattern_problems(where)

    def pattern_problems(self, where: str) -> Iterator[str]:
        """Yield a message if the pattern has other letters."""
        pattern = self.sliding_window_pattern
        if isinstance(pattern, str) and (not pattern or {*pattern} - {"L", "G"}):
            yield (
                f"{where}: sliding_window_pattern is {pattern!r}; it must be a number or letters L"
                " and G"
            )


def exaone4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an Exaone 4; the window of its class is 4096, and null means none."""
    config = {"sliding_window": 4096, **config}
    own = read_config(Windows, config, where)
    c = read_decoder(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn", "llama3"))
    problems = [*own.problems(where), *heads_fill_hidden(c, where)]
    ArchitectureError.raise_any((*problems, *fixed(c, {"attention_bias": False}, where)))
    keys = decoder_keys(_NAME, c, rope, c.n_per_head)
    if own.sliding_window is not None:
        keys |= window_keys(_NAME, config, own.slides(), _PATTERN, where)
    extra: tuple[ModelTensor, ...] = ()
    if rope.rope_type == "llama3":
        extra = (ModelTensor("rope_freqs.weight", Computed(llama3_factors(rope, c.n_per_head))),)
    return Architecture(
        name=_NAME,
        keys=keys | {f"{_NAME}.vocab_size": u32(c.vocab_size)},
        rows=(*EMBEDDING, *_LAYER, *OUTPUT_NORM, *OUTPUT),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        extra=extra,
        ignored=IGNORED,
    )


FAMILIES = {"Exaone4ForCausalLM": Declared(exaone4, Settings(read=DECODER | reads(Windows)))}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return whether a GGUF's layers have windows, which only models of 64 layers have."""
    return {} if keys.n_layers == LAYERS_WITH_WINDOWS else {"sliding_window": None}


GRAPHS = {
    "exaone4": GGUFGraph("Exaone4ForCausalLM", layers=_layers_of),
}
