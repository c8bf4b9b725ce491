"""BERT: an embedding model in which every token attends to all others, or a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.base import Architecture, with_bias
from dynquant.arch.classifier import with_classifier
from dynquant.arch.encoder import (
    EMBEDDINGS,
    POSITIONS,
    EncoderConfig,
    describe_encoder,
    read_encoder,
)
from dynquant.arch.gguf_files.graph import GGUFGraph
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads

_LAYER = "model.encoder.layer.{}."
BERT = (
    *EMBEDDINGS,
    *POSITIONS,
    *with_bias("model.embeddings.LayerNorm", "token_embd_norm", "hidden"),
    *with_bias(_LAYER + "attention.self.query", "blk.{}.attn_q", "hidden", "hidden"),
    *with_bias(_LAYER + "attention.self.key", "blk.{}.attn_k", "hidden", "hidden"),
    *with_bias(_LAYER + "attention.self.value", "blk.{}.attn_v", "hidden", "hidden"),
    *with_bias(_LAYER + "attention.output.dense", "blk.{}.attn_output", "hidden", "hidden"),
    *with_bias(_LAYER + "attention.output.LayerNorm", "blk.{}.attn_output_norm", "hidden"),
    *with_bias(_LAYER + "intermediate.dense", "blk.{}.ffn_up", "ffn", "hidden"),
    *with_bias(_LAYER + "output.dense", "blk.{}.ffn_down", "hidden", "ffn"),
    *with_bias(_LAYER + "output.LayerNorm", "blk.{}.layer_output_norm", "hidden"),
)


def bert(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a BERT; it has the exact GELU, which llama.cpp approximates by its tanh form."""
    return describe_encoder("bert", read_encoder(config, where, ("gelu",)), BERT, {})


def bert_classifier(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a BERT with a classifier: its pooler is the dense layer of llama.cpp's."""
    head = with_bias("model.pooler.dense", "cls", "hidden", "hidden")
    head += with_bias("classifier", "cls.output", "labels", "hidden")
    return with_classifier(bert(config, where), head, config, where)


BERT_SETTINGS = Settings(
    read=reads(EncoderConfig),
    harmless=harmless("an embedding model has no output matrix", "tie_word_embeddings")
    | harmless(
        "of the pooler, which the file leaves out",
        "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers"
        " pooler_size_per_head pooler_type",
    ),
    only=constant(False, "add_cross_attention"),
)
_BERT = Declared(bert, BERT_SETTINGS)
FAMILIES = {
    "BertModel": _BERT,
    "BertForMaskedLM": _BERT,
    "BertForSequenceClassification": Declared(bert_classifier, BERT_SETTINGS),
}
GRAPHS = {
    "bert": GGUFGraph(
        "BertModel",
        optional=frozenset(
            {"attn_output.bias", "ffn_down.bias", "ffn_up.bias", "token_types.weight"}
        ),
    ),
}
