"""Qwen2 and Qwen3; rotary pairs keep transformers' order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.attention.windows import switched_window_left_out
from dynquant.arch.base import Architecture
from dynquant.arch.decoder import (
    IGNORED,
    QK_NORMS,
    QKV_BIASES,
    TIED,
    WEIGHTS,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import heads_fill_hidden
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, Declared, Settings
from dynquant.errors import ArchitectureError

# llama.cpp's Qwen graphs read no rope_freqs tensor, so that they cannot compute "llama3".
SCALINGS = ("linear", "dynamic", "yarn")


def qwen2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Qwen2: always with biases on Q, K and V."""
    c = read_decoder(config, where)
    rope = read_rope(config, where, SCALINGS)
    ArchitectureError.raise_any(heads_fill_hidden(c, where))
    return Architecture(
        name="qwen2",
        keys=decoder_keys("qwen2", c, rope, c.head_dim),
        rows=WEIGHTS + QKV_BIASES,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        deviations=switched_window_left_out(config, where, "last"),
    )


def qwen3(config: Mapping[str, Any], where: str, head_dim: int | None = 128) -> Architecture:
    """Describe a Qwen3: norms on the heads of Q and K, no biases.

    head_dim: transformers' default for the class; None is hidden_size / num_attention_heads
    """
    c = read_decoder(config, where, head_dim)
    rope = read_rope(config, where, SCALINGS)
    if c.attention_bias:
        raise ArchitectureError(
            f"{where}: attention_bias is true; llama.cpp's qwen3 has no bias on o_proj"
        )
    return Architecture(
        name="qwen3",
        keys=decoder_keys("qwen3", c, rope, c.n_per_head),
        rows=WEIGHTS + QK_NORMS,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        deviations=switched_window_left_out(config, where, "last"),
    )


WINDOWS = frozenset(("use_sliding_window", "sliding_window", "max_window_layers", "layer_types"))
"""Settings of the windows that only newer code of the Qwens reads."""

FAMILIES = {
    "Qwen2ForCausalLM": Declared(qwen2, Settings(read=DECODER | WINDOWS)),
    "Qwen3ForCausalLM": Declared(qwen3, Settings(read=DECODER | WINDOWS)),
}
GRAPHS = {
    "qwen2": GGUFGraph("Qwen2ForCausalLM"),
    "qwen3": GGUFGraph("Qwen3ForCausalLM"),
}
