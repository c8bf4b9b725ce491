"""GPT-2 and StarCoder 1: learned positions, and biases everywhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row, with_bias
from dynquant.arch.config import Count, Truth, read_config
from dynquant.arch.decoder import OUTPUT, Config, decoder_keys
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.older_decoders import fused_sizes, heads_apart, read_early
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.transforms import transposed

_IN, _OUT = "transformer.h.{}.", "blk.{}."
_EMBEDDINGS = (
    Row("transformer.wte.weight", "token_embd.weight", "vocab hidden"),
    Row("transformer.wpe.weight", "position_embd.weight", "positions hidden"),
)
# Stored and GGUF name, rows and columns.
_MATRICES = (
    ("attn.c_attn", "attn_qkv", "qkv", "hidden"),
    ("attn.c_proj", "attn_output", "hidden", "hidden"),
    ("mlp.c_fc", "ffn_up", "ffn", "hidden"),
    ("mlp.c_proj", "ffn_down", "hidden", "ffn"),
)
_NORMS = (
    *with_bias(_IN + "ln_1", _OUT + "attn_norm", "hidden"),
    *with_bias(_IN + "ln_2", _OUT + "ffn_norm", "hidden"),
)
_OUTPUT = (*with_bias("transformer.ln_f", "output_norm", "hidden"), *OUTPUT)
_TIED = ("lm_head.weight", "transformer.wte.weight")

_NAMES = {
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_positions": "max_position_embeddings",
    "activation_function": "hidden_act",
    "layer_norm_epsilon": "rms_norm_eps",
}
# transformers' defaults.
_DEFAULTS = {"hidden_act": "gelu_new", "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def _linear() -> Iterator[Row]:
    """Yield matrices whose rows are outputs, and their biases."""
    for stored, name, n_out, n_in in _MATRICES:
        yield from with_bias(_IN + stored, _OUT + name, n_out, n_in)


def _conv1d() -> Iterator[Row]:
    """Yield matrices whose rows are inputs (`Conv1D` in transformers), and their biases."""
    for stored, name, n_out, n_in in _MATRICES:
        at, to = _IN + stored, _OUT + name
        yield Row(f"{at}.weight", f"{to}.weight", f"{n_in} {n_out}", via=transposed)
        yield Row(f"{at}.bias", f"{to}.bias", n_out)


def _describe(name: str, c: Config, matrices: Iterator[Row]) -> Architecture:
    return Architecture(
        name=name,
        keys=decoder_keys(name, c, None, None, layer_norm=True),
        rows=(*_EMBEDDINGS, *_NORMS, *matrices, *_OUTPUT),
        sizes=fused_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=_TIED if c.tie_word_embeddings else None,
    )


def gpt2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GPT-2: learned positions, matrices that are stored transposed."""
    c = read_early({**config, "num_key_value_heads": None}, where, _NAMES, _DEFAULTS)
    return _describe("gpt2", c, _conv1d())


@dataclass(frozen=True)
class _BigCode:
    multi_query: Truth = True
    num_key_value_heads: Count | None = None


def starcoder(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a StarCoder 1 or SantaCoder: a GPT-2 whose heads share one K and V."""
    own = read_config(_BigCode, config, where)
    heads = {"num_key_value_heads": 1 if own.multi_query else None}
    c = read_early({**config, **heads}, where, _NAMES, _DEFAULTS)
    if own.num_key_value_heads not in (None, c.n_head_kv):
        raise ArchitectureError(
            f"{where}: num_key_value_heads is {own.num_key_value_heads}, but multi_query implies"
            f" {c.n_head_kv}; take both from one model"
        )
    found = _describe("starcoder", c, _linear())
    # With one K and V there is one group of heads, which is in order already.
    return found if own.multi_query else replace(found, via=heads_apart(c))


_READ = frozenset({*_NAMES, *_NAMES.values(), "vocab_size", "tie_word_embeddings"})
_HARMLESS = (
    harmless(
        "rounding only",
        "reorder_and_upcast_attn attention_softmax_in_fp32 scale_attention_softmax_in_fp32",
    )
    | harmless("repeats n_positions", "n_ctx")
    | harmless("how the model is computed", "output_past")
    | harmless(
        "of a head that summarizes, which the file leaves out",
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type"
        " summary_use_proj",
    )
)
_FIXED = constant(True, "scale_attn_weights") | constant(False, "add_cross_attention")
FAMILIES = {
    "GPT2LMHeadModel": Declared(
        gpt2,
        Settings(
            read=_READ,
            harmless=_HARMLESS,
            only=_FIXED | constant(False, "scale_attn_by_inverse_layer_idx"),
        ),
    ),
    "GPTBigCodeForCausalLM": Declared(
        starcoder,
        Settings(
            read=_READ | reads(_BigCode),
            harmless=_HARMLESS
            | harmless(
                "how the model's own code computes the same results",
                "inference_runner max_batch_size max_sequence_length pad_key_length"
                " pre_allocate_kv_cache validate_runner_input",
            ),
            only=_FIXED,
        ),
    ),
}
GRAPHS = {
    "gpt2": GGUFGraph("GPT2LMHeadModel", qkv_bias=True, fused=()),
    "starcoder": GGUFGraph(
        "GPTBigCodeForCausalLM", settings={"num_key_value_heads": None}, qkv_bias=True, fused=()
    ),
}
