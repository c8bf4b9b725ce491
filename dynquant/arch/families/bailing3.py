"""Ling 3: gated delta attention in most layers, latent attention with gates in the others."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynquant.arch.attention.delta import INPUTS, NORMS, RESULT, VIA, WHOLE, Delta
from dynquant.arch.attention.latent import Latent
from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import (
    AheadCount,
    Count,
    LayersCount,
    Truth,
    read_config,
    usual_names,
    without_nulls,
)
from dynquant.arch.decoder import (
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.bailing import EMBEDDING, PREDICTION, ROUTED, TIED
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed, other_epsilon
from dynquant.arch.mixtures.dense_layers import DenseLayers, n_leading_dense
from dynquant.arch.mixtures.experts import routing_keys
from dynquant.arch.mixtures.with_delta import SPELLINGS, Mixture
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.prediction import prediction_of
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, KeyValue, boolean, f32s, i32s, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Elementwise, Reshaped

_NAME = "bailingmoe3"
_GATE = (
    Row("model.layers.{}.attention.g_proj.weight", "blk.{}.attn_gate.weight", "delta_heads hidden"),
)

_DELTA = (*NORMS, *INPUTS, *WHOLE, *RESULT)

_SPELLINGS = {
    **SPELLINGS,
    "linear_conv_kernel_dim": "short_conv_kernel_size",
    "linear_head_dim": "head_dim",
    "num_mtp_layers": "num_nextn_predict_layers",
}
"""Names of settings that transformers and published files write differently."""

_DEFAULTS: dict[str, Any] = {
    "kv_lora_rank": 512,
    "max_position_embeddings": 262144,
    "moe_intermediate_size": 768,
    "n_group": 8,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_experts": 512,
    "num_experts_per_tok": 8,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-6,
    "rope_theta": 6e6,
    "routed_scaling_factor": 2.5,
    "topk_group": 4,
    "v_head_dim": 128,
}
"""transformers' defaults."""


@dataclass(frozen=True)
class _Own:
    """Settings besides those of the rooms, with the defaults of transformers."""

    num_hidden_layers: LayersCount
    head_dim: Count = 128
    short_conv_kernel_size: Count = 4
    layer_group_size: Count = 6
    layer_types: tuple[str, ...] | None = None
    kda_safe_gate: Truth = True
    kda_lower_bound: float = -5.0
    num_nextn_predict_layers: AheadCount = 1
    rope_interleave: Truth = True
    expert_swiglu_limit_list: tuple[float | None, ...] = ()
    share_expert_swiglu_limit_list: tuple[float | None, ...] = ()

    @property
    def latent_layers(self) -> list[bool]:
        """Which layers have latent attention: by `layer_types`, else the last of each group.

        Layers after the last whole group have it too, as in the published code.
        """
        n, each = self.num_hidden_layers, self.layer_group_size
        if self.layer_types is not None:
            return [kind == "full_attention" for kind in self.layer_types]
        return [(i + 1) % each == 0 or i >= n // each * each for i in range(n)]


def bailing3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Ling 3: latent attention in the last layer of each group, delta attention before.

    llama.cpp limits the activations of experts as expert_swiglu_limit_list states.
    """
    stated = without_nulls(config)
    if "linear_head_dim" in stated:
        stated.pop("head_dim", None)  # beside it: what latent attention rotates
    config = {**_DEFAULTS, **usual_names(stated, where, _SPELLINGS)}
    own, m = read_config(_Own, config, where), read_config(Mixture, config, where)
    plain = {**config, "head_dim": m.qk_rope_head_dim, "partial_rotary_factor": None}
    c = read_decoder({**plain, "num_key_value_heads": None}, where)
    rope = read_rope(plain, where, known=("dynamic",))
    ArchitectureError.raise_any(_problems(c, own, m, where))
    n, n_head = c.num_hidden_layers, c.num_attention_heads
    latent = m.latent(n_head)
    delta = Delta(own.head_dim, n_head, own.short_conv_kernel_size, own.kda_lower_bound)
    every = range(n + own.num_nextn_predict_layers)
    is_latent = own.latent_layers + [True] * own.num_nextn_predict_layers
    n_dense = n_leading_dense(config, where, default=2)
    routing = replace(m.routing(n_dense), shared_ffn=m.sizes["shared_ffn"])
    keys = {k: v for k, v in decoder_keys(_NAME, c, rope, None).items() if "head_count_kv" not in k}
    ahead = prediction_of(_NAME, every[n:])
    return Architecture(
        name=_NAME,
        keys=keys
        | _layer_keys(own, is_latent[:n])
        | {f"{_NAME}.vocab_size": u32(c.vocab_size)}
        | delta.keys(_NAME)
        | {f"{_NAME}.kda.safe_gate": boolean(True)}
        | _latent_keys(latent)
        | routing_keys(_NAME, routing),
        rows=(
            *EMBEDDING,
            *on([i for i in every if is_latent[i]], (*_renamed(latent.rows("split")), *_GATE)),
            *on([i for i in every if not is_latent[i]], _renamed(_DELTA)),
            *on(range(n_dense), MLP),
            *on(every[n_dense:], ROUTED),
            *on(every[n:], PREDICTION),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **latent.sizes,
            **delta.sizes,
            **m.sizes,
            "hidden_twice": 2 * c.hidden_size,
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        via={**VIA, "ssm_a": _decay},
        ignored=IGNORED,
        n_experts=m.num_experts,
        prediction=ahead and replace(ahead, keys=ahead.keys | _layer_keys(own, is_latent)),
        deviations=(
            *other_epsilon(c, "the norms of latent attention, and of Q and K elsewhere,", where),
            *_limits(own, where),
        ),
    )


def _renamed(rows: Iterable[Row]) -> tuple[Row, ...]:
    """Return rows of attention with this family's names."""
    return tuple(
        row.within("self_attn.o_proj", "attention.dense").within("self_attn.", "attention.")
        for row in rows
    )


def _decay(source: TensorSource) -> TensorSource:
    """Return the exponentials of a vector, one in each row."""
    # In float64, so that every machine rounds to the same float32.
    column = Reshaped(source, (*source.shape, 1))
    return Elementwise(column, lambda x: np.exp(x.astype(np.float64)).astype(np.float32))


def _layer_keys(own: _Own, is_latent: list[bool]) -> Keys:
    """Return the keys with a value for each layer; no heads of K mean delta attention."""
    keys: dict[str, KeyValue] = {"attention.head_count_kv": i32s([int(x) for x in is_latent])}
    for name, limits in (
        ("swiglu_clamp_exp", own.expert_swiglu_limit_list),
        ("swiglu_clamp_shexp", own.share_expert_swiglu_limit_list),
    ):
        if any(limits):
            found = [limit or 0.0 for limit in limits[: len(is_latent)]]
            keys[name] = f32s(found + [0.0] * (len(is_latent) - len(found)))
    return {f"{_NAME}.{name}": value for name, value in keys.items()}


def _latent_keys(latent: Latent) -> Keys:
    keys = latent.keys(_NAME, "split")
    if latent.q_rank is None:
        keys.pop(f"{_NAME}.attention.q_lora_rank")
    return keys


def _limits(own: _Own, where: str) -> Iterator[str]:
    """Yield a warning for limits of activations, which transformers' class does not read."""
    for name in ("expert_swiglu_limit_list", "share_expert_swiglu_limit_list"):
        if any(getattr(own, name)):
            yield (
                f"{where}: {name} limits activations of experts: llama.cpp applies the limits,"
                " as the model was trained; transformers' class does not"
            )


def _problems(c: Config, own: _Own, m: Mixture, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(own, {"kda_safe_gate": True, "rope_interleave": True}, where)
    yield from m.problems(where)
    if own.kda_lower_bound >= 0:
        yield f"{where}: kda_lower_bound is {own.kda_lower_bound}; llama.cpp needs one below zero"
    if own.short_conv_kernel_size == 1:
        yield f"{where}: short_conv_kernel_size is 1; llama.cpp needs at least 2"
    if len({*own.latent_layers}) == 1:
        yield (
            f"{where}: layer_types and layer_group_size give all layers one kind of attention;"
            " llama.cpp computes this family with some layers of each kind"
        )


_BAILING3 = Declared(
    bailing3,
    Settings(
        read=(DECODER - {"num_key_value_heads", "partial_rotary_factor"})
        | reads(_Own, Mixture, DenseLayers)
        | {*_SPELLINGS},
        harmless=harmless("the heads of both kinds of attention are those of Q", "linear_num_heads")
        | harmless("latent attention has as many heads of K as of Q", "num_key_value_heads")
        | harmless("qk_rope_head_dim is rotated", "partial_rotary_factor rotary_dim")
        | harmless("the sum of qk_nope_head_dim and qk_rope_head_dim", "qk_head_dim")
        | harmless(
            "the product of moe_intermediate_size and num_shared_experts",
            "moe_shared_expert_intermediate_size",
        )
        | harmless(
            "the published code does not read it",
            "use_qk_norm linear_silu max_window_layers use_sliding_window sliding_window"
            " use_nGPT group_norm_size scale_router_input num_kv_heads_for_linear_attn"
            " moe_router_enable_expert_bias router_dtype use_rmsnorm linear_attention",
        )
        | harmless("used while training only", "mtp_loss_scaling_factor output_dropout"),
        only=constant("sigmoid", "score_function scoring_func")
        | constant("noaux_tc", "topk_method")
        | constant("head_wise", "gated_attention_proj_granularity_type")
        | constant(True, "no_kda_lora")
        | constant(False, "use_bias use_qkv_bias use_kda_lora use_mla_nope value_norm mtp_use_kda"),
        layer_types=("full_attention", "linear_attention"),
    ),
)
FAMILIES = {
    "BailingMoeV3ForCausalLM": _BAILING3,
    "BailingHybridForCausalLM": _BAILING3,
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the kinds of a GGUF's layers: those without heads of K have delta attention."""
    kinds = keys.kinds("attention.head_count_kv", "linear_attention", "full_attention")
    return {
        "q_lora_rank": keys.number("attention.q_lora_rank"),
        **({"layer_types": kinds} if kinds else {}),
    }


GRAPHS = {
    "bailingmoe3": GGUFGraph("BailingMoeV3ForCausalLM", layers=_layers_of, fused=()),
}
