"""Laguna: heads, windows and ropes that differ by layer, gated attention, sigmoid experts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from dynquant.arch.attention.windows import window_keys
from dynquant.arch.base import Architecture, Form, Row, on
from dynquant.arch.config import Count, ExpertsCount, Positive, read_config, without_nulls
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT,
    OUTPUT_NORM,
    QK_NORMS,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed
from dynquant.arch.mixtures.dense_layers import DenseLayers, n_leading_dense
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
from dynquant.arch.positions.rope import Rope, deviations, read_rope, ropes_by_kind
from dynquant.arch.settings import (
    DECODER,
    OF_POSITIONS,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, booleans, f32, i32s, u32

NAME = "laguna"
_MLP = "model.layers.{}.mlp."
_GATE = Row("model.layers.{}.self_attn.g_proj.weight", "blk.{}.attn_gate.weight", "gate hidden")
_EXPERTS = (
    router_row(_MLP + "gate.weight"),
    score_bias_row(_MLP + "experts.e_score_correction_bias", _MLP + "gate.e_score_correction_bias"),
    *expert_rows(_MLP, gate="gate_proj", up="up_proj", down="down_proj"),
    # Transformers 5 names them in the plural.
    *(
        replace(row, forms=(Form(row.stored.replace("expert.", "experts."), row.shape),))
        for row in shared_rows(_MLP + "shared_expert.")
    ),
)
_ROPES = {
    "full_attention": {"rope_theta": 500000.0, "partial_rotary_factor": 0.5},
    "sliding_attention": {"rope_theta": 10000.0},
}
"""transformers' defaults."""

_BETAS = ("beta_fast", "beta_slow", "truncate")
"""Settings of YaRN in place of which llama.cpp's graph has constants."""


@dataclass(frozen=True)
class _Laguna:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    num_experts: ExpertsCount
    num_experts_per_tok: Count = 8
    moe_intermediate_size: Count = 512
    shared_expert_intermediate_size: Count = 512
    moe_routed_scaling_factor: Positive = 1.0
    sliding_window: Count = 512
    gating: bool | str = True
    num_attention_heads_per_layer: tuple[Count, ...] | None = None
    layer_types: tuple[str, ...] | None = None

    def heads(self, c: Config) -> list[int]:
        """Return the number of query heads of each layer."""
        stated = self.num_attention_heads_per_layer
        return list(stated or [c.num_attention_heads] * c.num_hidden_layers)

    @property
    def is_per_head(self) -> bool:
        """Whether a gate is one number for each head, as all others are for each element."""
        return self.gating in (True, "per-head", "per_head")

    def problems(self, c: Config, rotated: Iterable[int], where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        yield from fixed(c, {"attention_bias": False}, where)
        heads = self.heads(c)
        if len(heads) != c.num_hidden_layers:
            yield (
                f"{where}: num_attention_heads_per_layer has {len(heads)} entries for"
                f" num_hidden_layers {c.num_hidden_layers}; take both from one model"
            )
        if wrong := sorted({n for n in heads if n % c.n_head_kv}):
            yield (
                f"{where}: num_attention_heads_per_layer has {wrong[0]}, which is not a multiple of"
                f" num_key_value_heads {c.n_head_kv}"
            )
        if any(n % 2 for n in rotated):
            yield f"{where}: partial_rotary_factor rotates an odd number of weights of a head"


def laguna(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Laguna: dense layers first, then routed experts and one that all tokens use."""
    present = without_nulls(config)
    full, windowed = ropes_by_kind(present, where, _ROPES)
    own = read_config(_Laguna, with_expert_count(present), where)
    c = read_decoder(present, where, head_dim=128)
    rope = read_rope(full, where, ("linear", "yarn"), _BETAS, partial=1.0)
    local = read_rope(windowed, where, (), partial=1.0)
    rotated = [int(c.n_per_head * r.partial_rotary_factor) for r in (rope, local)]
    ArchitectureError.raise_any(own.problems(c, rotated, where))
    n, heads = c.num_hidden_layers, own.heads(c)
    n_dense = n_leading_dense(present, where)
    slides = tuple(kind == "sliding_attention" for kind in own.layer_types or ("",) * n)
    routing = Routing(
        own.num_experts,
        own.num_experts_per_tok,
        expert_ffn=own.moe_intermediate_size,
        shared_ffn=own.shared_expert_intermediate_size,
        weights_scale=own.moe_routed_scaling_factor,
        weights_norm=True,
        gating=SIGMOID,
        n_leading_dense=n_dense,
    )
    attention = (*(r for r in ATTENTION if "layernorm" not in r.stored), *QK_NORMS, _GATE)
    norms = tuple(r for r in ATTENTION if "layernorm" in r.stored)
    sizes = {
        **decoder_sizes(c),
        "experts": own.num_experts,
        "expert_ffn": own.moe_intermediate_size,
        "shared_ffn": own.shared_expert_intermediate_size,
    }
    for count in set(heads):
        sizes[f"q{count}"] = count * c.n_per_head
        sizes[f"gate{count}"] = count if own.is_per_head else count * c.n_per_head
    return Architecture(
        name=NAME,
        keys=decoder_keys(NAME, c, rope, c.n_per_head)
        | {f"{NAME}.rope.dimension_count": u32(rotated[0])}
        | {f"{NAME}.attention.head_count": i32s(heads) if len(set(heads)) > 1 else u32(heads[0])}
        | (
            _window_keys({**present, "sliding_window": own.sliding_window}, slides, local, where)
            | {f"{NAME}.rope.dimension_count_swa": u32(rotated[1])}
            if any(slides)
            else {}
        )
        | routing_keys(NAME, routing),
        rows=(
            *EMBEDDING,
            *norms,
            *chain.from_iterable(
                on([i for i in range(n) if heads[i] == count], _of_width(attention, count))
                for count in sorted(set(heads))
            ),
            *on(range(n_dense), MLP),
            *on(range(n_dense, n), _EXPERTS),
            *(*OUTPUT_NORM, *OUTPUT),
        ),
        sizes=sizes,
        n_layers=n,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        n_experts=own.num_experts,
        deviations=deviations(replace(rope, partial_rotary_factor=1.0), where),
    )


def _of_width(rows: Iterable[Row], n_heads: int) -> Iterator[Row]:
    """Yield rows of attention whose dimensions `q` and `gate` are those of so many heads."""
    for row in rows:
        words = (f"{w}{n_heads}" if w in ("q", "gate") else w for w in row.shape.split())
        yield replace(row, shape=" ".join(words))


def _window_keys(
    config: Mapping[str, Any], slides: tuple[bool, ...], local: Rope, where: str
) -> Keys:
    """Return the keys of windows; without them llama.cpp's first of four layers has none."""
    return window_keys(NAME, config, slides, 4, where) | {
        f"{NAME}.attention.sliding_window_pattern": booleans(slides),
        f"{NAME}.rope.freq_base_swa": f32(local.rope_theta),
    }


FAMILIES = {
    "LagunaForCausalLM": Declared(
        laguna,
        Settings(
            read=(DECODER - {*OF_POSITIONS.split()})
            | reads(_Laguna, DenseLayers, more="num_local_experts n_routed_experts"),
            harmless={
                **harmless("the shapes of stored matrices show it", "gating_types"),
                **harmless("the model's own code reads rope_parameters only", OF_POSITIONS),
            },
            only={
                **constant(False, "moe_apply_router_weight_on_input"),
                **constant(0.0, "moe_router_logit_softcapping"),
            },
        ),
    ),
}
GRAPHS = {
    "laguna": GGUFGraph("LagunaForCausalLM"),
}
