"""Decoders with latent attention, and experts in all layers but the first (DeepSeek, Kimi, GLM).

Families differ in how scores become weights, and whether an indexer makes attention sparse.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.attention.indexer import Indexer, indexer_rows
from dynquant.arch.attention.latent import Latent, Layout
from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import (
    AheadCount,
    Count,
    ExpertsCount,
    Natural,
    Positive,
    Truth,
)
from dynquant.arch.decoder import (
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
from dynquant.arch.graph_limits import fixed, group_problems, other_epsilon
from dynquant.arch.mixtures.experts import (
    SIGMOID,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    score_bias_row,
    shared_rows,
)
from dynquant.arch.positions.rope import Rope, deviations, latent_scaling_keys, read_rope
from dynquant.arch.prediction import prediction_of, prediction_rows
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32

DEEPSEEK2 = "deepseek2"
_BLOCK = "model.layers.{}.mlp."

EXPERTS = (
    router_row(_BLOCK + "gate.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_BLOCK + "shared_experts."),
)
_CORRECTION = (score_bias_row(_BLOCK + "gate.e_score_correction_bias"),)


@dataclass(frozen=True)
class LatentDecoder:
    """config.json's settings of latent attention and of the experts."""

    kv_lora_rank: Count
    qk_nope_head_dim: Count
    qk_rope_head_dim: Count
    v_head_dim: Count
    n_routed_experts: ExpertsCount
    n_shared_experts: Count
    num_experts_per_tok: Count
    moe_intermediate_size: Count
    routed_scaling_factor: Positive = 1.0
    first_k_dense_replace: Natural = 0
    q_lora_rank: Count | None = None
    n_group: Count | None = None
    topk_group: Count | None = None
    norm_topk_prob: Truth = False
    moe_layer_freq: int = 1
    rope_interleave: Truth = True
    num_nextn_predict_layers: AheadCount = 1

    def latent(self, n_head: int) -> Latent:
        """Return the dimensions of latent attention."""
        return Latent(
            n_head=n_head,
            kv_rank=self.kv_lora_rank,
            q_rank=self.q_lora_rank,
            nope=self.qk_nope_head_dim,
            rope=self.qk_rope_head_dim,
            value=self.v_head_dim,
        )


@dataclass(frozen=True)
class Kind:
    """What a family has besides the settings of all.

    gating:    SOFTMAX or SIGMOID; only families with sigmoids predict further ahead
    name:      general.architecture
    indexer:   of sparse attention; None if attention reads all tokens
    indexed:   the layers that have an indexer; the others use the choice of the layer before
    scalings:  rope scalings that llama.cpp computes
    """

    gating: int
    name: str = DEEPSEEK2
    indexer: Indexer | None = None
    indexed: Collection[int] = ()
    scalings: tuple[str, ...] = ("dynamic", "yarn")


@dataclass(frozen=True)
class _Parts:
    """A config.json that has been read and checked."""

    decoder: Config
    rope: Rope
    settings: LatentDecoder
    latent: Latent
    kind: Kind

    @property
    def every_layer(self) -> range:
        """All layers, those that predict further ahead last."""
        n_ahead = self.settings.num_nextn_predict_layers if self.kind.gating == SIGMOID else 0
        return range(self.decoder.num_hidden_layers + n_ahead)

    @property
    def ahead(self) -> range:
        """The layers that predict further ahead."""
        return self.every_layer[self.decoder.num_hidden_layers :]

    @property
    def n_dense(self) -> int:
        """Layers without experts, which are the first."""
        return min(self.settings.first_k_dense_replace, self.decoder.num_hidden_layers)

    def rows(self, layout: Layout) -> tuple[Row, ...]:
        """Return the tensor table."""
        experts = EXPERTS + (_CORRECTION if self.kind.gating == SIGMOID else ())
        return (
            *EMBEDDING,
            *on(self.every_layer, self.latent.rows(layout)),
            *self._indexers,
            *on(self.every_layer[: self.n_dense], MLP),
            *on(self.every_layer[self.n_dense :], experts),
            *prediction_rows(self.ahead),
            *OUTPUT_NORM,
            *OUTPUT,
        )

    @property
    def _indexers(self) -> tuple[Row, ...]:
        if self.kind.indexer is None:
            return ()
        n = self.decoder.num_hidden_layers
        shared = len(self.kind.indexed) < n
        return indexer_rows(self.kind.indexed, self.ahead, optional=shared)

    def keys(self, layout: Layout, where: str) -> Keys:
        """Return the architecture's keys."""
        name = self.kind.name
        decoder = replace(self.decoder, num_key_value_heads=self.latent.n_head_kv(layout))
        unscaled = replace(self.rope, rope_type="default")
        return (
            decoder_keys(name, decoder, unscaled, None)
            | latent_scaling_keys(name, self.rope, where)
            | routing_keys(name, _routing(self.settings, self.kind.gating, self.n_dense))
            | {f"{name}.vocab_size": u32(self.decoder.vocab_size)}
            | self.latent.keys(name, layout)
            | (self.kind.indexer.keys(name) if self.kind.indexer else {})
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            **decoder_sizes(self.decoder),
            **self.latent.sizes,
            **(self.kind.indexer.sizes if self.kind.indexer else {}),
            "hidden_twice": 2 * self.decoder.hidden_size,
            "experts": self.settings.n_routed_experts,
            "expert_ffn": self.settings.moe_intermediate_size,
            "shared_ffn": self.settings.moe_intermediate_size * self.settings.n_shared_experts,
        }


def describe(
    config: Mapping[str, Any], settings: LatentDecoder, where: str, kind: Kind
) -> Architecture:
    """Describe a model of this kind; without an indexer, in both layouts of latent attention."""
    heads = {"head_dim": settings.qk_rope_head_dim, "num_key_value_heads": None}
    decoder = read_decoder({"rms_norm_eps": 1e-6, **config, **heads}, where)
    rope = read_rope(config, where, known=kind.scalings, approximated=("beta_fast", "beta_slow"))
    ArchitectureError.raise_any(_problems(decoder, settings, kind, where))
    latent = settings.latent(decoder.num_attention_heads)
    parts = _Parts(decoder, rope, settings, latent, kind)
    split = Architecture(
        name=kind.name,
        keys=parts.keys("split", where),
        rows=parts.rows("split"),
        sizes=parts.sizes,
        n_layers=decoder.num_hidden_layers,
        tied=TIED if decoder.tie_word_embeddings else None,
        ignored=IGNORED,
        n_experts=settings.n_routed_experts,
        prediction=prediction_of(kind.name, parts.ahead),
        deviations=(
            *deviations(rope, where),
            *other_epsilon(decoder, "the norms of latent attention", where),
        ),
    )
    if kind.indexer is not None:
        return split
    merged = replace(split, keys=parts.keys("merged", where), rows=parts.rows("merged"))
    return replace(split, merged=merged)


def _problems(c: Config, s: LatentDecoder, kind: Kind, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(s, {"moe_layer_freq": 1, "rope_interleave": True}, where)
    if kind.name == DEEPSEEK2:
        yield from lite_problems(c, s.q_lora_rank, where)
    if kind.indexer is not None and s.q_lora_rank is None:
        yield f"{where}: q_lora_rank is missing; the queries of the indexer are computed from it"
    if kind.indexer is not None and kind.indexer.index_head_dim < s.qk_rope_head_dim:
        yield (
            f"{where}: index_head_dim {kind.indexer.index_head_dim} is less than qk_rope_head_dim"
            f" {s.qk_rope_head_dim}; the rotated part must fit in a head of the indexer"
        )
    yield from group_problems(s.n_group or 1, s.topk_group or 1, s.n_routed_experts, where)


def is_lite(n_layers: int, n_vocab: int | None) -> bool:
    """Return whether llama.cpp takes a model for a Lite one, whose queries have no short vector."""
    return n_layers in (26, 27) or (n_layers, n_vocab) == (48, 128256)


def lite_problems(c: Config, q_rank: int | None, where: str) -> Iterator[str]:
    """Yield a message if llama.cpp takes a model for a Lite one and it has no q_proj."""
    if is_lite(c.num_hidden_layers, c.vocab_size) and q_rank is not None:
        yield (
            f"{where}: q_lora_rank is {q_rank}; llama.cpp expects models of"
            f" {c.num_hidden_layers} layers to have no q_lora_rank"
        )


def _routing(s: LatentDecoder, gating: int, n_leading_dense: int) -> Routing:
    return Routing(
        n_experts=s.n_routed_experts,
        n_used=s.num_experts_per_tok,
        expert_ffn=s.moe_intermediate_size,
        n_shared=s.n_shared_experts,
        weights_scale=s.routed_scaling_factor,
        weights_norm=s.norm_topk_prob or None,
        gating=gating,
        n_leading_dense=n_leading_dense,
    ).in_groups(s.n_group, s.topk_group)
