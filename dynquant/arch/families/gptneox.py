"""GPT-NeoX and Pythia: attention and MLP in parallel, after separate norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Form, Row, with_bias
from dynquant.arch.config import Positive, Truth, read_config
from dynquant.arch.decoder import IGNORED
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import output_apart
from dynquant.arch.older_decoders import ANY_GELU, fused_sizes, heads_apart
from dynquant.arch.positions.partial_rotation import partial_keys, read_partial
from dynquant.arch.settings import DECODER, Declared, Settings, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import boolean

_IN, _OUT = "gpt_neox.layers.{}.", "blk.{}."
_ROWS = (
    Row("gpt_neox.embed_in.weight", "token_embd.weight", "vocab hidden"),
    *with_bias(_IN + "input_layernorm", _OUT + "attn_norm", "hidden"),
    *with_bias(_IN + "attention.query_key_value", _OUT + "attn_qkv", "qkv", "hidden"),
    *with_bias(_IN + "attention.dense", _OUT + "attn_output", "hidden", "hidden"),
    *with_bias(_IN + "post_attention_layernorm", _OUT + "ffn_norm", "hidden"),
    *with_bias(_IN + "mlp.dense_h_to_4h", _OUT + "ffn_up", "ffn", "hidden"),
    *with_bias(_IN + "mlp.dense_4h_to_h", _OUT + "ffn_down", "hidden", "ffn"),
    *with_bias("gpt_neox.final_layer_norm", "output_norm", "hidden"),
    Row(
        "embed_out.weight",
        "output.weight",
        "vocab hidden",
        # transformers 5 has the usual name in memory.
        forms=(Form("lm_head.weight", "vocab hidden"),),
    ),
)
_ROPE = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
_NAMES = {**_ROPE, "layer_norm_eps": "rms_norm_eps"}


@dataclass(frozen=True)
class _NeoX:
    """transformers' defaults."""

    layer_norm_eps: Positive = 1e-5
    rotary_emb_base: Positive = 10000.0
    rotary_pct: Positive = 0.25
    use_parallel_residual: Truth = True
    attention_bias: Truth = True


def gptneox(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GPT-NeoX: Q, K and V of each head together, part of a head rotated."""
    own = read_config(_NeoX, config, where)
    usual = {
        "hidden_act": "gelu",
        **config,
        **{usual: getattr(own, name) for name, usual in _NAMES.items()},
        **{"num_key_value_heads": None, "head_dim": None},
    }
    c, rope = read_partial(usual, where, None, own.rotary_pct, ANY_GELU)
    problems = list(output_apart(c, where))
    if not own.attention_bias:
        problems.append(f"{where}: attention_bias is false; llama.cpp's gptneox needs biases")
    problems += [
        f"{where}: {usual_name} is {config[usual_name]}, but this family's own code uses {name}"
        f" ({getattr(rope, usual_name)}); remove {usual_name}, or make both equal"
        for name, usual_name in _ROPE.items()
        if config.get(usual_name) not in (None, getattr(rope, usual_name))
    ]
    ArchitectureError.raise_any(problems)
    return Architecture(
        name="gptneox",
        keys=partial_keys("gptneox", c, rope, layer_norm=True)
        | {"gptneox.use_parallel_residual": boolean(own.use_parallel_residual)},
        rows=_ROWS,
        sizes=fused_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=None,
        via=heads_apart(c),
        ignored=IGNORED,
    )


_SETTINGS = Settings(
    read=DECODER | reads(_NeoX),
    harmless=harmless("the model is always causal", "is_decoder"),
)
FAMILIES = {"GPTNeoXForCausalLM": Declared(gptneox, _SETTINGS)}
GRAPHS = {
    "gptneox": GGUFGraph("GPTNeoXForCausalLM", qkv_bias=True, fused=()),
}
