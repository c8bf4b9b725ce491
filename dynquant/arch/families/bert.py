"""BERT, RoBERTa and Nomic-BERT: embedding models, in which every token attends to all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Natural, Positive, Truth, read_config
from dynquant.arch.rope import read_rope
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, boolean, f32, strings, u32
from dynquant.transforms import rows_of_each
from dynquant.untrusted import shown

_EMBEDDINGS = (
    Row("model.embeddings.word_embeddings.weight", "token_embd.weight", "vocab hidden"),
    Row("model.embeddings.token_type_embeddings.weight", "token_types.weight", "types hidden"),
)
_POSITIONS = (
    Row("model.embeddings.position_embeddings.weight", "position_embd.weight", "positions hidden"),
)


def _both(stored: str, name: str, n_out: str, n_in: str | None = None) -> tuple[Row, Row]:
    """Return the rows of a matrix or norm and of its bias."""
    weight = n_out if n_in is None else f"{n_out} {n_in}"
    return Row(f"{stored}.weight", f"{name}.weight", weight), Row(
        f"{stored}.bias", f"{name}.bias", n_out
    )


_LAYER = "model.encoder.layer.{}."
_BERT = (
    *_EMBEDDINGS,
    *_POSITIONS,
    *_both("model.embeddings.LayerNorm", "token_embd_norm", "hidden"),
    *_both(_LAYER + "attention.self.query", "blk.{}.attn_q", "hidden", "hidden"),
    *_both(_LAYER + "attention.self.key", "blk.{}.attn_k", "hidden", "hidden"),
    *_both(_LAYER + "attention.self.value", "blk.{}.attn_v", "hidden", "hidden"),
    *_both(_LAYER + "attention.output.dense", "blk.{}.attn_output", "hidden", "hidden"),
    *_both(_LAYER + "attention.output.LayerNorm", "blk.{}.attn_output_norm", "hidden"),
    *_both(_LAYER + "intermediate.dense", "blk.{}.ffn_up", "ffn", "hidden"),
    *_both(_LAYER + "output.dense", "blk.{}.ffn_down", "hidden", "ffn"),
    *_both(_LAYER + "output.LayerNorm", "blk.{}.layer_output_norm", "hidden"),
)
_NOMIC_LAYER = "model.encoder.layers.{}."
_NOMIC = (
    *_EMBEDDINGS,
    *_both("model.emb_ln", "token_embd_norm", "hidden"),
    Row(_NOMIC_LAYER + "attn.Wqkv.weight", "blk.{}.attn_qkv.weight", "qkv hidden"),
    Row(_NOMIC_LAYER + "attn.out_proj.weight", "blk.{}.attn_output.weight", "hidden hidden"),
    *_both(_NOMIC_LAYER + "norm1", "blk.{}.attn_output_norm", "hidden"),
    Row(_NOMIC_LAYER + "mlp.fc11.weight", "blk.{}.ffn_up.weight", "ffn hidden"),
    Row(_NOMIC_LAYER + "mlp.fc12.weight", "blk.{}.ffn_gate.weight", "ffn hidden"),
    Row(_NOMIC_LAYER + "mlp.fc2.weight", "blk.{}.ffn_down.weight", "hidden ffn"),
    *_both(_NOMIC_LAYER + "norm2", "blk.{}.layer_output_norm", "hidden"),
)
_IGNORED = {
    r"(\w+\.)?embeddings\.position_ids": "the positions 0, 1, 2 …, which llama.cpp generates",
    r"(\w+\.)?pooler\..*": "for tasks other than embedding, which llama.cpp does not support",
    r"(cls|lm_head)\..*": "for predicting masked words, which llama.cpp does not support",
}


@dataclass(frozen=True)
class _Config:
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


def _read(config: Mapping[str, Any], where: str, activations: tuple[str, ...]) -> _Config:
    c = read_config(_Config, config, where)
    ArchitectureError.raise_any(_problems(c, where, activations))
    return c


def _problems(c: _Config, where: str, activations: tuple[str, ...]) -> Iterator[str]:
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


def _describe(name: str, c: _Config, rows: tuple[Row, ...], more: Keys) -> Architecture:
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
        ignored=_IGNORED,
    )


def bert(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a BERT; it has the exact GELU, which llama.cpp approximates by its tanh form."""
    return _describe("bert", _read(config, where, ("gelu",)), _BERT, {})


@dataclass(frozen=True)
class _Padding:
    pad_token_id: Natural = 1


def roberta(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a RoBERTa or XLM-RoBERTa: a BERT whose positions count from behind the padding.

    The first rows of its table of positions are never used, and llama.cpp counts from zero.
    """
    c = _read(config, where, ("gelu",))
    first = read_config(_Padding, config, where).pad_token_id + 1
    if first >= c.max_position_embeddings:
        raise ArchitectureError(
            f"{where}: pad_token_id {first - 1} leaves none of {c.max_position_embeddings}"
            " positions (max_position_embeddings)"
        )
    used = {"context_length": u32(c.max_position_embeddings - first)}
    found = _describe("bert", c, _BERT, used)
    cut = partial(rows_of_each, start=first, stop=c.max_position_embeddings)
    # Byte-level vocabularies do not state it.
    types = {"tokenizer.ggml.token_type_count": u32(c.type_vocab_size)}
    return replace(found, keys=found.keys | types, via={"position_embd": cut})


@dataclass(frozen=True)
class _Labels:
    """What a classifier tells apart; transformers has two labels if none is stated."""

    id2label: dict[str, str] | None = None
    num_labels: Count | None = None

    def names(self, where: str) -> list[str]:
        """Return the labels in the order of their numbers."""
        stated = self.id2label
        if stated is None:
            return [f"LABEL_{i}" for i in range(self.num_labels or 2)]
        if sorted(stated) != sorted(str(i) for i in range(len(stated))):
            raise ArchitectureError(
                f"{where}: id2label has labels {', '.join(map(shown, stated))}, not 0, 1, 2 …"
            )
        return [stated[str(i)] for i in range(len(stated))]


def _classifier(
    found: Architecture, head: tuple[Row, ...], config: Mapping[str, Any], where: str
) -> Architecture:
    """Return the model with a classifier of the first token: a reranker, if it has one label."""
    labels = read_config(_Labels, config, where).names(where)
    ignored = {k: v for k, v in found.ignored.items() if "pooler" not in k}
    return replace(
        found,
        keys=found.keys
        | {"bert.pooling_type": u32(_RANK), "bert.classifier.output_labels": strings(labels)},
        rows=found.rows + head,
        sizes={**found.sizes, "labels": len(labels)},
        ignored=ignored,
    )


_RANK = 4
"""LLAMA_POOLING_TYPE_RANK."""


def bert_classifier(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a BERT with a classifier: its pooler is the dense layer of llama.cpp's."""
    head = _both("model.pooler.dense", "cls", "hidden", "hidden")
    head += _both("classifier", "cls.output", "labels", "hidden")
    return _classifier(bert(config, where), head, config, where)


def roberta_classifier(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a RoBERTa or XLM-RoBERTa with a classifier of two layers."""
    head = _both("classifier.dense", "cls", "hidden", "hidden")
    head += _both("classifier.out_proj", "cls.output", "labels", "hidden")
    return _classifier(roberta(config, where), head, config, where)


# Names in Nomic's config.json, and in transformers.
_NOMIC_NAMES = {
    "n_embd": "hidden_size",
    "n_inner": "intermediate_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "layer_norm_epsilon": "layer_norm_eps",
    "activation_function": "hidden_act",
}
# Constants of llama.cpp's graph.
_NOMIC_FIXED: dict[str, object] = {
    "causal": False,
    "mlp_fc1_bias": False,
    "mlp_fc2_bias": False,
    "moe_every_n_layers": 0,
    "prenorm": False,
    "qkv_proj_bias": False,
    "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False,
    "rotary_emb_scale_base": None,
}


@dataclass(frozen=True)
class _Nomic:
    max_trained_positions: Count | None = None
    head_dim: Count | None = None


def nomic(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Nomic-BERT (v1, v1.5): rotary positions, fused Q, K and V, a gated MLP."""
    ArchitectureError.raise_any(
        f"{where}: {key} is {config[key]!r}; llama.cpp computes nomic-bert with {fixed!r}"
        for key, fixed in _NOMIC_FIXED.items()
        if config.get(key, fixed) not in (fixed, None)
    )
    renamed = {**config, **{n: config[o] for o, n in _NOMIC_NAMES.items() if o in config}}
    own = read_config(_Nomic, config, where)
    c = _read(renamed, where, ("swiglu", "silu"))
    theta = config.get("rotary_emb_base", config.get("rope_theta"))
    based = {**renamed, "rope_theta": 1000.0 if theta is None else theta}  # transformers' default
    rope = read_rope(based, where, known=("dynamic",))
    if own.head_dim not in (None, c.hidden_size // c.num_attention_heads):
        raise ArchitectureError(
            f"{where}: head_dim is {own.head_dim}; llama.cpp computes nomic-bert with"
            f" {c.hidden_size // c.num_attention_heads}, hidden_size divided by the heads"
        )
    # Longer contexts need a rope scaling that users set in the runtime.
    trained = min(c.max_position_embeddings, own.max_trained_positions or 2**31)
    more = {"rope.freq_base": f32(rope.rope_theta), "context_length": u32(trained)}
    return _describe("nomic-bert", c, _NOMIC, more)


_BERT_SETTINGS = Settings(
    read=reads(_Config),
    harmless=harmless("an embedding model has no output matrix", "tie_word_embeddings")
    | harmless(
        "of the pooler, which the file leaves out",
        "directionality pooler_fc_size pooler_num_attention_heads pooler_num_fc_layers"
        " pooler_size_per_head pooler_type",
    ),
    only=constant(False, "add_cross_attention"),
)
_NOMIC_SETTINGS = Settings(
    read=reads(_Config, _Nomic) | {*_NOMIC_NAMES, *_NOMIC_FIXED, "rotary_emb_base", "rope_theta"},
    harmless=harmless("an embedding model has no output matrix", "tie_word_embeddings")
    | harmless(
        "how the model's own code computes the same results",
        "use_xentropy fused_bias_fc fused_dropout_add_ln use_flash_attn pad_vocab_size_multiple"
        " dense_seq_output reorder_and_upcast_attn mlp_checkpoint_lvl residual_in_fp32 n_ctx",
    )
    | harmless("has no effect within max_trained_positions", "rotary_scaling_factor")
    | harmless(
        "of summaries, which the file leaves out",
        "summary_activation summary_first_dropout summary_proj_to_labels summary_type"
        " summary_use_proj",
    )
    | harmless(
        "of experts, which no layer has",
        "num_experts num_shared_experts moe_impl moe_top_k moe_normalize_expert_weights"
        " moe_resid_pdrop expert_choice_router ffn_div",
    ),
    only=constant(
        False,
        "scale_attn_by_inverse_layer_idx use_rms_norm parallel_block parallel_block_tied_norm"
        " last_layer_subset",
    )
    | constant(True, "scale_attn_weights"),
)
_BERT_FAMILY = Declared(bert, _BERT_SETTINGS)
_ROBERTA_SETTINGS = replace(_BERT_SETTINGS, read=_BERT_SETTINGS.read | reads(_Padding))
_ROBERTA_FAMILY = Declared(roberta, _ROBERTA_SETTINGS)
_CLASSIFIER = Declared(roberta_classifier, _ROBERTA_SETTINGS)
FAMILIES = {
    "BertModel": _BERT_FAMILY,
    "BertForMaskedLM": _BERT_FAMILY,
    "RobertaModel": _ROBERTA_FAMILY,
    "RobertaForMaskedLM": _ROBERTA_FAMILY,
    "XLMRobertaModel": _ROBERTA_FAMILY,
    "XLMRobertaForMaskedLM": _ROBERTA_FAMILY,
    "BertForSequenceClassification": Declared(bert_classifier, _BERT_SETTINGS),
    "RobertaForSequenceClassification": _CLASSIFIER,
    "XLMRobertaForSequenceClassification": _CLASSIFIER,
    "NomicBertModel": Declared(nomic, _NOMIC_SETTINGS),
}
