"""K-EXAONE: windows with rope, full attention without it, experts as in DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.attention.windows import window_keys
from dynquant.arch.base import Architecture, ModelTensor, Prediction, on
from dynquant.arch.config import AheadCount, Count, ExpertsCount, Positive, Truth, read_config
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
from dynquant.arch.families.exaone4 import Windows
from dynquant.arch.families.qwen3_next import AHEAD
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.mixtures.dense_layers import n_leading_dense
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
from dynquant.arch.positions.rope import llama3_factors, read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import booleans, u32
from dynquant.tensors import Computed

NAME = "exaone-moe"
_MLP = "model.layers.{}.mlp."
_BIAS = "e_score_correction_bias"
_EXPERTS = (
    router_row(_MLP + "gate.weight"),
    score_bias_row(_MLP + _BIAS, f"{_MLP}gate.{_BIAS}"),
    *expert_rows(_MLP, gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_MLP + "shared_experts."),
)
_PATTERN = 4
"""llama.cpp's default: all layers have a window but every fourth."""

_WITH_FACTORS = {
    r"(.*\.)?mtp\..*": (
        "the prediction layer, which llama.cpp does not compute; it does not load a file with this"
        " layer and rope factors"
    )
}


@dataclass(frozen=True)
class _Exaone:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count = 1024
    num_shared_experts: Count = 1
    routed_scaling_factor: Positive = 2.5
    norm_topk_prob: Truth = True
    n_group: Count = 1
    topk_group: Count = 1
    num_nextn_predict_layers: AheadCount = 0

    def problems(self, c: Config, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        yield from fixed(c, {"attention_bias": False}, where)
        yield from output_apart(c, where)
        if self.num_nextn_predict_layers > 1:
            yield (
                f"{where}: num_nextn_predict_layers is {self.num_nextn_predict_layers}; llama.cpp"
                " has one layer of this family"
            )


def exaonemoe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a K-EXAONE; llama.cpp loads its prediction layer, and does not use it."""
    config = {"sliding_window": 4096, **config}
    windows = read_config(Windows, config, where)
    own = read_config(_Exaone, with_expert_count(config), where)
    c = read_decoder(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn", "llama3"))
    ArchitectureError.raise_any((*windows.pattern_problems(where), *own.problems(c, where)))
    n, slides = c.num_hidden_layers, windows.slides()
    n_dense = n_leading_dense(_with_dense(config), where)
    routing = Routing(
        own.num_experts,
        own.num_experts_per_tok,
        expert_ffn=own.moe_intermediate_size,
        shared_ffn=own.moe_intermediate_size * own.num_shared_experts,
        n_shared=own.num_shared_experts,
        weights_scale=own.routed_scaling_factor,
        weights_norm=own.norm_topk_prob,
        gating=SIGMOID,
        n_groups=own.n_group,
        n_groups_used=own.topk_group,
        n_leading_dense=n_dense,
    )
    extra: tuple[ModelTensor, ...] = ()
    ahead = Prediction(
        range(n, n + 1),
        {f"{NAME}.block_count": u32(n + 1), f"{NAME}.nextn_predict_layers": u32(1)},
    )
    ignored = IGNORED
    if rope.rope_type == "llama3":
        extra = (ModelTensor("rope_freqs.weight", Computed(llama3_factors(rope, c.n_per_head))),)
        ahead, ignored = None, {**IGNORED, **_WITH_FACTORS}
    layer = (*ATTENTION, *QK_NORMS)
    as_ahead = (row.within("model.layers.{}.", "mtp.layers.0.") for row in (*layer, *MLP))
    sizes = decoder_sizes(c)
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head)
        | window_keys(NAME, config, slides, _PATTERN, where)
        | {f"{NAME}.attention.sliding_window_pattern": booleans(slides)}
        | routing_keys(NAME, routing)
        | {f"{NAME}.vocab_size": u32(c.vocab_size)},
        rows=(
            *EMBEDDING,
            *on(range(n), layer),
            *on(range(n_dense), MLP),
            *on(range(n_dense, n), _EXPERTS),
            *(on([n], (*AHEAD, *as_ahead)) if ahead else ()),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **sizes,
            "experts": own.num_experts,
            "expert_ffn": own.moe_intermediate_size,
            "shared_ffn": own.moe_intermediate_size * own.num_shared_experts,
            "hidden_twice": 2 * c.hidden_size,
        },
        n_layers=n,
        tied=None,
        extra=extra,
        ignored=ignored,
        n_experts=own.num_experts,
        prediction=ahead,
    )


def _with_dense(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json with the number of dense layers under the name of transformers."""
    older = config.get("first_last_k_dense_replace")
    is_stated = config.get("first_k_dense_replace") is not None
    return config if is_stated or older is None else {**config, "first_k_dense_replace": older}


_EXAONE_MOE = Declared(
    exaonemoe,
    Settings(
        read=DECODER
        | reads(_Exaone, Windows)
        | {"mlp_layer_types", "first_k_dense_replace", "first_last_k_dense_replace"}
        | {"num_local_experts", "n_routed_experts"},
        harmless=harmless("the prediction layer is found by its tensors", "mtp_share_layers")
        | harmless("the dense layers are the first", "is_moe_layer"),
        only={
            **constant("noaux_tc", "topk_method"),
            **constant("sigmoid", "scoring_func"),
        },
    ),
)
FAMILIES = {"ExaoneMoeForCausalLM": _EXAONE_MOE, "ExaoneMoEForCausalLM": _EXAONE_MOE}
GRAPHS = {
    "exaone-moe": GGUFGraph("ExaoneMoeForCausalLM"),
}
