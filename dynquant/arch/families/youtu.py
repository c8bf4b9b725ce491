"""Youtu-LLM: latent attention as in DeepSeek-V3, and no experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.attention.latent import Latent, Layout
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Truth, read_config, without_nulls
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
from dynquant.arch.families.deepseek import HARMLESS
from dynquant.arch.graph_limits import fixed, other_epsilon
from dynquant.arch.mixtures.latent_decoder import DEEPSEEK2, lite_problems
from dynquant.arch.positions.rope import Rope, deviations, latent_scaling_keys, read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, harmless, reads
from dynquant.arch.wrapped import Wrapped
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32


@dataclass(frozen=True)
class _Settings:
    """config.json's settings of latent attention, with the defaults of transformers.

    A missing q_lora_rank is 1536, and null means that queries have one matrix.
    """

    kv_lora_rank: Count = 512
    q_lora_rank: Count | None = None
    qk_nope_head_dim: Count = 128
    qk_rope_head_dim: Count = 64
    v_head_dim: Count = 128
    rope_interleave: Truth = True


def youtu(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Youtu-LLM: a DeepSeek-V3 whose layers are all dense."""
    s = read_config(_Settings, {"q_lora_rank": 1536, **config}, where)
    heads = {"head_dim": s.qk_rope_head_dim, "num_key_value_heads": None}
    defaults = {"rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    c = read_decoder({**defaults, **without_nulls(config), **heads}, where)
    rope = read_rope(
        config, where, known=("dynamic", "yarn"), approximated=("beta_fast", "beta_slow")
    )
    ArchitectureError.raise_any(_problems(c, s, where))
    latent = Latent(
        n_head=c.num_attention_heads,
        kv_rank=s.kv_lora_rank,
        q_rank=s.q_lora_rank,
        nope=s.qk_nope_head_dim,
        rope=s.qk_rope_head_dim,
        value=s.v_head_dim,
    )

    def rows(layout: Layout) -> tuple[Row, ...]:
        return (*EMBEDDING, *latent.rows(layout), *MLP, *OUTPUT_NORM, *OUTPUT)

    split = Architecture(
        name=DEEPSEEK2,
        keys=_keys(c, rope, latent, "split", where),
        rows=rows("split"),
        sizes={**decoder_sizes(c), **latent.sizes},
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        deviations=(
            *deviations(rope, where),
            *other_epsilon(c, "the norms of latent attention", where),
        ),
    )
    merged = replace(split, keys=_keys(c, rope, latent, "merged", where), rows=rows("merged"))
    return replace(split, merged=merged)


def _keys(c: Config, rope: Rope, latent: Latent, layout: Layout, where: str) -> Keys:
    c = replace(c, num_key_value_heads=latent.n_head_kv(layout))
    # llama.cpp requires the keys of experts in a model without experts too.
    own = {
        "leading_dense_block_count": c.num_hidden_layers,
        "vocab_size": c.vocab_size,
        "expert_feed_forward_length": c.intermediate_size,
        "expert_shared_count": 0,
    }
    return (
        decoder_keys(DEEPSEEK2, c, replace(rope, rope_type="default"), None)
        | latent_scaling_keys(DEEPSEEK2, rope, where)
        | {f"{DEEPSEEK2}.{name}": u32(value) for name, value in own.items()}
        | latent.keys(DEEPSEEK2, layout)
    )


def _problems(c: Config, s: _Settings, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    yield from fixed(s, {"rope_interleave": True}, where)
    yield from lite_problems(c, s.q_lora_rank, where)


_YOUTU = Declared(
    youtu,
    Settings(
        read=DECODER | reads(_Settings),
        harmless={k: v for k, v in HARMLESS.items() if k != "num_mtp_layers"}
        | harmless("used while training only", "embedding_initializer_range"),
    ),
)
FAMILIES = {
    "YoutuForCausalLM": _YOUTU,
    "YoutuVLForConditionalGeneration": Wrapped(_YOUTU),
}
