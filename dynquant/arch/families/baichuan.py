"""Baichuan 1 and 2: Q, K and V in one matrix; rope with 32 layers, ALiBi with 40."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynquant.arch.attention.fused import n_fused, separate_rows
from dynquant.arch.base import Architecture
from dynquant.arch.config import Count, read_config, without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, harmless, reads
from dynquant.arrays import F32
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Elementwise

_NAME = "baichuan"
_LAYERS = (32, 40)
"""llama.cpp computes rope with the first number of layers and ALiBi with the second, and neither
with any other."""

_VOCAB_2 = 125696
"""The tokens of Baichuan 2, whose output matrix is normalized; Baichuan 1 has 64000."""

_W_PACK = "model.layers.{}.self_attn.W_pack."


@dataclass(frozen=True)
class _Own:
    model_max_length: Count = 4096
    z_loss_weight: float | None = None


def baichuan(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Baichuan: a Llama with fused attention; Baichuan 2 normalizes its output matrix.

    llama.cpp's graph does not normalize it, so that the file has its rows divided by their norms.
    """
    own = read_config(_Own, config, where)
    # The own classes have these; they do not read head_dim and heads of K.
    defaults = {"rms_norm_eps": 1e-6, "max_position_embeddings": own.model_max_length}
    always = {"head_dim": None, "num_key_value_heads": None, "rope_theta": 10000.0}
    config = {**defaults, **without_nulls(config), **always}
    c, rope = read_decoder(config, where), read_rope(config, where, known=("dynamic",))
    ArchitectureError.raise_any(_problems(c, where))
    is_second = c.vocab_size >= _VOCAB_2 or own.z_loss_weight is not None
    return Architecture(
        name=_NAME,
        keys=decoder_keys(_NAME, c, rope, None)
        | {f"{_NAME}.rope.dimension_count": u32(c.n_per_head)},
        rows=(
            *EMBEDDING,
            *(row for row in ATTENTION if row.shape not in ("q hidden", "kv hidden")),
            # Interleaved pairs have no effect on ALiBi's scores.
            *separate_rows(_W_PACK, c, interleaved=True),
            *MLP,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={**decoder_sizes(c), "qkv": n_fused(c)},
        n_layers=c.num_hidden_layers,
        tied=None,
        via={"output": unit_rows} if is_second else {},
        ignored=IGNORED,
    )


def _problems(c: Config, where: str) -> Iterator[str]:
    yield from output_apart(c, where)
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    if c.num_hidden_layers not in _LAYERS:
        yield (
            f"{where}: num_hidden_layers is {c.num_hidden_layers}; llama.cpp computes this family"
            f" with rope in {_LAYERS[0]} layers or ALiBi in {_LAYERS[1]} only"
        )


def unit_rows(source: TensorSource) -> TensorSource:
    """Return a matrix with each row divided by its norm, computed in F32."""
    return Elementwise(source, _normalized)


def _normalized(rows: F32) -> F32:
    # In float64, so that every machine rounds to the same float32.
    norms = np.sqrt(np.square(rows.astype(np.float64)).sum(axis=-1, keepdims=True))
    return (rows / np.maximum(norms, 1e-12)).astype(np.float32)


_BAICHUAN = Declared(
    baichuan,
    Settings(
        read=(DECODER - {"head_dim", "num_key_value_heads", "rope_theta"}) | reads(_Own),
        harmless=NO_WINDOW
        | harmless(
            "their own code has a base of 10000 and as many heads of K as of Q",
            "rope_theta head_dim num_key_value_heads",
        )
        | harmless("how the checkpoint was saved", "_from_model_config"),
    ),
)
FAMILIES = {
    "BaichuanForCausalLM": _BAICHUAN,
    "BaiChuanForCausalLM": _BAICHUAN,  # Baichuan-7B
}
GRAPHS = {
    "baichuan": GGUFGraph("BaichuanForCausalLM"),
}
