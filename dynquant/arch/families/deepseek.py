"""DeepSeek 2 and 3, Kimi-K2 and relatives: latent attention, routed experts and shared experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row, on
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
from dynquant.arch.experts import (
    SIGMOID,
    SOFTMAX,
    Routing,
    expert_rows,
    router_row,
    routing_keys,
    shared_rows,
)
from dynquant.arch.graph_limits import fixed, other_epsilon
from dynquant.arch.latent_attention import Latent, Layout
from dynquant.arch.prediction import prediction_of, prediction_rows
from dynquant.arch.rope import Rope, deviations, latent_scaling_keys, read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32

NAME = "deepseek2"
_BLOCK = "model.layers.{}.mlp."

EXPERTS = (
    router_row(_BLOCK + "gate.weight"),
    *expert_rows(_BLOCK, gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_BLOCK + "shared_experts."),
)
_CORRECTION = (Row(_BLOCK + "gate.e_score_correction_bias", "blk.{}.exp_probs_b.bias", "experts"),)


@dataclass(frozen=True)
class _Settings:
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


# How each generation chooses experts. A config.json may omit both keys.
_RULES_2 = {"scoring_func": ("softmax",), "topk_method": ("greedy", "group_limited_greedy")}
_RULES_3 = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}


def deepseek2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V2: a softmax over all experts gives their weights."""
    settings = read_config(_Settings, config, where)
    problems = list(_wrong_rules(config, _RULES_2, where))
    if settings.norm_topk_prob:
        problems.append(
            f"{where}: norm_topk_prob is true; DeepSeek-V2's own code then ignores"
            " routed_scaling_factor, but llama.cpp applies it"
        )
    ArchitectureError.raise_any(problems)
    # Greedy routing has no groups, whatever n_group is.
    if config.get("topk_method", "greedy") == "greedy":
        settings = replace(settings, n_group=None, topk_group=None)
    found = _describe(config, settings, where, SOFTMAX)
    if f"{NAME}.expert_group_count" not in found.keys:
        return found
    warning = (
        f"{where}: topk_method 'group_limited_greedy' ranks groups of experts by their best expert,"
        " llama.cpp by the sum of their two best: some tokens are routed to other experts"
    )
    return replace(found, deviations=(*found.deviations, warning))


def deepseek3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V3, R1 or Kimi-K2: sigmoid scores, a bias added to choose the experts.

    Without `scoring_func` in config.json the scores are sigmoids too: the class has no others.
    """
    # transformers' defaults.
    defaults = {"n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    present = {key: value for key, value in config.items() if value is not None}
    settings = read_config(_Settings, {**defaults, **present}, where)
    ArchitectureError.raise_any(_wrong_rules(config, _RULES_3, where))
    return _describe(config, settings, where, SIGMOID)


def softmax_mixture(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a relative whose experts a softmax weights and groups limit, as in DeepSeek-V3."""
    return _describe(config, read_config(_Settings, config, where), where, SOFTMAX)


def _wrong_rules(
    config: Mapping[str, Any], known: Mapping[str, tuple[str, ...]], where: str
) -> Iterator[str]:
    for key, rules in known.items():
        if config.get(key) not in (None, *rules):
            yield (
                f"{where}: {key} is {config[key]!r}; llama.cpp routes this family by"
                f" {' or '.join(map(repr, rules))}"
            )


@dataclass(frozen=True)
class _Parts:
    """A config.json that has been read and checked; gating: SOFTMAX or SIGMOID."""

    decoder: Config
    rope: Rope
    settings: _Settings
    latent: Latent
    gating: int

    @property
    def every_layer(self) -> range:
        """All layers, those that predict further ahead last."""
        n_ahead = self.settings.num_nextn_predict_layers if self.gating == SIGMOID else 0
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
        experts = EXPERTS + (_CORRECTION if self.gating == SIGMOID else ())
        return (
            *EMBEDDING,
            *on(self.every_layer, self.latent.rows(layout)),
            *on(self.every_layer[: self.n_dense], MLP),
            *on(self.every_layer[self.n_dense :], experts),
            *prediction_rows(self.ahead),
            *OUTPUT_NORM,
            *OUTPUT,
        )

    def keys(self, layout: Layout, where: str) -> Keys:
        """Return the architecture's keys."""
        decoder = replace(self.decoder, num_key_value_heads=self.latent.n_head_kv(layout))
        unscaled = replace(self.rope, rope_type="default")
        return (
            decoder_keys(NAME, decoder, unscaled, None)
            | latent_scaling_keys(NAME, self.rope, where)
            | routing_keys(NAME, _routing(self.settings, self.gating, self.n_dense))
            | {f"{NAME}.vocab_size": u32(self.decoder.vocab_size)}
            | self.latent.keys(NAME, layout)
        )

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            **decoder_sizes(self.decoder),
            **self.latent.sizes,
            "hidden_twice": 2 * self.decoder.hidden_size,
            "experts": self.settings.n_routed_experts,
            "expert_ffn": self.settings.moe_intermediate_size,
            "shared_ffn": self.settings.moe_intermediate_size * self.settings.n_shared_experts,
        }


def _describe(
    config: Mapping[str, Any], settings: _Settings, where: str, gating: int
) -> Architecture:
    heads = {"head_dim": settings.qk_rope_head_dim, "num_key_value_heads": None}
    decoder = read_decoder({"rms_norm_eps": 1e-6, **config, **heads}, where)
    rope = read_rope(
        config, where, known=("dynamic", "yarn"), approximated=("beta_fast", "beta_slow")
    )
    ArchitectureError.raise_any(_problems(decoder, settings, where))
    latent = settings.latent(decoder.num_attention_heads)
    parts = _Parts(decoder, rope, settings, latent, gating)
    split = Architecture(
        name=NAME,
        keys=parts.keys("split", where),
        rows=parts.rows("split"),
        sizes=parts.sizes,
        n_layers=decoder.num_hidden_layers,
        tied=TIED if decoder.tie_word_embeddings else None,
        ignored=IGNORED,
        n_experts=settings.n_routed_experts,
        prediction=prediction_of(NAME, parts.ahead),
        deviations=(
            *deviations(rope, where),
            *other_epsilon(decoder, "the norms of latent attention", where),
        ),
    )
    merged = replace(split, keys=parts.keys("merged", where), rows=parts.rows("merged"))
    return replace(split, merged=merged)


def _problems(c: Config, s: _Settings, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(s, {"moe_layer_freq": 1, "rope_interleave": True}, where)
    # llama.cpp recognises the Lite models by the same test, and then expects q_proj.
    lite = c.num_hidden_layers in (26, 27) or (c.num_hidden_layers, c.vocab_size) == (48, 128256)
    if lite and s.q_lora_rank is not None:
        yield (
            f"{where}: q_lora_rank is {s.q_lora_rank}; llama.cpp expects models of"
            f" {c.num_hidden_layers} layers to have no q_lora_rank"
        )
    groups, used = s.n_group or 1, s.topk_group or 1
    if groups > 1 and (
        used > groups or s.n_routed_experts % groups or s.n_routed_experts < 2 * groups
    ):
        yield (
            f"{where}: n_group {groups} and topk_group {used} do not fit {s.n_routed_experts}"
            " experts; llama.cpp needs equal groups of at least two experts, and no more groups"
            " used than there are"
        )


def _routing(s: _Settings, gating: int, n_leading_dense: int) -> Routing:
    # llama.cpp rejects groups if all of them are used; they have no effect then.
    limits = bool(s.n_group and s.topk_group and s.topk_group < s.n_group)
    return Routing(
        n_experts=s.n_routed_experts,
        n_used=s.num_experts_per_tok,
        expert_ffn=s.moe_intermediate_size,
        n_shared=s.n_shared_experts,
        weights_scale=s.routed_scaling_factor,
        weights_norm=s.norm_topk_prob or None,
        gating=gating,
        n_groups=s.n_group if limits else None,
        n_groups_used=s.topk_group if limits else None,
        n_leading_dense=n_leading_dense,
    )


READ = DECODER | reads(_Settings, more="scoring_func topk_method num_local_experts num_experts")
HARMLESS = (
    NO_WINDOW
    | harmless("latent attention has as many heads of K as of Q", "num_key_value_heads")
    | harmless("qk_rope_head_dim is rotated", "head_dim")
    | harmless("the sum of qk_nope_head_dim and qk_rope_head_dim", "qk_head_dim")
    | harmless("checkpoints state num_nextn_predict_layers", "num_mtp_layers")
)
_DEEPSEEK3 = Declared(deepseek3, Settings(read=READ, harmless=HARMLESS))
FAMILIES = {
    "DeepseekV2ForCausalLM": Declared(
        deepseek2,
        Settings(
            read=READ,
            harmless=HARMLESS
            | harmless("its own code predicts no further", "num_nextn_predict_layers"),
        ),
    ),
    "DeepseekV3ForCausalLM": _DEEPSEEK3,
    "KimiK2ForCausalLM": _DEEPSEEK3,
}
