"""ERNIE 4.5, dense and with experts; rotary pairs are adjacent in the checkpoint too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row, on, renamed
from dynquant.arch.config import Count, ExpertsCount, Natural, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    TIED,
    WEIGHTS,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.experts import (
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    shared_rows,
)
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Only,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.transforms import squeezed

_BLOCK = "model.layers.{}.mlp."
_EXPERTS = (
    router_row(_BLOCK + "gate.weight"),
    Row(
        _BLOCK + "moe_statics.e_score_correction_bias",
        "blk.{}.exp_probs_b.bias",
        "one experts",
        optional=True,
        via=partial(squeezed, dimension=0),
    ),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
)
_SHARED = shared_rows(_BLOCK + "shared_experts.")
_PREDICTION = {
    r"model\.mtp_(block|emb_norm|hidden_norm|linear_proj)\..*": (
        "layers that predict further tokens, which llama.cpp does not compute for this family"
    )
}


@dataclass(frozen=True)
class _Dense:
    use_bias: Truth = False


def ernie(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a dense ERNIE 4.5."""
    return _dense("ernie4_5", {"head_dim": 128, **config}, where)


def _dense(name: str, config: Mapping[str, Any], where: str) -> Architecture:
    # transformers' defaults.
    stated = {"rope_theta": 500000.0, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, **config}
    c = read_decoder(stated, where)
    rope = read_rope(stated, where, ("linear", "dynamic", "yarn"))
    ArchitectureError.raise_any(
        fixed(read_config(_Dense, config, where), {"use_bias": False}, where)
    )
    return Architecture(
        name=name,
        keys=decoder_keys(name, c, rope, c.n_per_head),
        rows=WEIGHTS,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
    )


@dataclass(frozen=True)
class _Experts:
    """With transformers' defaults."""

    moe_intermediate_size: Count = 1536
    moe_k: Count = 6
    moe_num_experts: ExpertsCount = 64
    moe_num_shared_experts: Natural = 2
    moe_layer_start_index: Natural = 1
    moe_layer_end_index: int = -1
    moe_layer_interval: Count = 1


def ernie_moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an ERNIE 4.5 with experts; the weights of the chosen ones sum to one."""
    name = "ernie4_5-moe"
    dense = _dense(name, config, where)
    e = read_config(_Experts, config, where)
    n, n_dense = dense.n_layers, min(e.moe_layer_start_index, dense.n_layers)
    ArchitectureError.raise_any(_problems(e, n, where))
    n_shared = e.moe_intermediate_size * e.moe_num_shared_experts
    routing = Routing(
        e.moe_num_experts,
        e.moe_k,
        expert_ffn=e.moe_intermediate_size,
        shared_ffn=n_shared or None,
        n_shared=e.moe_num_shared_experts,
        n_leading_dense=n_dense,
    )
    return replace(
        dense,
        keys=renamed(dense.keys, name)
        | routing_keys(name, routing)
        | {f"{name}.interleave_moe_layer_step": u32(1)},
        rows=(
            *(*EMBEDDING, *ATTENTION),
            *on(range(n_dense), MLP),
            *on(range(n_dense, n), (*_EXPERTS, *(_SHARED if n_shared else ()))),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **dense.sizes,
            "experts": e.moe_num_experts,
            "expert_ffn": e.moe_intermediate_size,
            "shared_ffn": n_shared,
            "one": 1,
        },
        ignored={**dense.ignored, **_PREDICTION},
        n_experts=e.moe_num_experts,
    )


def _problems(e: _Experts, n_layers: int, where: str) -> Iterator[str]:
    yield from fixed(e, {"moe_layer_interval": 1}, where)
    if e.moe_layer_end_index not in (-1, n_layers - 1):
        yield (
            f"{where}: moe_layer_end_index is {e.moe_layer_end_index}; llama.cpp computes this"
            f" family with experts up to the last layer, {n_layers - 1}"
        )


_SETTINGS = Settings(
    read=DECODER | reads(_Dense),
    harmless=NO_WINDOW,
    only=constant(1.0, "compression_ratio") | constant(True, "use_rmsnorm"),
)
_ERNIE = Declared(ernie, _SETTINGS)
_LEAST = Only(
    (1e-12,), "llama.cpp does not limit the sum of the chosen experts' weights", refused=False
)
FAMILIES = {
    "Ernie4_5ForCausalLM": _ERNIE,
    "Ernie4_5_ForCausalLM": _ERNIE,
    "Ernie4_5_MoeForCausalLM": Declared(
        ernie_moe,
        replace(
            _SETTINGS,
            read=_SETTINGS.read | reads(_Experts),
            harmless=NO_WINDOW
            | harmless("of layers that predict further tokens", "num_nextn_predict_layers")
            | harmless("used while training only", "moe_capacity moe_gate moe_use_aux_free"),
            only={**_SETTINGS.only, "moe_norm_min": _LEAST},
        ),
    ),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return which layers of a GGUF have experts, and whether some are shared."""
    has_shared = bool(keys.number("expert_shared_feed_forward_length"))
    return {
        "moe_layer_start_index": keys.n_dense,
        "moe_num_shared_experts": int(has_shared),
    }


GRAPHS = {
    "ernie4_5": GGUFGraph("Ernie4_5ForCausalLM"),
    "ernie4_5-moe": GGUFGraph(
        "Ernie4_5_MoeForCausalLM", layers=_layers_of, optional=frozenset({"exp_probs_b.bias"})
    ),
}
