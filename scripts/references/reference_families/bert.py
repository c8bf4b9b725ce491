"""BERT and Nomic-BERT, embedding models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from reference_tokenizers import Encode, write_json
from reference_unigram import make_unigram
from reference_vocabularies import make_wordpiece

from reference_families import Family

_COMMON: dict[str, Any] = {
    "hidden_size": 32,
    "vocab_size": 448,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


def _tokenizer(folder: Path) -> Encode:
    """Write WordPiece files, and the files of sentence-transformers: the mean over all tokens."""
    _write_pooling(folder)
    return make_wordpiece(folder)


def _unigram(folder: Path) -> Encode:
    """Write XLM-R's files and the mean over all tokens."""
    _write_pooling(folder)
    return make_unigram(folder, xlm_r=True)


def _write_pooling(folder: Path) -> None:
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate((("", "Transformer"), ("1_Pooling", "Pooling")))
    ]
    (folder / "modules.json").write_text(json.dumps(modules, indent=2) + "\n", "utf-8")
    (folder / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)


_XLM_R: dict[str, Any] = {
    **_COMMON,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "intermediate_size": 88,
    "max_position_embeddings": 66,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 2,
}


class _Classifier:
    """A model with a classifier, whose scores are its results."""

    def __init__(self, name: str) -> None:
        self.name = name

    def make(self) -> transformers.PreTrainedModel:
        """Return the model with arbitrary weights."""
        config = FAMILIES[self.name].config
        return transformers.AutoModelForSequenceClassification.from_config(config)

    def save(self, model: transformers.PreTrainedModel, folder: Path) -> None:
        """Write config.json and the weights."""
        model.save_pretrained(folder)

    def load(self, folder: Path) -> transformers.PreTrainedModel:
        """Return the model with the weights of a folder, in float32, with eager attention."""
        return transformers.AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        )


FAMILIES = {
    "bert": Family(
        transformers.BertConfig(
            **_COMMON,
            intermediate_size=88,
            max_position_embeddings=64,
            layer_norm_eps=1e-12,
            hidden_act="gelu",
        ),
        _tokenizer,
        weights=0.2,
    ),
    "xlm-roberta": Family(
        transformers.XLMRobertaConfig(**_XLM_R),
        _unigram,
        weights=0.15,
    ),
    "bert-classifier": Family(
        transformers.BertConfig(
            **_COMMON,
            intermediate_size=88,
            max_position_embeddings=64,
            num_labels=3,
        ),
        make_wordpiece,
        weights=0.3,
        draw=7,
        model=_Classifier("bert-classifier"),
    ),
    # As bge-reranker: one label.
    "xlm-roberta-reranker": Family(
        transformers.XLMRobertaConfig(
            **_XLM_R,
            num_labels=1,
        ),
        lambda folder: make_unigram(folder, xlm_r=True),
        weights=0.3,
        draw=101,
        model=_Classifier("xlm-roberta-reranker"),
    ),
    "nomic-bert": Family(
        transformers.NomicBertConfig(
            **_COMMON,
            intermediate_size=72,
            max_position_embeddings=512,
            layer_norm_eps=1e-12,
            rope_parameters={"rope_type": "default", "rope_theta": 1000.0},
        ),
        _tokenizer,
    ),
}
