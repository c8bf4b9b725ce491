"""LFM2 and LFM2.5: short convolutions in some layers, attention in the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from dynquant.arch.base import Architecture, Row, on
from dynquant.arch.config import Count, Positive, Truth, read_config, without_nulls
from dynquant.arch.decoder import (
    EMBEDDING,
    IGNORED,
    OUTPUT,
    TIED,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.graph_limits import fixed, heads_fill_hidden
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.arch.states.short_convolution import CONVOLUTION, LAYER_TYPES, VIA, Convolutions
from dynquant.errors import ArchitectureError
from dynquant.keys import u32

_IN, _OUT = "model.layers.{}.", "blk.{}."
_NORMS = (
    Row(_IN + "operator_norm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_IN + "ffn_norm.weight", _OUT + "ffn_norm.weight", "hidden"),
)
_ATTENTION = (
    Row(_IN + "self_attn.q_proj.weight", _OUT + "attn_q.weight", "q hidden"),
    Row(_IN + "self_attn.k_proj.weight", _OUT + "attn_k.weight", "kv hidden"),
    Row(_IN + "self_attn.v_proj.weight", _OUT + "attn_v.weight", "kv hidden"),
    Row(_IN + "self_attn.out_proj.weight", _OUT + "attn_output.weight", "hidden q"),
    Row(_IN + "self_attn.q_layernorm.weight", _OUT + "attn_q_norm.weight", "head"),
    Row(_IN + "self_attn.k_layernorm.weight", _OUT + "attn_k_norm.weight", "head"),
)
BLOCK = _IN + "feed_forward."
MLP = (
    Row(BLOCK + "w1.weight", _OUT + "ffn_gate.weight", "ffn hidden"),
    Row(BLOCK + "w3.weight", _OUT + "ffn_up.weight", "ffn hidden"),
    Row(BLOCK + "w2.weight", _OUT + "ffn_down.weight", "hidden ffn"),
)
# llama.cpp's name for the norm before the output matrix, which this family names after embeddings.
_LAST_NORM = (Row("model.embedding_norm.weight", "token_embd_norm.weight", "hidden"),)


@dataclass(frozen=True)
class _Own:
    """config.json's settings besides those of all decoders, with transformers' defaults."""

    norm_eps: Positive = 1e-5
    tie_embedding: Truth | None = None
    tie_word_embeddings: Truth = True

    @property
    def is_tied(self) -> bool:
        """Whether the embedding is the output matrix; the first name has precedence."""
        return self.tie_word_embeddings if self.tie_embedding is None else self.tie_embedding


@dataclass(frozen=True)
class _Width:
    """The width of the MLP, which is derived from the stated one, with transformers' defaults."""

    block_ff_dim: Count | None = None
    intermediate_size: Count = 12288
    block_auto_adjust_ff_dim: Truth = True
    block_ffn_dim_multiplier: Positive = 1.0
    block_multiple_of: Count = 256

    def n_ffn(self, *, is_rounded: bool) -> int:
        """Return the rows of the gate: two thirds of what is stated, rounded up to a multiple."""
        stated = self.block_ff_dim or self.intermediate_size
        if not self.block_auto_adjust_ff_dim:
            return stated
        part = int(2 * stated / 3)
        if not is_rounded:
            return part
        each = self.block_multiple_of
        return -(-int(self.block_ffn_dim_multiplier * part) // each) * each


def hybrid(name: str, config: Mapping[str, Any], where: str, n_ffn: int) -> Architecture:
    """Describe the layers, each with an MLP of this width."""
    own = read_config(_Own, config, where)
    mixed = read_config(Convolutions, config, where)
    present = without_nulls(config)
    completed: dict[str, Any] = {
        "rope_theta": 1e6,
        "max_position_embeddings": 128000,
        **present,
        "intermediate_size": n_ffn,
        "rms_norm_eps": own.norm_eps,
        "tie_word_embeddings": own.is_tied,
    }
    c = read_decoder(completed, where)
    rope = read_rope(completed, where, ("linear", "dynamic", "yarn"))
    ArchitectureError.raise_any(
        chain(
            mixed.problems(where),
            fixed(c, {"attention_bias": False}, where),
            heads_fill_hidden(c, where),
        )
    )
    return Architecture(
        name=name,
        keys=decoder_keys(name, c, rope, None)
        | mixed.keys(name, c.n_head_kv)
        | {f"{name}.vocab_size": u32(c.vocab_size)},
        rows=(
            *EMBEDDING,
            *_NORMS,
            *on(mixed.layers(attention=True), _ATTENTION),
            *on(mixed.layers(attention=False), CONVOLUTION),
            *MLP,
            *_LAST_NORM,
            *OUTPUT,
        ),
        sizes={**decoder_sizes(c), **mixed.sizes(c.hidden_size)},
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        via=VIA,
        ignored=IGNORED,
    )


def lfm2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a dense LFM2."""
    # Null is not the default here: without a multiplier transformers does not round.
    is_rounded = config.get("block_ffn_dim_multiplier", 1.0) is not None
    n_ffn = read_config(_Width, config, where).n_ffn(is_rounded=is_rounded)
    return hybrid("lfm2", config, where, n_ffn)


READ = (DECODER | reads(_Own, Convolutions)) - {"rms_norm_eps"}
HARMLESS = (
    NO_WINDOW
    | harmless(
        "repeats another setting",
        "block_dim block_norm_eps conv_dim conv_dim_out num_heads rms_norm_eps theta",
    )
    | harmless(
        "used while training only",
        "block_mlp_init_scale block_out_init_scale block_use_xavier_init conv_use_xavier_init",
    )
)
"""Settings that do not change the answer, with and without experts."""

ONLY = constant(False, "conv_bias") | constant(True, "use_pos_enc block_use_swiglu")
_LFM2 = Declared(
    lfm2,
    Settings(read=READ | reads(_Width), harmless=HARMLESS, only=ONLY, layer_types=LAYER_TYPES),
)
FAMILIES = {
    "Lfm2ForCausalLM": _LFM2,
    "LFM2ForCausalLM": _LFM2,  # spelling of the first checkpoints
}


def layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return the kinds of a GGUF's layers: those without heads of K are convolutions."""
    kinds = keys.kinds("attention.head_count_kv", "conv", "full_attention")
    return {"num_dense_layers": keys.n_dense, **({"layer_types": kinds} if kinds else {})}


GRAPHS = {
    "lfm2": GGUFGraph("Lfm2ForCausalLM", layers=layers_of),
}
