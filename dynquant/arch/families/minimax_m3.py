"""MiniMax M3: block-sparse attention, experts, and norms that are stored minus one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.attention.block_indexer import (
    BLOCK_INDEXER,
    SPARSE,
    BlockIndexer,
    read_block_indexer,
)
from dynquant.arch.base import Architecture, on
from dynquant.arch.config import Count, ExpertsCount, Positive, read_config, without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    SILU,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.minimax import with_factor
from dynquant.arch.gguf_files.graph import SMALL, FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.mixtures.dense_layers import ListedLayers, n_listed_dense
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    shared_rows,
    with_expert_count,
)
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.transforms import plus_one

NAME = "minimax-m3"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _IN + "block_sparse_moe."
_SPARSE = (
    router_row(_BLOCK + "gate.weight", _IN + "mlp.gate.weight"),
    score_bias_row(_BLOCK + "e_score_correction_bias", _IN + "mlp.gate.e_score_correction_bias"),
    *expert_rows(_BLOCK, gate="w1", up="w3", down="w2"),
    *shared_rows(_BLOCK + "shared_experts."),
    *BLOCK_INDEXER,
)
_FROM_ONE = (
    *("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"),
    *("indexer.q_norm", "indexer.k_norm", "output_norm"),
)


_ROTARY_DIM = 64
"""transformers' default."""


@dataclass(frozen=True)
class _M3:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count
    intermediate_size: Count = 3072
    dense_intermediate_size: Count = 12288
    shared_intermediate_size: Count = 3072
    n_shared_experts: Count = 1
    routed_scaling_factor: Positive = 2.0
    swiglu_alpha: Positive = 1.702
    swiglu_limit: Positive = 7.0
    rotary_dim: Count | None = None


def minimax_m3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe the language model of a MiniMax M3.

    llama.cpp computes sparse attention with its fused attention only, which is its default.
    """
    present = {"rms_norm_eps": 1e-6, "rope_theta": 5e6}  # transformers' defaults
    present |= without_nulls(config)
    own = read_config(_M3, with_expert_count(present), where)
    dense = {"intermediate_size": own.dense_intermediate_size}
    c = read_decoder(present | dense, where, head_dim=128, activation=("swigluoai", *SILU))
    rope = read_rope(with_factor(present, own.rotary_dim or _ROTARY_DIM), where, (), partial=1.0)
    n, n_rotated = c.num_hidden_layers, int(c.n_per_head * rope.partial_rotary_factor)
    n_dense = n_listed_dense(present, where)
    indexer, indexed = read_block_indexer(present, n, where)
    ArchitectureError.raise_any(_problems(c, own, n_rotated, where))
    if indexed != (False,) * n_dense + (True,) * (n - n_dense):
        raise ArchitectureError(
            f"{where}: llama.cpp has sparse attention in the layers with experts and in no others,"
            " unlike sparse_attention_freq or layer_types"
        )
    ArchitectureError.raise_any(indexer.problems(c.n_head_kv, n_rotated, where))
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head)
        | {f"{NAME}.rope.dimension_count": u32(n_rotated)}
        | routing_keys(NAME, _routing(own, n_dense))
        | indexer.keys(NAME),
        rows=(
            *EMBEDDING,
            *ATTENTION,
            *QK_NORMS,
            *on(range(n_dense), MLP),
            *on(range(n_dense, n), _SPARSE),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **indexer.sizes,
            "experts": own.num_experts,
            "expert_ffn": own.intermediate_size,
            "shared_ffn": own.shared_intermediate_size,
        },
        n_layers=n,
        tied=None,
        via=dict.fromkeys(_FROM_ONE, plus_one),
        ignored=IGNORED
        | {
            r"(.*\.)?mtp\..*": (
                "layers that predict further tokens, which llama.cpp does not compute for this"
                " family"
            )
        },
        n_experts=own.num_experts,
    )


def _routing(own: _M3, n_dense: int) -> Routing:
    return Routing(
        n_experts=own.num_experts,
        n_used=own.num_experts_per_tok,
        expert_ffn=own.intermediate_size,
        n_shared=own.shared_intermediate_size // own.intermediate_size,
        weights_scale=own.routed_scaling_factor,
        weights_norm=True,
        gating=SIGMOID,
        n_leading_dense=n_dense,
    )


def _problems(c: Config, own: _M3, n_rotated: int, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(own, {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}, where)
    yield from output_apart(c, where)
    # transformers saves its default and reads the factor.
    if n_rotated < 2 or n_rotated % 2 or own.rotary_dim not in (None, _ROTARY_DIM, n_rotated):
        yield (
            f"{where}: {n_rotated} weights of a head are rotated by partial_rotary_factor, and"
            f" {own.rotary_dim or n_rotated} by rotary_dim; llama.cpp needs one even number"
        )
    if own.shared_intermediate_size != own.n_shared_experts * own.intermediate_size:
        yield (
            f"{where}: shared_intermediate_size is {own.shared_intermediate_size}; llama.cpp"
            f" computes n_shared_experts {own.n_shared_experts} times intermediate_size"
            f" {own.intermediate_size}"
        )


_M3_SETTINGS = Declared(
    minimax_m3,
    Settings(
        read=DECODER
        | reads(_M3, ListedLayers, BlockIndexer)
        | {"num_local_experts", "sparse_attention_config", "layer_types"},
        harmless=NO_WINDOW
        | harmless(
            "of layers that predict further tokens, which are left out",
            "use_mtp num_mtp_modules mtp_transformer_layers num_nextn_predict_layers",
        ),
        only={
            **constant("sigmoid", "scoring_func"),
            **constant("per_head", "qk_norm_type"),
            **constant(True, "use_qk_norm use_routing_bias use_gemma_norm"),
            **constant(False, "attention_output_gate"),
        },
        layer_types=("full_attention", SPARSE),
    ),
)
FAMILIES = {
    "MiniMaxM3SparseForCausalLM": _M3_SETTINGS,
    "MiniMaxM3VLForCausalLM": _M3_SETTINGS,
    "MiniMaxM3SparseForConditionalGeneration": Wrapped(_M3_SETTINGS),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return which layers of a GGUF have experts and sparse attention: all after the dense ones."""
    sparse = [int(layer >= keys.n_dense) for layer in range(keys.n_layers)]
    return {
        "moe_layer_freq": sparse,
        "shared_intermediate_size": SMALL,
        "sparse_attention_config": {"sparse_attention_freq": sparse},
    }


GRAPHS = {
    "minimax-m3": GGUFGraph(
        "MiniMaxM3SparseForCausalLM",
        settings={"index_n_heads": 2, "index_block_size": 4, "rotary_dim": 16},
        layers=_layers_of,
    ),
}
