"""Command-A-plus: attention and experts in parallel, after one norm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.attention.windows import window_keys
from dynquant.arch.base import Architecture, on
from dynquant.arch.config import (
    AheadCount,
    Count,
    ExpertsCount,
    Natural,
    Positive,
    Truth,
    read_config,
)
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GATE_UP, QKV, FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.dense_layers import n_leading_dense
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    SOFTMAX,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    shared_rows,
    with_expert_count,
)
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.prediction import prediction_of, prediction_rows
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import booleans, f32, u32

NAME = "cohere2moe"
_MLP = "model.layers.{}.mlp."
_ATTENTION = tuple(row for row in ATTENTION if "post_attention" not in row.stored)
_ROUTED = (
    router_row(_MLP + "gate.weight"),
    *expert_rows(_MLP, gate="gate_proj", up="up_proj", down="down_proj"),
)
_GATINGS = {"softmax": SOFTMAX, "sigmoid": SIGMOID}


@dataclass(frozen=True)
class _Cohere:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    num_hidden_layers: Count
    num_experts: ExpertsCount
    num_experts_per_tok: Count = 2
    num_shared_experts: Natural = 0
    shared_expert_combination_strategy: str = "average"
    expert_selection_fn: str = "softmax"
    norm_topk_prob: Truth = True
    prefix_dense_intermediate_size: Count | None = None
    prefix_dense_sliding_window_pattern: Count = 1
    sliding_window_pattern: Count = 4
    layer_types: tuple[str, ...] | None = None
    logit_scale: Positive = 0.0625
    layer_norm_eps: Positive = 1e-5
    rms_norm_eps: Positive | None = None
    num_nextn_predict_layers: AheadCount = 0
    first_k_dense_replace: Natural = 0

    def slides(self) -> tuple[bool, ...]:
        """Return which layers have a window; those after first_k_dense_replace restart.

        As in transformers, dense layers that mlp_layer_types states count with the others.
        """
        if self.layer_types is not None:
            return tuple(kind == "sliding_attention" for kind in self.layer_types)
        first, rest = self.prefix_dense_sliding_window_pattern, self.sliding_window_pattern
        n_dense = min(self.first_k_dense_replace, self.num_hidden_layers)
        return (
            *((layer + 1) % first != 0 for layer in range(n_dense)),
            *((layer + 1) % rest != 0 for layer in range(self.num_hidden_layers - n_dense)),
        )

    def problems(
        self, c: Config, n_dense: int, slides: tuple[bool, ...], where: str
    ) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        yield from fixed(c, {"attention_bias": False}, where)
        if self.expert_selection_fn not in _GATINGS:
            yield (
                f"{where}: expert_selection_fn is {self.expert_selection_fn!r}; llama.cpp computes"
                f" this family with {' or '.join(map(repr, _GATINGS))}"
            )
        if self.num_shared_experts:
            expected = {"shared_expert_combination_strategy": "average"}
            yield from fixed(self, expected, where)
        if self.prefix_dense_sliding_window_pattern != 1 and not all(slides[:n_dense]):
            yield (
                f"{where}: prefix_dense_sliding_window_pattern is"
                f" {self.prefix_dense_sliding_window_pattern}, so that dense layers without a"
                " window have no rotary embeddings; llama.cpp's have them"
            )
        if self.num_nextn_predict_layers > 1:
            yield (
                f"{where}: num_nextn_predict_layers is {self.num_nextn_predict_layers}; llama.cpp"
                " computes one layer of this family"
            )


def cohere2moe(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Command-A-plus; shared experts are averaged with the routed ones."""
    config = {"sliding_window": 4096, "tie_word_embeddings": True, **config}
    own = read_config(_Cohere, with_expert_count(config), where)
    epsilon = own.rms_norm_eps or own.layer_norm_eps
    c = read_decoder({**config, "rms_norm_eps": epsilon}, where, head_dim=128)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn"))
    n_dense = n_leading_dense(config, where, default=0)
    slides = own.slides()
    ArchitectureError.raise_any(own.problems(c, n_dense, slides, where))
    n, ffn = c.num_hidden_layers, c.intermediate_size
    is_softmax = own.expert_selection_fn == "softmax"
    routing = Routing(
        own.num_experts,
        own.num_experts_per_tok,
        expert_ffn=ffn,
        shared_ffn=ffn * own.num_shared_experts or None,
        n_shared=own.num_shared_experts or None,
        # The softmax is over the chosen experts: over all, and then normalized, it is the same.
        weights_norm=is_softmax or own.norm_topk_prob,
        gating=_GATINGS[own.expert_selection_fn],
        n_leading_dense=n_dense,
    )
    ahead = range(n, n + own.num_nextn_predict_layers)
    shared = shared_rows(_MLP + "shared_experts.") if own.num_shared_experts else ()
    next_rows = (
        replace(r, optional=r.optional or "shared_head" in r.name) for r in prediction_rows(ahead)
    )
    dense = own.prefix_dense_intermediate_size or ffn
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head, layer_norm=own.rms_norm_eps is None)
        | {f"{NAME}.feed_forward_length": u32(dense), f"{NAME}.logit_scale": f32(own.logit_scale)}
        | window_keys(NAME, config, slides, 4, where)
        | {f"{NAME}.attention.sliding_window_pattern": booleans(slides)}
        | routing_keys(NAME, routing),
        rows=(
            *EMBEDDING,
            *on(range(ahead.stop), _ATTENTION),
            *on(range(n_dense), MLP),
            *on(range(n_dense, ahead.stop), (*_ROUTED, *shared)),
            *next_rows,
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes={
            **decoder_sizes(c),
            "ffn": dense,
            "experts": own.num_experts,
            "expert_ffn": ffn,
            "shared_ffn": ffn * own.num_shared_experts,
            "hidden_twice": 2 * c.hidden_size,
        },
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        n_experts=own.num_experts,
        prediction=prediction_of(NAME, ahead),
    )


FAMILIES = {
    "Cohere2MoeForCausalLM": Declared(
        cohere2moe,
        Settings(
            read=DECODER
            | reads(_Cohere)
            | {"sliding_window", "mlp_layer_types", "first_k_dense_replace"}
            | {"num_local_experts", "n_routed_experts"},
            harmless=harmless(
                "repeats sliding_window_pattern", "layer_switch order_of_interleaved_layers"
            )
            | harmless("has no effect without a norm", "use_parallel_embedding")
            | harmless("tie_word_embeddings is read", "use_embedding_sharing"),
            only=constant(1.0, "rotary_pct")
            | constant("rope_gptj", "position_embedding_type")
            | constant(True, "use_parallel_block use_gated_activation")
            | constant(False, "use_qk_norm"),
        ),
    ),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return whether a GGUF's layers have shared experts."""
    return {"num_shared_experts": keys.number("expert_shared_count") or 0}


GRAPHS = {
    "cohere2moe": GGUFGraph("Cohere2MoeForCausalLM", layers=_layers_of, fused=(QKV, GATE_UP)),
}
