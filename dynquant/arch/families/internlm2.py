"""InternLM2 and 2.5: Q, K and V in one matrix, in groups of the heads that share a head of K."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

from dynquant.arch.attention.fused import n_fused
from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Truth, read_config
from dynquant.arch.decoder import IGNORED, OUTPUT_NORM, decoder_keys, decoder_sizes, read_decoder
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.graph_limits import fixed, output_apart
from dynquant.arch.positions.rope import read_rope
from dynquant.arch.settings import DECODER, NO_WINDOW, Declared, Settings, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import TensorSource
from dynquant.transforms import interleaved_heads, parts_of_groups

_NAME = "internlm2"
_LAYER, _OUT = "model.layers.{}.", "blk.{}."
_FEED = _LAYER + "feed_forward."
_QKV = _LAYER + "attention.wqkv.weight"
_ROWS = (
    Row("model.tok_embeddings.weight", "token_embd.weight", "vocab hidden"),
    Row(_LAYER + "attention_norm.weight", _OUT + "attn_norm.weight", "hidden"),
    Row(_LAYER + "attention.wo.weight", _OUT + "attn_output.weight", "hidden q"),
    Row(_LAYER + "ffn_norm.weight", _OUT + "ffn_norm.weight", "hidden"),
    Row(_FEED + "w1.weight", _OUT + "ffn_gate.weight", "ffn hidden"),
    Row(_FEED + "w3.weight", _OUT + "ffn_up.weight", "ffn hidden"),
    Row(_FEED + "w2.weight", _OUT + "ffn_down.weight", "hidden ffn"),
    *OUTPUT_NORM,
    Row("output.weight", "output.weight", "vocab hidden"),
)


@dataclass(frozen=True)
class _Own:
    bias: Truth = True


def internlm2(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe an InternLM2: a Llama with fused attention and other names."""
    # The own class has these defaults, and no head_dim.
    config = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, **config, "head_dim": None}
    c = read_decoder(config, where)
    rope = read_rope(config, where, known=("linear", "dynamic"))
    own = read_config(_Own, config, where)
    ArchitectureError.raise_any(chain(output_apart(c, where), fixed(own, {"bias": False}, where)))
    d, n_kv = c.n_per_head, c.n_head_kv
    of_q = d * (c.num_attention_heads // n_kv)
    # A group: some heads of Q, then one of K, then one of V.
    parts = {
        "q": partial(_heads, n_groups=n_kv, part=(0, of_q), n_head=c.num_attention_heads),
        "k": partial(_heads, n_groups=n_kv, part=(of_q, of_q + d), n_head=n_kv),
        "v": partial(parts_of_groups, n_groups=n_kv, parts=[(of_q + d, of_q + 2 * d)]),
    }
    return Architecture(
        name=_NAME,
        keys=decoder_keys(_NAME, c, rope, d)
        | {
            f"{_NAME}.vocab_size": u32(c.vocab_size),
            f"{_NAME}.rope.dimension_count": u32(d),
        },
        rows=(
            *_ROWS,
            *(
                Row(_QKV, f"{_OUT}attn_{part}.weight", "qkv hidden", via=via)
                for part, via in parts.items()
            ),
        ),
        sizes={**decoder_sizes(c), "qkv": n_fused(c)},
        n_layers=c.num_hidden_layers,
        tied=None,
        ignored=IGNORED,
    )


def _heads(source: TensorSource, n_groups: int, part: tuple[int, int], n_head: int) -> TensorSource:
    """Return a part of each group, with interleaved rotary pairs."""
    return interleaved_heads(parts_of_groups(source, n_groups, [part]), n_head)


FAMILIES = {
    "InternLM2ForCausalLM": Declared(
        internlm2,
        Settings(
            read=(DECODER - {"head_dim", "attention_bias", "mlp_bias"}) | reads(_Own),
            harmless=NO_WINDOW
            | harmless("its class does not read it", "attention_bias mlp_bias head_dim"),
        ),
    ),
}
GRAPHS = {
    "internlm2": GGUFGraph("InternLM2ForCausalLM", settings={"bias": False}),
}
