"""DeepSeek-V4: one key for all heads, compressed attention, hyper-connections, hash routing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from dynquant.arch.attention.compressed import (
    RATIOS,
    Compression,
    compressor_rows,
    compressor_sizes,
    read_ratios,
)
from dynquant.arch.attention.indexer import Indexer, read_indexer
from dynquant.arch.attention.single_key import SINGLE_KEY, SingleKey
from dynquant.arch.base import Architecture, Form, Row, on
from dynquant.arch.config import (
    Count,
    ExpertsCount,
    Natural,
    Positive,
    Truth,
    read_config,
    without_nulls,
)
from dynquant.arch.decoder import (
    IGNORED,
    OUTPUT_NORM,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    shared_rows,
)
from dynquant.arch.settings import DECODER, Declared, Only, Settings, constant, harmless, reads
from dynquant.arch.streams.hyper_connections import HYPER, HYPER_HEAD, Hyper
from dynquant.arch.wrapped import OTHER_PARTS
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, f32s, i32s, u32
from dynquant.transforms import as_i32

NAME = "deepseek4"
SQRT_SOFTPLUS = 4
"""expert_gating_func: scores are the square roots of softplus."""

_IN, _OUT = "model.layers.{}.", "blk.{}."
_FFN = _IN + "ffn."
_EMBEDDING = Row(
    "model.embed.weight",
    "token_embd.weight",
    "vocab hidden",
    forms=(Form("model.embed_tokens.weight", "vocab hidden"),),
)
_LAYER = (
    Row(_IN + "attn_norm.weight", _OUT + "attn_norm.weight", "hidden"),
    *SINGLE_KEY,
    *HYPER,
    Row(_IN + "ffn_norm.weight", _OUT + "ffn_norm.weight", "hidden"),
    router_row(_FFN + "gate.weight"),
    # Of models that also see: in place of the other bias, for tokens of images.
    Row(_FFN + "gate.bias_vl", _OUT + "exp_probs_b_vl.bias", "experts", optional=True),
    *expert_rows(_FFN, gate="w1", up="w3", down="w2"),
    *shared_rows(_FFN + "shared_experts.", ("w1", "w3", "w2")),
)
_TABLE = Row(_FFN + "gate.tid2eid", _OUT + "ffn_gate_tid2eid.weight", "vocab used", via=as_i32)
_BIAS = score_bias_row(_FFN + "gate.bias")
_OUTPUT = Row("head.weight", "output.weight", "vocab hidden")


@dataclass(frozen=True)
class _Experts:
    """config.json's settings of experts, with transformers' defaults."""

    moe_intermediate_size: Count
    n_routed_experts: ExpertsCount
    num_experts_per_tok: Count
    n_shared_experts: Count = 1
    routed_scaling_factor: Positive = 1.5
    norm_topk_prob: Truth = True
    swiglu_limit: Positive = 10.0
    num_hash_layers: Natural = 3
    mlp_layer_types: tuple[Literal["hash_moe", "moe"], ...] | None = None

    def n_hashed(self, n_layers: int) -> int:
        """Return how many layers choose experts by a table of tokens; they are the first."""
        types = self.mlp_layer_types
        return min(self.num_hash_layers, n_layers) if types is None else types.count("hash_moe")

    def routing(self) -> Routing:
        """Return how tokens are routed, in layers without a table."""
        return Routing(
            n_experts=self.n_routed_experts,
            n_used=self.num_experts_per_tok,
            expert_ffn=self.moe_intermediate_size,
            n_shared=self.n_shared_experts,
            weights_scale=self.routed_scaling_factor,
            weights_norm=True,
            gating=SQRT_SOFTPLUS,
        )


_INDEXER = {"index_n_heads": 64, "index_head_dim": 128, "index_topk": 512}


def deepseek4(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V4."""
    present = {"rms_norm_eps": 1e-6, **without_nulls(config)}
    own, attention = read_config(_Experts, present, where), read_config(SingleKey, present, where)
    c = read_decoder(
        {**present, "intermediate_size": own.moe_intermediate_size, "num_key_value_heads": 1},
        where,
        head_dim=attention.head_dim,
    )
    main, compress = attention.ropes(present, where)
    hyper, indexer = read_config(Hyper, present, where), read_indexer(present, where, _INDEXER)
    ratios = read_ratios(present, where)
    ArchitectureError.raise_any(_problems(c, own, hyper, where))
    ArchitectureError.raise_any(attention.problems(c, indexer.index_head_dim, where))
    n, hashed = c.num_hidden_layers, own.n_hashed(c.num_hidden_layers)
    keys = decoder_keys(NAME, c, main, c.n_per_head)
    del keys[f"{NAME}.feed_forward_length"]  # no layer is without experts
    limits = f32s([own.swiglu_limit] * n)
    more: Keys = {
        "attention.compress_ratios": i32s(ratios),
        "hash_layer_count": u32(hashed),
        "swiglu_clamp_exp": limits,
        "swiglu_clamp_shexp": limits,
        "embedding_length_out": u32(hyper.hc_mult * c.hidden_size),
    }
    return Architecture(
        name=NAME,
        keys=keys
        | attention.keys(NAME, compress)
        | routing_keys(NAME, own.routing())
        | indexer.keys(NAME)
        | hyper.keys(NAME)
        | {f"{NAME}.{name}": value for name, value in more.items()},
        rows=(
            _EMBEDDING,
            *_LAYER,
            *compressor_rows(ratios),
            *on(range(hashed), (_TABLE,)),
            *on(range(hashed, n), (_BIAS,)),
            *OUTPUT_NORM,
            _OUTPUT,
            *HYPER_HEAD,
        ),
        sizes=decoder_sizes(c)
        | attention.sizes(c.num_attention_heads)
        | hyper.sizes(c.hidden_size)
        | indexer.sizes
        | compressor_sizes(c.n_per_head, indexer.index_head_dim)
        | {
            "experts": own.n_routed_experts,
            "expert_ffn": own.moe_intermediate_size,
            "shared_ffn": own.moe_intermediate_size * own.n_shared_experts,
            "used": own.num_experts_per_tok,
        },
        n_layers=n,
        tied=None,
        ignored=IGNORED | OTHER_PARTS | _left_out(hashed),
        n_experts=own.n_routed_experts,
    )


def _problems(c: Config, own: _Experts, hyper: Hyper, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(own, {"norm_topk_prob": True}, where)
    yield from output_apart(c, where)
    yield from hyper.problems(where)
    n, types = c.num_hidden_layers, own.mlp_layer_types
    if types is not None and (len(types) != n or "hash_moe" in types[own.n_hashed(n) :]):
        yield (
            f"{where}: mlp_layer_types is not hash_moe and then moe for each of {n} layers, as"
            " llama.cpp's graph needs"
        )


def _left_out(n_hashed: int) -> dict[str, str]:
    hashed = "|".join(map(str, range(n_hashed)))
    biases = rf"(model\.)?layers\.({hashed})\.ffn\.gate\.bias"
    return {
        r"(model\.)?mtp\..*": (
            "layers that predict further tokens, which llama.cpp reads from a separate file"
        ),
        **({biases: "not used beside a table of experts"} if n_hashed else {}),
    }


FAMILIES = {
    "DeepseekV4ForCausalLM": Declared(
        deepseek4,
        Settings(
            read=DECODER | reads(_Experts, SingleKey, Hyper, Indexer, Compression),
            of_rope=frozenset({"main", "compress"}),
            harmless=harmless(
                "of layers that predict further tokens, which are left out",
                "num_nextn_predict_layers",
            )
            | harmless("stored tensors show it", "expert_dtype"),
            only={
                **constant("sqrtsoftplus", "scoring_func"),
                **constant("noaux_tc", "topk_method"),
                **constant(1, "num_key_value_heads"),
                # DeepSeek-V4.1
                **dict.fromkeys(
                    ("kv_source_layer_ids", "index_source_layer_ids", "candidate_source_layer_id"),
                    Only(([],), "llama.cpp computes keys and their choice in each layer"),
                ),
            },
            layer_types=tuple(RATIOS),
        ),
    ),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return which layers of a GGUF are compressed, and how many have a table of experts."""
    ratios = keys.value("attention.compress_ratios")
    known = ratios if isinstance(ratios, tuple) and len(ratios) >= keys.n_layers else None
    return {
        "compress_ratios": list(known or (0,) * keys.n_layers),
        "num_hash_layers": keys.number("hash_layer_count") or 0,
    }


GRAPHS = {
    "deepseek4": GGUFGraph(
        "DeepseekV4ForCausalLM",
        settings={"num_key_value_heads": 1, "o_groups": 1},
        layers=_layers_of,
    ),
}
