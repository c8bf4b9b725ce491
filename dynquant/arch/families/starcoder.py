"""StarCoder2: norms that subtract the mean, biases everywhere, an MLP without a gate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.attention.windows import window_left_out
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Positive, Truth, read_config
from dynquant.arch.decoder import (
    ATTENTION,
    EMBEDDING,
    GELU,
    IGNORED,
    O_BIAS,
    OUTPUT,
    OUTPUT_NORM,
    QKV_BIASES,
    TIED,
    decoder_keys,
    decoder_sizes,
    read_decoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError

_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_BIASES = (
    Row(_LAYER + "input_layernorm.bias", _OUT + "attn_norm.bias", "hidden"),
    *QKV_BIASES,
    *O_BIAS,
    Row(_LAYER + "post_attention_layernorm.bias", _OUT + "ffn_norm.bias", "hidden"),
)
_MLP = (
    Row(_LAYER + "mlp.c_fc.weight", _OUT + "ffn_up.weight", "ffn hidden"),
    Row(_LAYER + "mlp.c_fc.bias", _OUT + "ffn_up.bias", "ffn"),
    Row(_LAYER + "mlp.c_proj.weight", _OUT + "ffn_down.weight", "hidden ffn"),
    Row(_LAYER + "mlp.c_proj.bias", _OUT + "ffn_down.bias", "hidden"),
)
_OUTPUT_NORM = (*OUTPUT_NORM, Row("model.norm.bias", "output_norm.bias", "hidden"))


@dataclass(frozen=True)
class _Starcoder2:
    norm_epsilon: Positive = 1e-5
    use_bias: Truth = True


def starcoder2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a StarCoder2; llama.cpp's graph has no sliding window."""
    own = read_config(_Starcoder2, config, where)
    # transformers' defaults.
    config = {"tie_word_embeddings": True, "hidden_act": GELU[0], **config}
    c = read_decoder({**config, "rms_norm_eps": own.norm_epsilon}, where, activation=GELU)
    rope = read_rope(config, where, known=("linear", "dynamic", "yarn"))
    problems: list[str] = []
    if not own.use_bias:
        problems.append(f"{where}: use_bias is false; llama.cpp's starcoder2 needs biases")
    if c.num_attention_heads * c.n_per_head != c.hidden_size:
        problems.append(
            f"{where}: {c.num_attention_heads} heads of {c.n_per_head} weights do not add up to"
            f" hidden_size {c.hidden_size}, as llama.cpp's starcoder2 assumes"
        )
    ArchitectureError.raise_any(problems)
    return Architecture(
        name="starcoder2",
        keys=decoder_keys("starcoder2", c, rope, c.head_dim, layer_norm=True),
        rows=(*EMBEDDING, *ATTENTION, *_BIASES, *_MLP, *_OUTPUT_NORM, *OUTPUT),
        sizes=decoder_sizes(c),
        n_layers=c.num_hidden_layers,
        tied=TIED if c.tie_word_embeddings else None,
        ignored=IGNORED,
        deviations=window_left_out(config, where),
    )


FAMILIES = {
    "Starcoder2ForCausalLM": Declared(
        starcoder2,
        Settings(
            read=DECODER | reads(_Starcoder2, more="sliding_window"),
            harmless=harmless(
                "rounding only", "attention_softmax_in_fp32 scale_attention_softmax_in_fp32"
            ),
            only=constant("layer_norm", "norm_type")
            | constant("default", "mlp_type")
            | constant(True, "scale_attn_weights"),
        ),
    )
}
GRAPHS = {
    "starcoder2": GGUFGraph("Starcoder2ForCausalLM"),
}
