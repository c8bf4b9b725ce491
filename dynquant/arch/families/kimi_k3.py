"""Kimi-K3 (the language model): a Kimi-Linear whose blocks read earlier states of the stream.

Routed experts work on shorter vectors, gates of attention are whole matrices, and the activation is
a product of bounded functions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dynquant.arch.attention.delta import (
    INPUTS,
    NORMS,
    RESULT,
    VIA,
    delta_layers,
    kinds_of,
    padded_decay,
    published,
    read_delta,
)
from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import Count, Positive, Truth, read_config
from dynquant.arch.decoder import (
    EMBEDDING,
    IGNORED,
    OUTPUT,
    OUTPUT_NORM,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.families.kimi_linear import (
    DENSE,
    EXPERTS,
    HARMLESS,
    LAYER_TYPES,
    ONLY,
    READ,
    completed,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, other_epsilon, output_apart
from dynquant.arch.mixtures.dense_layers import n_leading_dense
from dynquant.arch.mixtures.experts import routing_keys
from dynquant.arch.mixtures.with_delta import Mixture
from dynquant.arch.settings import Declared, Settings, constant, reads
from dynquant.arch.streams.attention_residuals import LAST_SCORE, SCORES
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, f32, i32s, u32

NAME = "kimi-k3"
_IN, _OUT = "model.layers.{}.", "blk.{}."
_BLOCK = _IN + "block_sparse_moe."


# Both are `g_proj`: of delta attention, and of latent attention.
_DELTA_GATE = Row(_IN + "self_attn.g_proj.weight", _OUT + "ssm_g.weight", "delta hidden")
_LATENT_GATE = Row(_IN + "self_attn.g_proj.weight", _OUT + "attn_gate.weight", "v hidden")
_ROUTED = tuple(
    replace(
        row,
        shape=row.shape.replace("hidden", "routed"),
        forms=tuple(replace(f, shape=f.shape.replace("hidden", "routed")) for f in row.forms),
    )
    if "_exps." in row.name
    else row
    for row in EXPERTS
)
_AROUND = (
    Row(
        _BLOCK + "routed_expert_down_proj.weight", _OUT + "ffn_routed_down.weight", "routed hidden"
    ),
    Row(_BLOCK + "routed_expert_up_proj.weight", _OUT + "ffn_routed_up.weight", "hidden routed"),
)
_ROUTED_NORM = Row(_BLOCK + "routed_expert_norm.weight", _OUT + "ffn_routed_norm.weight", "routed")


@dataclass(frozen=True)
class _Own:
    """Settings besides those of a Kimi-Linear, with the defaults of the published code."""

    attn_res_block_size: Count
    routed_expert_hidden_size: Count
    activation_situ_beta: Positive = 1.0
    activation_situ_linear_beta: Positive | None = None
    latent_moe_use_norm: Truth = False
    mla_use_output_gate: Truth = False

    def keys(self) -> Keys:
        """Return the keys of these settings."""
        return {
            f"{NAME}.attn_res.block_size": u32(self.attn_res_block_size),
            f"{NAME}.expert_latent_length": u32(self.routed_expert_hidden_size),
            f"{NAME}.activation.situ_beta": f32(self.activation_situ_beta),
            # Zero: no bound.
            f"{NAME}.activation.situ_linear_beta": f32(self.activation_situ_linear_beta or 0.0),
        }


def kimi_k3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Kimi-K3."""
    stated = completed(config, where)
    own, m = read_config(_Own, stated, where), read_config(Mixture, stated, where)
    delta = read_delta(stated, where)
    c = read_decoder(
        {**stated, "head_dim": 2, "num_key_value_heads": None}, where, activation=("situ",)
    )
    recurrent = delta_layers(stated, where, by_default=lambda n: n == 0 or n % 4 != 0, first=1)
    n, n_dense = c.num_hidden_layers, n_leading_dense(stated, where)
    gate = fixed(published(stated, where), {"use_full_rank_gate": True}, where)
    ArchitectureError.raise_any(
        chain(_problems(c, m, where), gate, delta.problems(c.num_attention_heads, where))
    )
    latent = m.latent(c.num_attention_heads)
    keys = (
        decoder_keys(NAME, c, None, None)
        | routing_keys(NAME, m.routing(n_dense))
        | {f"{NAME}.vocab_size": u32(c.vocab_size)}
        | latent.keys(NAME, "split")
        | {f"{NAME}.attention.head_count_kv": i32s([int(not r) for r in recurrent])}
        | delta.keys(NAME)
        | own.keys()
    )
    full = [layer for layer in range(n) if not recurrent[layer]]
    return Architecture(
        name=NAME,
        keys=keys,
        rows=(
            *EMBEDDING,
            *on(range(n), SCORES),
            *on(full, latent.rows("split")),
            *on(full if own.mla_use_output_gate else (), (_LATENT_GATE,)),
            *on(
                [layer for layer in range(n) if recurrent[layer]],
                (*NORMS, *INPUTS, *padded_decay(delta.linear_num_heads), _DELTA_GATE, *RESULT),
            ),
            *on(range(n_dense), DENSE),
            *on(range(n_dense, n), (*_ROUTED, *_AROUND)),
            *on(range(n_dense, n) if own.latent_moe_use_norm else (), (_ROUTED_NORM,)),
            LAST_SCORE,
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **latent.sizes,
            **m.sizes,
            **delta.sizes,
            "routed": own.routed_expert_hidden_size,
        },
        n_layers=n,
        tied=None,
        via=VIA,
        ignored=IGNORED,
        n_experts=m.num_experts,
        deviations=other_epsilon(
            c, "the norms of latent attention and of Q and K in delta attention", where
        ),
    )


def _problems(c: Config, m: Mixture, where: str) -> Iterator[str]:
    yield from m.problems(where)
    yield from fixed(c, {"attention_bias": False}, where)
    yield from output_apart(c, where)
    if m.num_experts_per_tok == 1 and m.norm_topk_prob:
        yield (
            f"{where}: num_experts_per_token is 1 and moe_renormalize is true; llama.cpp makes the"
            " weight of the expert 1, the model's own code does not"
        )


_SETTINGS = Settings(
    read=READ | reads(_Own),
    harmless=HARMLESS,
    only=ONLY | constant("noaux_tc", "topk_method"),
    layer_types=LAYER_TYPES,
)
FAMILIES = {"KimiK3ForConditionalGeneration": Wrapped(Declared(kimi_k3, _SETTINGS))}
GRAPHS = {
    "kimi-k3": GGUFGraph(
        "KimiK3ForConditionalGeneration",
        settings={
            "attn_res_block_size": 1,
            "hidden_act": "situ",
            "latent_moe_use_norm": True,
            "linear_attn_config": {"num_heads": 2, "use_full_rank_gate": True},
            "mla_use_output_gate": True,
            "num_experts_per_tok": 2,
            "q_lora_rank": 32,
            "routed_expert_hidden_size": 64,
        },
        layers=kinds_of,
    ),
}
