"""DeepSeek 2 and 3, Kimi-K2 and relatives: latent attention, and experts with a shared one beside.

Keys and values grow out of one short vector a token, by the matrix kv_b. llama.cpp wants it in two,
the keys' half turned for each head, so that scores come straight from the short vector (`split`);
it also runs files that have it whole (`merged`), at the cost of a cache of full keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row, Via, on
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
from dynquant.arch.prediction import prediction_of, prediction_rows
from dynquant.arch.rope import deviations, latent_scaling_keys, read_rope
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import rows_of_each, transposed

NAME = "deepseek2"
_IN, _OUT = "model.layers.{}.", "blk.{}."

BEFORE = (Row(_IN + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),)
Q_WHOLE = (Row(_IN + "self_attn.q_proj.weight", _OUT + "attn_q.weight", "q hidden"),)
Q_LATENT = (
    Row(_IN + "self_attn.q_a_proj.weight", _OUT + "attn_q_a.weight", "q_rank hidden"),
    Row(_IN + "self_attn.q_a_layernorm.weight", _OUT + "attn_q_a_norm.weight", "q_rank"),
    Row(_IN + "self_attn.q_b_proj.weight", _OUT + "attn_q_b.weight", "q q_rank"),
)
KV_LATENT = (
    Row(_IN + "self_attn.kv_a_proj_with_mqa.weight", _OUT + "attn_kv_a_mqa.weight", "kv_a hidden"),
    Row(_IN + "self_attn.kv_a_layernorm.weight", _OUT + "attn_kv_a_norm.weight", "kv_rank"),
)
KV_SPLIT = (
    Row(_IN + "self_attn.kv_b_proj.weight", _OUT + "attn_k_b.weight", "kv_b kv_rank"),
    Row(_IN + "self_attn.kv_b_proj.weight", _OUT + "attn_v_b.weight", "kv_b kv_rank"),
)
KV_MERGED = (Row(_IN + "self_attn.kv_b_proj.weight", _OUT + "attn_kv_b.weight", "kv_b kv_rank"),)
AFTER = (
    Row(_IN + "self_attn.o_proj.weight", _OUT + "attn_output.weight", "hidden v"),
    Row(_IN + "post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
)
EXPERTS = (
    router_row(_IN + "mlp.gate.weight"),
    *expert_rows(_IN + "mlp.", gate="gate_proj", up="up_proj", down="down_proj"),
    *shared_rows(_IN + "mlp.shared_experts."),
)
CORRECTION = (Row(_IN + "mlp.gate.e_score_correction_bias", _OUT + "exp_probs_b.bias", "experts"),)


@dataclass(frozen=True)
class _Latent:
    """What config.json says of latent attention and of the experts."""

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


# The rules by which each generation chooses experts: `scoring_func` and `topk_method`, which a
# config.json may leave out.
_RULES_2 = {"scoring_func": ("softmax",), "topk_method": ("greedy", "group_limited_greedy")}
_RULES_3 = {"scoring_func": ("sigmoid",), "topk_method": ("noaux_tc",)}


def deepseek2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V2: experts weighed by a softmax over all of them."""
    latent = read_config(_Latent, config, where)
    problems = list(_wrong_rules(config, _RULES_2, where))
    if latent.norm_topk_prob:
        problems.append(
            f"{where}: norm_topk_prob is true; DeepSeek-V2's own code then leaves"
            " routed_scaling_factor out, which llama.cpp does not"
        )
    ArchitectureError.raise_any(problems)
    # Greedy routing knows no groups, whatever n_group says.
    if config.get("topk_method", "greedy") == "greedy":
        latent = replace(latent, n_group=None, topk_group=None)
    found = _latent_attention(config, latent, where, SOFTMAX)
    if f"{NAME}.expert_group_count" not in found.keys:
        return found
    said = (
        f"{where}: topk_method 'group_limited_greedy' ranks groups of experts by their best one,"
        " llama.cpp by the sum of their two best: some tokens go to other experts"
    )
    return replace(found, deviations=(*found.deviations, said))


def deepseek3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a DeepSeek-V3, R1 or Kimi-K2: experts weighed by sigmoids, chosen with a bias.

    A config.json without `scoring_func` still means the sigmoid: the class knows no other.
    """
    # What transformers takes where config.json leaves a key out.
    said = {"n_group": 8, "topk_group": 4, "norm_topk_prob": True, "routed_scaling_factor": 2.5}
    present = {key: value for key, value in config.items() if value is not None}
    latent = read_config(_Latent, {**said, **present}, where)
    ArchitectureError.raise_any(_wrong_rules(config, _RULES_3, where))
    return _latent_attention(config, latent, where, SIGMOID)


def _wrong_rules(
    config: Mapping[str, Any], known: Mapping[str, tuple[str, ...]], where: str
) -> Iterator[str]:
    for key, rules in known.items():
        if config.get(key) not in (None, *rules):
            yield (
                f"{where}: {key} is {config[key]!r}; llama.cpp routes this family by"
                f" {' or '.join(map(repr, rules))}"
            )


def _latent_attention(
    config: Mapping[str, Any], latent: _Latent, where: str, gating: int
) -> Architecture:
    n_per_head = latent.qk_nope_head_dim + latent.qk_rope_head_dim
    heads = {"head_dim": latent.qk_rope_head_dim, "num_key_value_heads": None}
    c = read_decoder({"rms_norm_eps": 1e-6, **config, **heads}, where)
    rope = read_rope(
        config, where, known=("dynamic", "yarn"), approximated=("beta_fast", "beta_slow")
    )
    ArchitectureError.raise_any(_problems(c, latent, where))
    n_layers, dense = c.num_hidden_layers, min(latent.first_k_dense_replace, c.num_hidden_layers)
    n_ahead = latent.num_nextn_predict_layers if gating == SIGMOID else 0
    everywhere = range(n_layers + n_ahead)
    ahead = everywhere[n_layers:]
    q_rows = Q_WHOLE if latent.q_lora_rank is None else Q_LATENT
    ffn = on(everywhere[:dense], MLP) + on(
        everywhere[dense:], EXPERTS + (CORRECTION if gating == SIGMOID else ())
    )

    def rows(kv_b: tuple[Row, ...]) -> tuple[Row, ...]:
        attention = on(everywhere, BEFORE + q_rows + KV_LATENT + kv_b + AFTER)
        return (
            *(*EMBEDDING, *attention, *ffn, *prediction_rows(ahead)),
            *(*OUTPUT_NORM, *OUTPUT),
        )

    def keys(heads: Keys, n_head_kv: int) -> Keys:
        return (
            decoder_keys(
                NAME,
                replace(c, num_key_value_heads=n_head_kv),
                replace(rope, rope_type="default"),
                None,
            )
            | latent_scaling_keys(NAME, rope, where)
            | routing_keys(NAME, _routing(latent, gating, dense))
            | {f"{NAME}.vocab_size": u32(c.vocab_size)}
            | {f"{NAME}.{name}": value for name, value in heads.items()}
        )

    common = {
        "rope.dimension_count": u32(latent.qk_rope_head_dim),
        "attention.q_lora_rank": u32(latent.q_lora_rank or 0),
        "attention.kv_lora_rank": u32(latent.kv_lora_rank),
    }
    split = Architecture(
        name=NAME,
        # To the runtime, split attention is one head of keys as long as the short vector.
        keys=keys(
            {
                **common,
                "attention.key_length": u32(latent.kv_lora_rank + latent.qk_rope_head_dim),
                "attention.value_length": u32(latent.kv_lora_rank),
                "attention.key_length_mla": u32(n_per_head),
                "attention.value_length_mla": u32(latent.v_head_dim),
            },
            n_head_kv=1,
        ),
        rows=rows(KV_SPLIT),
        sizes=_sizes(c, latent),
        n_layers=n_layers,
        tied=TIED if c.tie_word_embeddings else None,
        via=_halves(latent.qk_nope_head_dim, latent.v_head_dim),
        ignored=IGNORED,
        n_experts=latent.n_routed_experts,
        prediction=prediction_of(NAME, ahead),
        deviations=deviations(rope, where),
    )
    merged = replace(
        split,
        keys=keys(
            {
                **common,
                "attention.key_length": u32(n_per_head),
                "attention.value_length": u32(latent.v_head_dim),
            },
            n_head_kv=c.num_attention_heads,
        ),
        rows=rows(KV_MERGED),
    )
    return replace(split, merged=merged)


def _problems(c: Config, latent: _Latent, where: str) -> Iterator[str]:
    for key, found, fixed in (
        ("attention_bias", c.attention_bias, False),
        ("mlp_bias", c.mlp_bias, False),
        ("moe_layer_freq", latent.moe_layer_freq, 1),
        ("rope_interleave", latent.rope_interleave, True),
    ):
        if found != fixed:
            yield f"{where}: {key} is {found}; llama.cpp computes this family with {fixed}"
    if latent.num_experts_per_tok > latent.n_routed_experts:
        yield (
            f"{where}: num_experts_per_tok {latent.num_experts_per_tok} of n_routed_experts"
            f" {latent.n_routed_experts}"
        )
    # The same test as in llama.cpp, which then looks for q_proj.
    lite = c.num_hidden_layers in (26, 27) or (c.num_hidden_layers, c.vocab_size) == (48, 128256)
    if lite and latent.q_lora_rank is not None:
        yield (
            f"{where}: q_lora_rank is {latent.q_lora_rank}; llama.cpp takes models of"
            f" {c.num_hidden_layers} layers to have none"
        )
    groups, used = latent.n_group or 1, latent.topk_group or 1
    if groups > 1 and (
        used > groups or latent.n_routed_experts % groups or latent.n_routed_experts < 2 * groups
    ):
        yield (
            f"{where}: n_group {groups} and topk_group {used} do not share out"
            f" {latent.n_routed_experts} experts, two or more to a group"
        )


def _routing(latent: _Latent, gating: int, n_leading_dense: int) -> Routing:
    # llama.cpp refuses groups that are all used; they limit nothing.
    limits = bool(latent.n_group and latent.topk_group and latent.topk_group < latent.n_group)
    return Routing(
        n_experts=latent.n_routed_experts,
        n_used=latent.num_experts_per_tok,
        expert_ffn=latent.moe_intermediate_size,
        n_shared=latent.n_shared_experts,
        weights_scale=latent.routed_scaling_factor,
        weights_norm=latent.norm_topk_prob or None,
        gating=gating,
        n_groups=latent.n_group if limits else None,
        n_groups_used=latent.topk_group if limits else None,
        n_leading_dense=n_leading_dense,
    )


def _sizes(c: Config, latent: _Latent) -> dict[str, int]:
    n_head, nope, rope = c.num_attention_heads, latent.qk_nope_head_dim, latent.qk_rope_head_dim
    return {
        **decoder_sizes(c),
        "q": n_head * (nope + rope),
        "q_rank": latent.q_lora_rank or 0,
        "kv_a": latent.kv_lora_rank + rope,
        "kv_rank": latent.kv_lora_rank,
        "kv_b": n_head * (nope + latent.v_head_dim),
        "v": n_head * latent.v_head_dim,
        "hidden_twice": 2 * c.hidden_size,
        "experts": latent.n_routed_experts,
        "expert_ffn": latent.moe_intermediate_size,
        "shared_ffn": latent.moe_intermediate_size * latent.n_shared_experts,
    }


def _halves(n_key: int, n_value: int) -> dict[str, Via]:
    """Return how kv_b, for each head n_key rows of keys before n_value of values, is split."""

    def keys(source: TensorSource) -> TensorSource:
        return transposed(rows_of_each(source, 0, n_key, each=n_key + n_value))

    def values(source: TensorSource) -> TensorSource:
        return rows_of_each(source, n_key, n_key + n_value, each=n_key + n_value)

    return {"attn_k_b": keys, "attn_v_b": values}


FAMILIES = {
    "DeepseekV2ForCausalLM": deepseek2,
    "DeepseekV3ForCausalLM": deepseek3,
    "KimiK2ForCausalLM": deepseek3,
}
