"""Falcon: attention and MLP in parallel; the 7B has one K and V, the 40B, 180B and 11B groups."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row, with_bias
from dynquant.arch.config import Count, Natural, Truth, read_config
from dynquant.arch.decoder import IGNORED, OUTPUT, decoder_keys
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.older_decoders import (
    fused_sizes,
    heads_apart,
    read_early,
    without_bias,
)
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import string

_IN, _OUT = "transformer.h.{}.", "blk.{}."
_EMBEDDING = Row("transformer.word_embeddings.weight", "token_embd.weight", "vocab hidden")
_ONE_NORM = with_bias(_IN + "input_layernorm", _OUT + "attn_norm", "hidden")
# In llama.cpp the first norm is always the MLP's, and that of attention too without a second one.
_TWO_NORMS = (
    *with_bias(_IN + "ln_mlp", _OUT + "attn_norm", "hidden"),
    *with_bias(_IN + "ln_attn", _OUT + "attn_norm_2", "hidden"),
)
_MATRICES = without_bias(
    (
        *with_bias(_IN + "self_attention.query_key_value", _OUT + "attn_qkv", "qkv", "hidden"),
        *with_bias(_IN + "self_attention.dense", _OUT + "attn_output", "hidden", "hidden"),
        *with_bias(_IN + "mlp.dense_h_to_4h", _OUT + "ffn_up", "ffn", "hidden"),
        *with_bias(_IN + "mlp.dense_4h_to_h", _OUT + "ffn_down", "hidden", "ffn"),
    )
)
_OUTPUT = (*with_bias("transformer.ln_f", "output_norm", "hidden"), *OUTPUT)

# Names in files of RWForCausalLM, before transformers had the class.
_OLD = {"n_embed": "hidden_size", "n_head": "num_attention_heads", "n_layer": "num_hidden_layers"}
_NAMES = {
    **_OLD,
    "activation": "hidden_act",
    "ffn_hidden_size": "intermediate_size",
    "layer_norm_epsilon": "rms_norm_eps",
}
# transformers' defaults.
_DEFAULTS = {
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class _Falcon:
    """transformers' defaults, and `n_head_kv`, the old name of `num_kv_heads`."""

    num_kv_heads: Count | None = None
    n_head_kv: Count | None = None
    new_decoder_architecture: Truth = False
    num_ln_in_parallel_attn: Natural | None = None
    multi_query: Truth = True


def falcon(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Falcon: fused Q, K and V by groups of heads, one norm or two for each layer."""
    is_old_40b = config.get("model_type") == "RefinedWeb"
    own = read_config(_Falcon, {"new_decoder_architecture": is_old_40b, **config}, where)
    stated = {**config, "num_key_value_heads": _kv_heads(own)}
    c = read_early(stated, where, _NAMES, _DEFAULTS)
    long = {"max_position_embeddings": c.max_position_embeddings, **config}
    rope = read_rope(long, where, ("linear", "dynamic", "yarn"))
    ArchitectureError.raise_any(_problems(own, where))
    has_two = own.new_decoder_architecture and own.num_ln_in_parallel_attn != 1
    return Architecture(
        name="falcon",
        keys=decoder_keys("falcon", c, rope, None, layer_norm=True)
        # The order of Q, K and V after `heads_apart`; files of early 2023 have another.
        | {"falcon.tensor_data_layout": string("jploski")},
        rows=(_EMBEDDING, *(_TWO_NORMS if has_two else _ONE_NORM), *_MATRICES, *_OUTPUT),
        sizes=fused_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=(OUTPUT[0].stored, _EMBEDDING.stored) if c.tie_word_embeddings else None,
        via=heads_apart(c),
        ignored=IGNORED,
    )


def _kv_heads(own: _Falcon) -> int | None:
    """Return the number of heads of K and V; None for as many as of Q."""
    if own.new_decoder_architecture:
        return own.num_kv_heads or own.n_head_kv
    return 1 if own.multi_query else None


def _problems(own: _Falcon, where: str) -> Iterator[str]:
    norms = own.num_ln_in_parallel_attn
    supported = (None, 1, 2) if own.new_decoder_architecture else (None, 0, 1)
    if norms not in supported:
        kind = "with" if own.new_decoder_architecture else "without"
        yield (
            f"{where}: num_ln_in_parallel_attn is {norms}; llama.cpp computes a Falcon {kind}"
            f" new_decoder_architecture with {' or '.join(str(n) for n in supported[1:])}"
        )


_SETTINGS = Settings(
    read=reads(_Falcon, more="vocab_size max_position_embeddings tie_word_embeddings rope_theta")
    | {*_NAMES, *_NAMES.values()},
    harmless=harmless("the stored tensors show it", "ff_factor"),
    only=constant(False, "alibi bias apply_residual_connection_post_layernorm")
    | constant(True, "parallel_attn"),
)
FAMILIES = dict.fromkeys(("FalconForCausalLM", "RWForCausalLM"), Declared(falcon, _SETTINGS))
GRAPHS = {
    "falcon": GGUFGraph("FalconForCausalLM", fused=()),
}
