"""MiniCPM 1, 2 and 4, and MiniCPM3: three scales, and latent attention in the third."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.attention.latent import Latent
from dynquant.arch.base import Architecture, renamed
from dynquant.arch.config import Count, Positive, read_config, without_nulls
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
from dynquant.arch.families.llama import llama
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, other_epsilon
from dynquant.arch.positions.longrope import longrope_attention, longrope_tensors
from dynquant.arch.positions.rope import Rope, read_rope
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
from dynquant.keys import Keys, f32, string, u32

_SCALINGS = ("linear", "dynamic", "longrope")


@dataclass(frozen=True)
class _Scales:
    """Of the embedding, of what each block adds, and of the logits; defaults of the own class."""

    scale_emb: Positive = 1.0
    scale_depth: Positive = 1.0
    dim_model_base: Positive = 1.0


def minicpm(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a MiniCPM: a Llama with scales of the embedding, of each block and of the logits."""
    defaults = {"rms_norm_eps": 1e-6, "tie_word_embeddings": True}
    config = {**defaults, **config, "head_dim": None}  # their own code does not read head_dim
    dense = llama(config, where, _SCALINGS)
    c, rope = read_decoder(config, where), read_rope(config, where, _SCALINGS)
    scales = read_config(_Scales, config, where)
    keys = {
        "embedding_scale": scales.scale_emb,
        "residual_scale": scales.scale_depth / c.num_hidden_layers**0.5,
        "logit_scale": c.hidden_size / scales.dim_model_base,  # a divisor
    }
    return replace(
        dense,
        name="minicpm",
        keys=renamed(dense.keys, "minicpm")
        | {f"minicpm.{name}": f32(value) for name, value in keys.items()}
        | _longrope_keys("minicpm", c, rope),
        extra=longrope_tensors(rope, c.n_per_head, where),
        deviations=_sets_of_factors(c, rope, where),
    )


def _longrope_keys(arch: str, c: Config, rope: Rope) -> Keys:
    if rope.rope_type != "longrope":
        return {}
    keys = {
        "type": string("longrope"),
        "original_context_length": u32(rope.original_max_position_embeddings),
        "attn_factor": f32(longrope_attention(rope, c.max_position_embeddings)),
    }
    return {f"{arch}.rope.scaling.{name}": value for name, value in keys.items()}


def _sets_of_factors(c: Config, rope: Rope, where: str) -> tuple[str, ...]:
    """Return a warning if the own code uses the factors for long texts in short texts too."""
    original = rope.original_max_position_embeddings
    if rope.rope_type != "longrope" or c.max_position_embeddings <= original:
        return ()
    return (
        f"{where}: the model's own code rotates texts of any length by long_factor, because"
        f" max_position_embeddings is larger than {original}; llama.cpp uses short_factor if its"
        f" context has at most {original} tokens",
    )


@dataclass(frozen=True)
class _Third:
    """MiniCPM3's settings besides those of all decoders, with the defaults of transformers."""

    kv_lora_rank: Count = 256
    q_lora_rank: Count = 768
    qk_nope_head_dim: Count = 64
    qk_rope_head_dim: Count = 32
    v_head_dim: Count | None = None
    scale_emb: Positive = 12.0
    scale_depth: Positive = 1.4
    dim_model_base: Positive = 256.0


def minicpm3(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a MiniCPM3: latent attention; its scales are constants in llama.cpp."""
    own = read_config(_Third, config, where)
    defaults = {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    heads = {"head_dim": own.qk_rope_head_dim, "num_key_value_heads": None}
    c = read_decoder({**defaults, **without_nulls(config), **heads}, where)
    rope = read_rope(config, where, _SCALINGS)
    ArchitectureError.raise_any(_problems(c, own, where))
    latent = Latent(
        n_head=c.num_attention_heads,
        kv_rank=own.kv_lora_rank,
        q_rank=own.q_lora_rank,
        nope=own.qk_nope_head_dim,
        rope=own.qk_rope_head_dim,
        value=own.v_head_dim or c.hidden_size // c.num_attention_heads,
    )
    name = "minicpm3"
    return Architecture(
        name=name,
        keys=decoder_keys(name, c, rope, None)
        | {f"{name}.vocab_size": u32(c.vocab_size)}
        | latent.keys(name, "merged")
        | _longrope_keys(name, c, rope),
        rows=(*EMBEDDING, *latent.rows("merged"), *MLP, *OUTPUT_NORM, *OUTPUT),
        sizes={**decoder_sizes(c), **latent.sizes},
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        extra=longrope_tensors(rope, own.qk_rope_head_dim, where),
        ignored=IGNORED,
        deviations=other_epsilon(c, "the norms of latent attention", where),
    )


def _problems(c: Config, own: _Third, where: str) -> Iterator[str]:
    yield from fixed(c, {"attention_bias": False, "mlp_bias": False}, where)
    scales = {"scale_emb": 12.0, "scale_depth": 1.4, "dim_model_base": 256.0}
    yield from fixed(own, scales, where)


_HARMLESS = NO_WINDOW | harmless("the heads have hidden_size / num_attention_heads", "head_dim")
FAMILIES = {
    "MiniCPMForCausalLM": Declared(
        minicpm,
        Settings(
            read=(DECODER - {"head_dim", "attention_bias", "mlp_bias"}) | reads(_Scales),
            harmless=_HARMLESS
            | harmless("used while training only", "mup_denominator")
            | harmless("the family has no experts", "num_experts_per_tok"),
            only={
                **constant(False, "attention_bias mlp_bias"),
                "num_experts": Only((0, 1), "llama.cpp computes this family without experts"),
                "sparse_config": Only(
                    (),
                    "llama.cpp's attention has no sparse blocks: for long texts results differ"
                    " from the model's own code",
                    refused=False,
                ),
            },
        ),
    ),
    "MiniCPM3ForCausalLM": Declared(
        minicpm3,
        Settings(
            read=DECODER | reads(_Third),
            harmless=NO_WINDOW
            | harmless("latent attention has as many heads of K as of Q", "num_key_value_heads")
            | harmless("qk_rope_head_dim is rotated", "head_dim")
            | harmless("the sum of qk_nope_head_dim and qk_rope_head_dim", "qk_head_dim"),
        ),
    ),
}
GRAPHS = {
    "minicpm": GGUFGraph("MiniCPMForCausalLM", longrope=True),
    "minicpm3": GGUFGraph("MiniCPM3ForCausalLM", fused=(), longrope=True),
}
