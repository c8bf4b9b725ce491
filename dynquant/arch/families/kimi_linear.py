"""Kimi-Linear: delta attention in most layers, latent attention without positions in the others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import chain
from typing import Any

from dynquant.arch.attention.delta import (
    DELTA,
    NORMS,
    VIA,
    Delta,
    delta_layers,
    kinds_of,
    published,
    read_delta,
)
from dynquant.arch.base import Architecture, Form, on
from dynquant.arch.config import read_config, usual_names, without_nulls
from dynquant.arch.decoder import (
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
from dynquant.arch.graph_limits import fixed, other_epsilon, output_apart
from dynquant.arch.mixtures.dense_layers import DenseLayers, n_leading_dense
from dynquant.arch.mixtures.experts import (
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    shared_rows,
)
from dynquant.arch.mixtures.with_delta import NO_POSITIONS, SPELLINGS, Mixture
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import i32s, u32

_NAME = "kimi-linear"
_BLOCK, _MLP = "model.layers.{}.block_sparse_moe.", "model.layers.{}.mlp."
# The rates of decay are in four dimensions here, in the file too.
_DELTA = tuple(
    replace(row, shape="one one delta_heads one") if row.stored.endswith("A_log") else row
    for row in DELTA
)
# transformers 5 saves a dense layer under the other name.
DENSE = tuple(
    replace(row, forms=(Form(row.stored, row.shape).within(_MLP, _BLOCK),)) for row in MLP
)
EXPERTS = (
    router_row(_BLOCK + "gate.weight", _MLP + "gate.weight"),
    score_bias_row(_BLOCK + "gate.e_score_correction_bias", _MLP + "gate.e_score_correction_bias"),
    *expert_rows(_BLOCK, gate="w1", up="w3", down="w2"),
    *(
        replace(row, forms=(Form(row.stored, row.shape).within(_BLOCK, _MLP),))
        for row in shared_rows(_BLOCK + "shared_experts.")
    ),
)
"""The feed-forward rows of a layer with experts; stacks of transformers 5 are `mlp.`."""

LAYER_TYPES = ("full_attention", "linear_attention")

DEFAULTS: dict[str, Any] = {
    "kv_lora_rank": 512,
    "max_position_embeddings": 1 << 20,
    "moe_intermediate_size": 1024,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts": 256,
    "num_experts_per_tok": 8,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-5,
    "routed_scaling_factor": 2.446,
    "v_head_dim": 128,
}
"""transformers' defaults."""


def completed(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return config.json with the names and defaults of transformers.

    Raises ArchitectureError for settings that it states twice with different values.
    """
    return {**DEFAULTS, **usual_names(without_nulls(config), where, SPELLINGS)}


def kimi_linear(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Kimi-Linear.

    Raises ArchitectureError for the language model of a Kimi-K3, which has the same class.
    """
    if config.get("attn_res_block_size") is not None:
        raise ArchitectureError(
            f"{where}: attn_res_block_size is that of a Kimi-K3; set architectures to"
            ' ["KimiK3ForConditionalGeneration"]'
        )
    stated = completed(config, where)
    m, delta = read_config(Mixture, stated, where), read_delta(stated, where)
    c = read_decoder({**stated, "head_dim": 2, "num_key_value_heads": None}, where)
    recurrent = delta_layers(stated, where, by_default=lambda n: n == 0 or n % 4 != 0, first=1)
    n, n_dense = c.num_hidden_layers, n_leading_dense(stated, where)
    low_rank = fixed(published(stated, where), {"use_full_rank_gate": False}, where)
    ArchitectureError.raise_any(chain(_problems(c, m, delta, where), low_rank))
    latent = m.latent(c.num_attention_heads)
    # The graph normalizes the weights of the experts without a key.
    routing = replace(m.routing(n_dense), weights_norm=None)
    keys = (
        decoder_keys(_NAME, c, None, None)
        | routing_keys(_NAME, routing)
        | {f"{_NAME}.vocab_size": u32(c.vocab_size)}
        | latent.keys(_NAME, "split")
        | {f"{_NAME}.attention.head_count_kv": i32s([int(not r) for r in recurrent])}
        | delta.keys(_NAME)
    )
    del keys[f"{_NAME}.attention.q_lora_rank"]  # queries have no short vector
    full = [layer for layer in range(n) if not recurrent[layer]]
    linear = [layer for layer in range(n) if recurrent[layer]]
    return Architecture(
        name=_NAME,
        keys=keys,
        rows=(
            *EMBEDDING,
            *on(full, latent.rows("split")),
            *on(linear, (*NORMS, *_DELTA)),
            *on(range(n_dense), DENSE),
            *on(range(n_dense, n), EXPERTS),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={**decoder_sizes(c), **latent.sizes, **m.sizes, **delta.sizes},
        n_layers=n,
        tied=None,
        via=VIA,
        ignored=IGNORED,
        n_experts=m.num_experts,
        deviations=other_epsilon(
            c, "the norms of latent attention and of Q and K in delta attention", where
        ),
    )


def _problems(c: Config, m: Mixture, delta: Delta, where: str) -> Iterator[str]:
    yield from chain(
        m.problems(where),
        fixed(c, {"attention_bias": False}, where),
        fixed(m, {"q_lora_rank": None, "norm_topk_prob": True}, where),
        fixed(delta, {"linear_lower_bound": None}, where),
        delta.problems(c.num_attention_heads, where),
        output_apart(c, where),
    )


READ = (
    DECODER
    | reads(DenseLayers, Mixture, Delta, more="layer_types linear_attn_config")
    | {*SPELLINGS}
) - {"linear_lower_bound"}
HARMLESS = NO_POSITIONS | harmless("num_expert_group states the groups", "use_grouped_topk")
ONLY = (
    constant(True, "mla_use_nope")
    | constant("sigmoid", "moe_router_activation_func")
    | constant(1, "moe_layer_freq")
    | constant(0, "num_nextn_predict_layers")
)
FAMILIES = {
    "KimiLinearForCausalLM": Declared(
        kimi_linear,
        Settings(read=READ, harmless=HARMLESS, only=ONLY, layer_types=LAYER_TYPES),
    )
}
GRAPHS = {
    "kimi-linear": GGUFGraph(
        "KimiLinearForCausalLM", settings={"linear_num_heads": 2}, layers=kinds_of
    ),
}
