"""GLM-5.3-Flash (the language model): delta attention, latent attention, and residual streams."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Annotated, Any

from pydantic import Field

from dynquant.arch.attention.delta import (
    DELTA,
    NORMS,
    VIA,
    Delta,
    default_bound,
    delta_layers,
    kinds_of,
    read_delta,
)
from dynquant.arch.attention.indexer import Indexed, Indexer, has_own_indexer
from dynquant.arch.attention.pooled_indexer import INDEXER, Pools
from dynquant.arch.base import Architecture, on
from dynquant.arch.config import AheadCount, Positive, read_config, without_nulls
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
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.mixtures.dense_layers import DenseLayers, n_leading_dense
from dynquant.arch.mixtures.experts import SIGMOID_EXPERTS, routing_keys, with_expert_count
from dynquant.arch.mixtures.with_delta import NO_POSITIONS, Mixture
from dynquant.arch.prediction import prediction_of, prediction_rows
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless, reads
from dynquant.arch.streams.hyper_connections import HYPER, Hyper
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, f32, f32s, i32s, u32

NAME = "glm5-next"
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 32,
    "index_topk": 2048,
    "intermediate_size": 12288,
    "kv_lora_rank": 512,
    "max_position_embeddings": 1 << 20,
    "moe_intermediate_size": 2048,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 45,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 256,
    "qk_rope_head_dim": 0,
    "rms_norm_eps": 1e-5,
    "routed_scaling_factor": 2.5,
    "swiglu_limit": 10.0,
    "v_head_dim": 256,
    "vocab_size": 154880,
}
"""transformers' defaults."""


@dataclass(frozen=True)
class _Own:
    """Settings besides those of the rooms.

    swiglu_limit: the largest gate, and the largest up in either direction
    """

    swiglu_limit: Annotated[Positive, Field(gt=1e-6)]
    num_nextn_predict_layers: AheadCount


def glm5_next(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-5.3-Flash."""
    present = without_nulls(config)
    stated = with_expert_count({**_DEFAULTS, **present, "num_key_value_heads": None, "head_dim": 2})
    stated["num_experts"] = stated["num_experts"] or 288
    c, own = read_decoder(stated, where), read_config(_Own, stated, where)
    m, hyper = read_config(Mixture, stated, where), read_config(Hyper, stated, where)
    indexer, pools = read_config(Indexer, stated, where), read_config(Pools, stated, where)
    has_own = has_own_indexer(stated, where)
    delta = read_delta(stated, where, n_heads=64, lower_bound=default_bound(config))
    recurrent = delta_layers(stated, where, by_default=lambda n: n % 4 != 3, first=0)
    ArchitectureError.raise_any(
        chain(
            _problems(c, m, recurrent, has_own, where),
            delta.problems(c.num_attention_heads, where),
            hyper.problems(where),
            pools.problems(indexer, where),
        )
    )
    n, n_dense = c.num_hidden_layers, n_leading_dense(stated, where, default=3)
    ahead = range(n, n + own.num_nextn_predict_layers)
    latent = m.latent(c.num_attention_heads)
    keys = (
        decoder_keys(NAME, c, None, None)
        | routing_keys(NAME, m.routing(n_dense))
        | {f"{NAME}.vocab_size": u32(c.vocab_size)}
        | latent.keys(NAME, "split")
        | delta.keys(NAME)
        | indexer.keys(NAME)
        | pools.keys(NAME, has_own)
        | hyper.keys(NAME)
        | _by_layer(recurrent, own.swiglu_limit, n_ahead=0)
        # Of the indexer's norm; the model's own code has this number too.
        | {f"{NAME}.attention.layer_norm_epsilon": f32(1e-6)}
    )
    full = [layer for layer in range(n) if not recurrent[layer]]
    prediction = prediction_of(NAME, ahead)
    return Architecture(
        name=NAME,
        keys=keys,
        rows=(
            *EMBEDDING,
            *on(range(n), HYPER),
            *on([*full, *ahead], latent.rows("split")),
            *on([*(layer for layer in full if has_own[layer]), *ahead], INDEXER),
            *on([layer for layer in range(n) if recurrent[layer]], (*NORMS, *DELTA)),
            *on(range(n_dense), MLP),
            *on(range(n_dense, ahead.stop), SIGMOID_EXPERTS),
            *prediction_rows(ahead),
            *OUTPUT_NORM,
            *OUTPUT,
        ),
        sizes={
            **decoder_sizes(c),
            **latent.sizes,
            **m.sizes,
            **delta.sizes,
            **indexer.sizes,
            **pools.sizes,
            **hyper.sizes(c.hidden_size),
            "hidden_twice": 2 * c.hidden_size,
        },
        n_layers=n,
        tied=None,
        via=VIA,
        ignored=IGNORED,
        n_experts=m.num_experts,
        prediction=prediction
        and replace(
            prediction,
            keys=prediction.keys | _by_layer(recurrent, own.swiglu_limit, len(ahead)),
        ),
    )


def _by_layer(recurrent: Sequence[bool], limit: float, n_ahead: int) -> Keys:
    """Return the keys that have a value for each layer."""
    limits = f32s([limit] * (len(recurrent) + n_ahead))
    return {
        f"{NAME}.attention.head_count_kv": i32s([int(not r) for r in recurrent] + [1] * n_ahead),
        f"{NAME}.swiglu_clamp_exp": limits,
        f"{NAME}.swiglu_clamp_shexp": limits,
    }


def _problems(
    c: Config, m: Mixture, recurrent: Sequence[bool], has_own: Sequence[bool], where: str
) -> Iterator[str]:
    yield from chain(
        m.problems(where),
        fixed(c, {"attention_bias": False}, where),
        fixed(m, {"qk_rope_head_dim": 0}, where),
        output_apart(c, where),
    )
    first = recurrent.index(False)
    if not has_own[first]:
        yield (
            f"{where}: layer {first} is the first with full attention, but shares the indexer of a"
            " layer before it; give it one (indexer_types)"
        )


_SETTINGS = Settings(
    read=(DECODER | reads(_Own, DenseLayers, Mixture, Delta, Indexer, Indexed, Pools, Hyper))
    | {"layer_types", "linear_attn_config", "n_routed_experts", "num_local_experts"},
    harmless=NO_POSITIONS
    | harmless("the model has no rotary embeddings", "indexer_rope_interleave")
    | harmless("llama.cpp scores experts in F32", "moe_router_dtype")
    | harmless("llama.cpp does not compute the prediction layer", "index_share_for_mtp_iteration")
    | harmless("checkpoints state num_nextn_predict_layers", "num_mtp_layers"),
    only=constant(True, "mla_use_nope mhc index_kpool_compress")
    | constant("sigmoid", "scoring_func")
    | constant("noaux_tc", "topk_method"),
    layer_types=(
        "full_attention",
        "indexed_attention",
        "deepseek_sparse_attention",
        "linear_attention",
    ),
)
FAMILIES = {"Glm5NextForConditionalGeneration": Wrapped(Declared(glm5_next, _SETTINGS))}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the kinds of a GGUF's layers, and which have an indexer."""
    own = keys.kinds("attention.indexer.types", "shared", "full")
    return {**kinds_of(keys), **({"indexer_types": own} if own else {})}


GRAPHS = {
    "glm5-next": GGUFGraph(
        "Glm5NextForConditionalGeneration",
        settings={"index_kpool": 2, "index_topk": 2, "linear_num_heads": 2, "qk_rope_head_dim": 0},
        layers=_layers_of,
    ),
}
