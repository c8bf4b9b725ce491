"""The decoder common to Llama and its relatives: config.json, the tensor table and the keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from dynquant.arch.base import Row, Via
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config, without_nulls
from dynquant.arch.positions.rope import Rope, scaling_keys
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, boolean, f32, u32
from dynquant.transforms import interleaved_heads

_IN, _OUT = "model.layers.{}.", "blk.{}."

EMBEDDING = (Row("model.embed_tokens.weight", "token_embd.weight", "vocab hidden"),)
ATTENTION = (
    Row(_IN + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_IN + "self_attn.q_proj.weight", _OUT + "attn_q.weight", "q hidden"),
    Row(_IN + "self_attn.k_proj.weight", _OUT + "attn_k.weight", "kv hidden"),
    Row(_IN + "self_attn.v_proj.weight", _OUT + "attn_v.weight", "kv hidden"),
    Row(_IN + "self_attn.o_proj.weight", _OUT + "attn_output.weight", "hidden q"),
    Row(_IN + "post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
)
MLP = (
    Row(_IN + "mlp.gate_proj.weight", _OUT + "ffn_gate.weight", "ffn hidden"),
    Row(_IN + "mlp.up_proj.weight", _OUT + "ffn_up.weight", "ffn hidden"),
    Row(_IN + "mlp.down_proj.weight", _OUT + "ffn_down.weight", "hidden ffn"),
)
OUTPUT_NORM = (Row("model.norm.weight", "output_norm.weight", "hidden"),)
OUTPUT = (Row("lm_head.weight", "output.weight", "vocab hidden"),)
WEIGHTS = EMBEDDING + ATTENTION + MLP + OUTPUT_NORM + OUTPUT
QKV_BIASES = (
    Row(_IN + "self_attn.q_proj.bias", _OUT + "attn_q.bias", "q"),
    Row(_IN + "self_attn.k_proj.bias", _OUT + "attn_k.bias", "kv"),
    Row(_IN + "self_attn.v_proj.bias", _OUT + "attn_v.bias", "kv"),
)
O_BIAS = (Row(_IN + "self_attn.o_proj.bias", _OUT + "attn_output.bias", "hidden"),)
MLP_BIASES = (
    Row(_IN + "mlp.gate_proj.bias", _OUT + "ffn_gate.bias", "ffn"),
    Row(_IN + "mlp.up_proj.bias", _OUT + "ffn_up.bias", "ffn"),
    Row(_IN + "mlp.down_proj.bias", _OUT + "ffn_down.bias", "hidden"),
)
QK_NORMS = (
    Row(_IN + "self_attn.q_norm.weight", _OUT + "attn_q_norm.weight", "head"),
    Row(_IN + "self_attn.k_norm.weight", _OUT + "attn_k_norm.weight", "head"),
)
TIED = ("lm_head.weight", "model.embed_tokens.weight")
IGNORED = {
    r".*\brotary_emb\.inv_freq": "llama.cpp computes the rotary frequencies from the rope keys",
}


MAX_HEAD = 1 << 16
"""Limit on the weights of a head, half of which have a rope factor each; the widest have 512."""

SILU = ("silu", "swish")
GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
"""Names of one activation each in config.json; llama.cpp approximates GELU by its tanh form."""


@dataclass(frozen=True)
class Config:
    """config.json of a decoder, with the names and defaults of transformers."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: LayersCount
    num_attention_heads: Count
    max_position_embeddings: Count
    rms_norm_eps: Positive
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    hidden_act: str = "silu"
    attention_bias: Truth = False
    mlp_bias: Truth = False
    is_causal: Truth = True
    tie_word_embeddings: Truth = False

    @property
    def n_per_head(self) -> int:
        """Weights of a head: head_dim, else hidden_size divided by the number of heads."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def n_head_kv(self) -> int:
        """Heads of K and V: by default as many as of Q."""
        return self.num_key_value_heads or self.num_attention_heads


def read_decoder(
    config: Mapping[str, Any],
    where: str,
    head_dim: int | None = None,
    activation: tuple[str, ...] = SILU,
) -> Config:
    """Return the config; raise ArchitectureError if llama.cpp's graphs cannot compute it.

    head_dim:   the family's default
    activation: names of the activation in llama.cpp's graph of the family
    """
    present = without_nulls(config)
    c = read_config(Config, {"head_dim": head_dim, **present}, where)
    ArchitectureError.raise_any(_problems(c, where, activation))
    return c


def _problems(c: Config, where: str, activation: tuple[str, ...]) -> Iterator[str]:
    if c.hidden_act not in activation:
        yield (
            f"{where}: hidden_act is {c.hidden_act!r}; llama.cpp computes this family with"
            f" {activation[0]!r}"
        )
    if c.num_attention_heads % c.n_head_kv:
        yield (
            f"{where}: num_attention_heads {c.num_attention_heads} is not a multiple of"
            f" num_key_value_heads {c.n_head_kv}"
        )
    if c.head_dim is None and c.hidden_size % c.num_attention_heads:
        yield (
            f"{where}: hidden_size {c.hidden_size} is not a multiple of"
            f" num_attention_heads {c.num_attention_heads}, and head_dim is missing"
        )
    elif c.n_per_head > MAX_HEAD:
        yield f"{where}: heads of {c.n_per_head} weights; at most {MAX_HEAD} are supported"
    elif c.n_per_head % 2:
        yield f"{where}: heads have {c.n_per_head} weights; rotary embeddings need an even number"


def decoder_sizes(c: Config) -> dict[str, int]:
    """Return the dimensions that the tables above name."""
    return {
        "vocab": c.vocab_size,
        "hidden": c.hidden_size,
        "ffn": c.intermediate_size,
        "q": c.num_attention_heads * c.n_per_head,
        "kv": c.n_head_kv * c.n_per_head,
        "head": c.n_per_head,
    }


def decoder_keys(
    arch: str, c: Config, rope: Rope | None, head_dim: int | None, *, layer_norm: bool = False
) -> Keys:
    """Return the keys common to all decoders, in llama.cpp's order.

    rope:       None if positions are not rotations
    head_dim:   None if llama.cpp is to derive key_length and value_length from embedding_length
    layer_norm: whether norms subtract the mean; `rms_norm_eps` is their epsilon too
    """
    epsilon = "layer_norm_epsilon" if layer_norm else "layer_norm_rms_epsilon"
    keys = {
        "block_count": u32(c.num_hidden_layers),
        "context_length": u32(c.max_position_embeddings),
        "embedding_length": u32(c.hidden_size),
        "feed_forward_length": u32(c.intermediate_size),
        "attention.head_count": u32(c.num_attention_heads),
        "attention.head_count_kv": u32(c.n_head_kv),
        **({} if c.is_causal else {"attention.causal": boolean(False)}),
    }
    rest = {
        **({} if rope is None else {"rope.freq_base": f32(rope.rope_theta)}),
        f"attention.{epsilon}": f32(c.rms_norm_eps),
    }
    if head_dim is not None:
        rest |= {"attention.key_length": u32(head_dim), "attention.value_length": u32(head_dim)}
    return (
        {f"{arch}.{name}": value for name, value in keys.items()}
        | ({} if rope is None else scaling_keys(arch, rope))
        | {f"{arch}.{name}": value for name, value in rest.items()}
    )


def interleaved_pairs(c: Config, n_rotated: int | None = None) -> dict[str, Via]:
    """Return the transforms of Q and K for graphs that rotate neighbouring weights of a head.

    n_rotated: rotated weights of a head, which are its first; None for all
    """
    pairs = partial(interleaved_heads, n_rotated=n_rotated)
    return {
        "attn_q": partial(pairs, n_head=c.num_attention_heads),
        "attn_k": partial(pairs, n_head=c.n_head_kv),
    }
