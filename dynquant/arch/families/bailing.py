"""Ling and Ring, first generation and 2.0: fused Q, K and V, routed experts beside shared ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from typing import Any

from dynquant.arch.attention.fused import n_fused, separate_rows
from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import (
    AheadCount,
    Count,
    ExpertsCount,
    Natural,
    Positive,
    Truth,
    read_config,
    without_nulls,
)
from dynquant.arch.decoder import IGNORED, MLP, OUTPUT, OUTPUT_NORM, Config, decoder_sizes
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, group_problems, heads_fill_hidden, output_apart
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    shared_rows,
)
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.positions.rope import deviations
from dynquant.arch.prediction import prediction_of
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.transforms import UnitColumns

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_ATTENTION, _BLOCK = _LAYER + "attention.", _LAYER + "mlp."
TIED = ("lm_head.weight", "model.word_embeddings.weight")
EMBEDDING = (Row(TIED[1], "token_embd.weight", "vocab hidden"),)
_AROUND = (
    Row(_LAYER + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_ATTENTION + "dense.weight", _OUT + "attn_output.weight", "hidden q"),
    Row(_LAYER + "post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
)
_QKV = _ATTENTION + "query_key_value."
_FUSED = (
    Row(_QKV + "weight", _OUT + "attn_qkv.weight", "qkv hidden"),
    Row(_ATTENTION + "query_layernorm.weight", _OUT + "attn_q_norm.weight", "head"),
    Row(_ATTENTION + "key_layernorm.weight", _OUT + "attn_k_norm.weight", "head"),
)
_EXPERTS = (
    router_row(_BLOCK + "gate.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_BLOCK + "shared_experts."),
)
ROUTED = (
    *_EXPERTS,
    score_bias_row(_BLOCK + "gate.expert_bias"),
)
PREDICTION = (
    Row(_LAYER + "eh_proj.weight", _OUT + "nextn.eh_proj.weight", "hidden hidden_twice"),
    Row(_LAYER + "enorm.weight", _OUT + "nextn.enorm.weight", "hidden"),
    Row(_LAYER + "hnorm.weight", _OUT + "nextn.hnorm.weight", "hidden"),
    Row(_LAYER + "final_layernorm.weight", _OUT + "layer_output_norm.weight", "hidden"),
)


@dataclass(frozen=True)
class _Both:
    """Settings of both generations, with the defaults of the classes that models bring along."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count
    num_shared_experts: Count
    moe_intermediate_size: Count
    use_qkv_bias: Truth = False


@dataclass(frozen=True)
class _First:
    """Settings of the first generation only."""

    first_k_dense_replace: Natural = 0
    norm_topk_prob: Truth = True
    use_bias: Truth = True
    norm_head: Truth = False


@dataclass(frozen=True)
class _Second:
    """Settings of the second generation only."""

    first_k_dense_replace: Natural = 1
    use_bias: Truth = False
    n_group: Natural = 8
    topk_group: Natural = 4
    routed_scaling_factor: Positive = 1.0
    use_qk_norm: Truth = True
    num_nextn_predict_layers: AheadCount = 0


def bailing(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Ling or Ring of the first generation: a softmax over all experts.

    `norm_head` divides each column of the output matrix by its norm.
    """
    both, own = read_config(_Both, config, where), read_config(_First, config, where)
    config = {"rms_norm_eps": 1e-5, "intermediate_size": both.moe_intermediate_size, **config}
    c, rope = read_partial({**config, "partial_rotary_factor": 1.0}, where, None, partial=1.0)
    always = {"first_k_dense_replace": 0, "use_bias": False}
    ArchitectureError.raise_any(chain(output_apart(c, where), fixed(own, always, where)))
    # Their code leaves the weight of a single expert as it is.
    norm = own.norm_topk_prob and both.num_experts_per_tok > 1
    routing = replace(_routing(both), weights_norm=norm, weights_scale=1.0, n_leading_dense=0)
    name = "bailingmoe"
    return Architecture(
        name=name,
        keys=partial_keys(name, c, rope)
        | {f"{name}.vocab_size": u32(c.vocab_size)}
        | routing_keys(name, routing),
        rows=(
            *EMBEDDING,
            *_AROUND,
            *separate_rows(_QKV, c, interleaved=True, has_bias=both.use_qkv_bias),
            *_EXPERTS,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes=_sizes(c, both),
        n_layers=c.num_hidden_layers,
        tied=None,
        via={"output": partial(UnitColumns, epsilon=1e-7)} if own.norm_head else {},
        ignored=IGNORED,
        n_experts=both.num_experts,
        deviations=deviations(rope, where),
    )


def bailing2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Ling or Ring 2.0: sigmoid scores, a bias and groups to choose the experts."""
    defaults = {"rms_norm_eps": 1e-6, "head_dim": 128, "rope_theta": 600000.0}
    config = {**defaults, **without_nulls(config)}
    # llama.cpp's converter: 0.5; their own code rotates whole heads.
    c, rope = read_partial(config, where, None, partial=1.0)
    both, own = read_config(_Both, config, where), read_config(_Second, config, where)
    ArchitectureError.raise_any(_problems_of_second(c, both, own, where))
    n = c.num_hidden_layers
    every = range(n + own.num_nextn_predict_layers)
    n_dense = min(own.first_k_dense_replace, n)
    routing = replace(
        _routing(both),
        # llama.cpp multiplies this by the number of shared experts, its converter does too.
        shared_ffn=both.moe_intermediate_size,
        weights_norm=both.num_experts_per_tok > 1,
        weights_scale=own.routed_scaling_factor,
        gating=SIGMOID,
        n_leading_dense=n_dense,
    ).in_groups(own.n_group, own.topk_group)
    name = "bailingmoe2"
    return Architecture(
        name=name,
        keys=partial_keys(name, c, rope)
        | {f"{name}.vocab_size": u32(c.vocab_size)}
        | routing_keys(name, routing),
        rows=(
            *EMBEDDING,
            *on(every, (*_AROUND, *_FUSED)),
            *on(range(n_dense), MLP),
            *on(every[n_dense:], ROUTED),
            *on(every[n:], PREDICTION),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes=_sizes(c, both),
        n_layers=n,
        tied=None,
        ignored=IGNORED,
        n_experts=both.num_experts,
        prediction=prediction_of(name, every[n:]),
        deviations=deviations(replace(rope, partial_rotary_factor=1.0), where),
    )


def _problems_of_second(c: Config, both: _Both, own: _Second, where: str) -> Iterator[str]:
    yield from output_apart(c, where)
    yield from heads_fill_hidden(c, where)
    yield from fixed(both, {"use_qkv_bias": False}, where)
    yield from fixed(own, {"use_bias": False, "use_qk_norm": True}, where)
    yield from group_problems(own.n_group or 1, own.topk_group or 1, both.num_experts, where)


def _routing(both: _Both) -> Routing:
    return Routing(
        both.num_experts,
        both.num_experts_per_tok,
        expert_ffn=both.moe_intermediate_size,
        n_shared=both.num_shared_experts,
    )


def _sizes(c: Config, both: _Both) -> dict[str, int]:
    return decoder_sizes(c) | {
        "qkv": n_fused(c),
        "hidden_twice": 2 * c.hidden_size,
        "experts": both.num_experts,
        "expert_ffn": both.moe_intermediate_size,
        "shared_ffn": both.moe_intermediate_size * both.num_shared_experts,
    }


_HARMLESS = (
    NO_WINDOW
    | harmless("used while training only", "output_dropout")
    | harmless("its classes have use_bias and use_qkv_bias", "attention_bias mlp_bias")
)
_DECODER = DECODER - {"attention_bias", "mlp_bias"}
SECOND = Settings(
    read=_DECODER | reads(_Both, _Second),
    harmless=_HARMLESS
    | harmless(
        "their own code always normalizes the weights and computes in F32",
        "norm_topk_prob router_dtype use_rmsnorm",
    )
    | harmless("used while training only", "mtp_loss_scaling_factor")
    | harmless(
        "their own code has moe_intermediate_size times num_shared_experts",
        "moe_shared_expert_intermediate_size",
    ),
    only=constant("sigmoid", "score_function") | constant(True, "moe_router_enable_expert_bias"),
)
FAMILIES = {
    "BailingMoeForCausalLM": Declared(
        bailing,
        Settings(
            read=(_DECODER - {"partial_rotary_factor"}) | reads(_Both, _First),
            harmless=_HARMLESS
            | harmless("their own code does not read it", "norm_softmax partial_rotary_factor"),
        ),
    ),
    "BailingMoeV2ForCausalLM": Declared(bailing2, SECOND),
}
GRAPHS = {
    "bailingmoe": GGUFGraph("BailingMoeForCausalLM", settings={"use_bias": False}),
    "bailingmoe2": GGUFGraph("BailingMoeV2ForCausalLM", fused=()),
}
