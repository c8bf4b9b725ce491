"""Encoders of BERT's kind: rows that they share, config.json, keys and sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, boolean, f32, u32

EMBEDDINGS = (
    Row("model.embeddings.word_embeddings.weight", "token_embd.weight", "vocab hidden"),
    Row("model.embeddings.token_type_embeddings.weight", "token_types.weight", "types hidden"),
)
POSITIONS = (
    Row("model.embeddings.position_embeddings.weight", "position_embd.weight", "positions hidden"),
)


IGNORED = {
    r"(\w+\.)?embeddings\.position_ids": "the positions 0, 1, 2 …, which llama.cpp generates",
    r"(\w+\.)?pooler\..*": "for tasks other than embedding, which llama.cpp does not support",
    r"(cls|lm_head)\..*": "for predicting masked words, which llama.cpp does not support",
}


@dataclass(frozen=True)
class EncoderConfig:
    """config.json of an encoder, with the names and defaults of transformers."""

    vocab_size: Count
    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: LayersCount
    num_attention_heads: Count
    max_position_embeddings: Count
    type_vocab_size: Count = 2
    layer_norm_eps: Positive = 1e-12
    hidden_act: str = "gelu"
    position_embedding_type: str = "absolute"
    is_decoder: Truth = False


def read_encoder(
    config: Mapping[str, Any], where: str, activations: tuple[str, ...]
) -> EncoderConfig:
    """Return the config; raise ArchitectureError if llama.cpp's graph cannot compute it.

    activations: names of the activation in llama.cpp's graph of the family
    """
    c = read_config(EncoderConfig, config, where)
    ArchitectureError.raise_any(_problems(c, where, activations))
    return c


def _problems(c: EncoderConfig, where: str, activations: tuple[str, ...]) -> Iterator[str]:
    if c.hidden_act not in activations:
        yield (
            f"{where}: the activation is {c.hidden_act!r}; llama.cpp computes this family with"
            f" {activations[0]!r}"
        )
    if c.hidden_size % c.num_attention_heads:
        yield (
            f"{where}: hidden_size {c.hidden_size} is not a multiple of"
            f" num_attention_heads {c.num_attention_heads}"
        )
    if c.position_embedding_type != "absolute":
        yield (
            f"{where}: position_embedding_type is {c.position_embedding_type!r}; llama.cpp's bert"
            " supports only 'absolute'"
        )
    if c.is_decoder:
        yield f"{where}: is_decoder is true; in llama.cpp's bert every token attends to all others"


def describe_encoder(
    name: str, c: EncoderConfig, rows: tuple[Row, ...], more: Keys
) -> Architecture:
    """Return the description of an encoder; more: keys to change or add, without its name."""
    keys = {
        "block_count": u32(c.num_hidden_layers),
        "context_length": u32(c.max_position_embeddings),
        "embedding_length": u32(c.hidden_size),
        "feed_forward_length": u32(c.intermediate_size),
        "attention.head_count": u32(c.num_attention_heads),
        "attention.layer_norm_epsilon": f32(c.layer_norm_eps),
        "attention.causal": boolean(False),
    }
    return Architecture(
        name=name,
        keys={f"{name}.{key}": value for key, value in (keys | more).items()},
        rows=rows,
        sizes={
            "vocab": c.vocab_size,
            "hidden": c.hidden_size,
            "qkv": 3 * c.hidden_size,
            "ffn": c.intermediate_size,
            "positions": c.max_position_embeddings,
            "types": c.type_vocab_size,
        },
        n_layers=c.num_hidden_layers,
        tied=None,
        ignored=IGNORED,
    )
