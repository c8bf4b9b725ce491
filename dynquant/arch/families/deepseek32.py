"""DeepSeek-V3.2: a DeepSeek-V3 with an indexer in each layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.attention.indexer import Indexer, read_indexer
from dynquant.arch.base import Architecture
from dynquant.arch.config import read_config
from dynquant.arch.families.deepseek import HARMLESS, READ, with_sigmoids
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.mixtures.dense_layers import DenseLayers, n_leading_dense
from dynquant.arch.mixtures.experts import SIGMOID
from dynquant.arch.mixtures.latent_decoder import Kind
from dynquant.arch.settings import Declared, Settings, constant, reads

NAME = "deepseek32"
_DEFAULTS = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 2048}


def deepseek32(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V3.2."""
    layers = read_config(DenseLayers, config, where)
    indexer = read_indexer(config, where, _DEFAULTS)
    kind = Kind(SIGMOID, NAME, indexer, range(layers.num_hidden_layers))
    dense = {"first_k_dense_replace": n_leading_dense(config, where, default=3)}
    return with_sigmoids({**config, **dense}, where, kind)


FAMILIES = {
    "DeepseekV32ForCausalLM": Declared(
        deepseek32,
        Settings(
            read=READ | reads(DenseLayers, Indexer, more="layer_types"),
            harmless=HARMLESS,
            layer_types=("indexed_attention",),
            only=constant(False, "indexer_rope_interleave"),
        ),
    ),
}
GRAPHS = {
    "deepseek32": GGUFGraph("DeepseekV32ForCausalLM", settings={"q_lora_rank": 32}),
}
