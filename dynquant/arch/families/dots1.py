"""dots.llm1: attention as in Qwen3, experts chosen by sigmoids and a bias."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dynquant.arch.attention.windows import switched_window_left_out
from dynquant.arch.base import Architecture, on
from dynquant.arch.config import Count, ExpertsCount, Natural, Positive, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import output_apart
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    SIGMOID_EXPERTS,
    Routing,
    routing_keys,
    with_expert_count,
)
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, Declared, Only, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError

NAME = "dots1"


@dataclass(frozen=True)
class _Experts:
    """With transformers' defaults."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count
    n_shared_experts: Count
    moe_intermediate_size: Count = 1408
    first_k_dense_replace: Natural = 0
    routed_scaling_factor: Positive = 1.0
    norm_topk_prob: Truth = False
    n_group: Count = 1
    topk_group: Count = 1


def dots1(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a dots.llm1: dense layers first, then routed and shared experts."""
    c = read_decoder(config, where)
    rope = read_rope(config, where, ("linear", "dynamic", "yarn"))
    e = read_config(_Experts, with_expert_count(config), where)
    ArchitectureError.raise_any(chain(output_apart(c, where), _problems(c, where)))
    n = c.num_hidden_layers
    n_dense = min(e.first_k_dense_replace, n)
    routing = Routing(
        e.num_experts,
        e.num_experts_per_tok,
        expert_ffn=e.moe_intermediate_size,
        n_shared=e.n_shared_experts,
        weights_scale=e.routed_scaling_factor,
        weights_norm=e.norm_topk_prob,
        gating=SIGMOID,
        n_groups=e.n_group,
        n_groups_used=e.topk_group,
        n_leading_dense=n_dense,
    )
    # transformers' class has windows without a switch.
    windows = {"max_window_layers": 62, **config, "use_sliding_window": True}
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head) | routing_keys(NAME, routing),
        rows=(
            *(*EMBEDDING, *ATTENTION, *QK_NORMS),
            *on(range(n_dense), MLP),
            *on(range(n_dense, n), SIGMOID_EXPERTS),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **decoder_sizes(c),
            "experts": e.num_experts,
            "expert_ffn": e.moe_intermediate_size,
            "shared_ffn": e.moe_intermediate_size * e.n_shared_experts,
        },
        n_layers=n,
        tied=None,
        ignored=IGNORED,
        n_experts=e.num_experts,
        deviations=switched_window_left_out(windows, where, "last"),
    )


def _problems(c: Config, where: str) -> Iterator[str]:
    if c.attention_bias:
        yield f"{where}: attention_bias is true; llama.cpp's {NAME} has no bias on o_proj"
    if c.n_head_kv != c.num_attention_heads:
        yield (
            f"{where}: num_key_value_heads is {c.n_head_kv}; llama.cpp computes this family with as"
            f" many as num_attention_heads, {c.num_attention_heads}"
        )


FAMILIES = {
    "Dots1ForCausalLM": Declared(
        dots1,
        Settings(
            read=DECODER
            | reads(_Experts, more="n_routed_experts num_local_experts")
            | {"sliding_window", "max_window_layers", "layer_types"},
            harmless=harmless("the model's own code does not read it", "use_sliding_window"),
            only={
                **constant(1, "moe_layer_freq"),
                **constant("noaux_tc", "topk_method"),
                # Published files state the name of the method, whose scores are sigmoids.
                "scoring_func": Only(
                    ("noaux_tc", "sigmoid"), "llama.cpp computes this family with sigmoids"
                ),
            },
        ),
    ),
}
GRAPHS = {
    "dots1": GGUFGraph("Dots1ForCausalLM", optional=frozenset({"exp_probs_b.bias"})),
}
