"""Command-R and Command-R7B: attention and MLP in parallel, after one norm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.attention.windows import layer_types, window_keys
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Positive, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    IGNORED,
    MLP,
    OUTPUT_NORM,
    TIED,
    Config,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import (
    DECODER,
    NO_WINDOW,
    TIED_ALWAYS,
    Declared,
    Settings,
    constant,
    harmless,
    reads,
)
from dynquant.errors import ArchitectureError
from dynquant.keys import f32, u32

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
# llama.cpp always uses the embedding as the output matrix.
_ROWS = (
    *EMBEDDING,
    *(row for row in ATTENTION if "post_attention" not in row.stored),
    *MLP,
    *OUTPUT_NORM,
)
_QK_NORMS = (
    Row(_LAYER + "self_attn.q_norm.weight", _OUT + "attn_q_norm.weight", "heads head"),
    Row(_LAYER + "self_attn.k_norm.weight", _OUT + "attn_k_norm.weight", "kv_heads head"),
)

LAYERS_WITH_QK_NORMS = 64
"""llama.cpp's command-r expects norms on Q and K from this number of layers on (Command-R+), and no
norms in smaller models."""

# transformers' defaults.
_DEFAULTS = {"rope_theta": 500000.0, "tie_word_embeddings": True}


@dataclass(frozen=True)
class _Cohere:
    logit_scale: Positive = 0.0625
    layer_norm_eps: Positive = 1e-5
    use_qk_norm: Truth = False
    sliding_window_pattern: Count = 4
    model_max_length: Count | None = None


def _read(config: Mapping[str, Any], where: str) -> tuple[Config, _Cohere]:
    own = read_config(_Cohere, config, where)
    c = read_decoder({**config, "rms_norm_eps": own.layer_norm_eps}, where)
    problems: list[str] = []
    if c.attention_bias:
        problems.append(
            f"{where}: attention_bias is true; llama.cpp computes this family without biases"
        )
    if c.num_attention_heads * c.n_per_head != c.hidden_size:
        problems.append(
            f"{where}: {c.num_attention_heads} heads of {c.n_per_head} weights do not add up to"
            f" hidden_size {c.hidden_size}, as llama.cpp assumes for this family"
        )
    ArchitectureError.raise_any(problems)
    return c, own


def command_r(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Command-R; its context length is `model_max_length` if there is one."""
    config = {**_DEFAULTS, **config}
    c, own = _read(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn"))
    if own.use_qk_norm != (c.num_hidden_layers >= LAYERS_WITH_QK_NORMS):
        raise ArchitectureError(
            f"{where}: use_qk_norm is {str(own.use_qk_norm).lower()} and num_hidden_layers"
            f" {c.num_hidden_layers}; llama.cpp's command-r has norms on Q and K if there are at"
            f" least {LAYERS_WITH_QK_NORMS} layers, else none"
        )
    keys = decoder_keys("command-r", c, rope, c.head_dim, layer_norm=True)
    keys["command-r.logit_scale"] = f32(own.logit_scale)
    if own.model_max_length is not None:
        keys["command-r.context_length"] = u32(own.model_max_length)
    return Architecture(
        name="command-r",
        keys=keys,
        rows=_ROWS + (_QK_NORMS if own.use_qk_norm else ()),
        sizes={**decoder_sizes(c), "heads": c.num_attention_heads, "kv_heads": c.n_head_kv},
        n_layers=c.num_hidden_layers,
        tied=TIED,
        ignored=IGNORED,
    )


def cohere2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Command-R7B or Command-A: every fourth layer has no window and no rope."""
    config = {"sliding_window": 4096, **_DEFAULTS, "rope_theta": 10000.0, **config}
    c, own = _read(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn"))
    slides = layer_types(config, c.num_hidden_layers, own.sliding_window_pattern, where)
    return Architecture(
        name="cohere2",
        keys=decoder_keys("cohere2", c, rope, c.head_dim, layer_norm=True)
        | {"cohere2.logit_scale": f32(own.logit_scale)}
        | window_keys("cohere2", config, slides, 4, where),
        rows=_ROWS,
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED,
        ignored=IGNORED,
    )


_READ = DECODER | reads(_Cohere)
_COHERE2 = Settings(
    read=_READ | {"sliding_window", "layer_types"},
    harmless=harmless("repeats sliding_window_pattern", "layer_switch order_of_interleaved_layers")
    | harmless("has no effect without a norm", "use_parallel_embedding")
    | harmless("the embedding is always the output matrix", "use_embedding_sharing"),
    only=TIED_ALWAYS
    | constant(1.0, "rotary_pct")
    | constant("rope_gptj", "position_embedding_type")
    | constant(True, "use_parallel_block use_gated_activation")
    | constant(False, "use_qk_norm"),
)
FAMILIES = {
    "CohereForCausalLM": Declared(
        command_r, Settings(read=_READ, harmless=NO_WINDOW, only=TIED_ALWAYS)
    ),
    "Cohere2ForCausalLM": Declared(cohere2, _COHERE2),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return whether the graph of a GGUF has norms of Q and K: by its number of layers."""
    return {"use_qk_norm": keys.n_layers >= 64}


GRAPHS = {
    "cohere2": GGUFGraph("Cohere2ForCausalLM"),
    "command-r": GGUFGraph("CohereForCausalLM", layers=_layers_of),
}
