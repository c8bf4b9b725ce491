"""RoBERTa and XLM-RoBERTa: BERTs whose positions count from behind the padding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, with_bias
from dynquant.arch.classifier import with_classifier
from dynquant.arch.config import Natural, read_config
from dynquant.arch.encoder import describe_encoder, read_encoder
from dynquant.arch.families.bert import BERT, BERT_SETTINGS
from dynquant.arch.settings import Declared, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.transforms import rows_of_each


@dataclass(frozen=True)
class _Padding:
    pad_token_id: Natural = 1


def roberta(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a RoBERTa or XLM-RoBERTa: a BERT whose positions count from behind the padding.

    The first rows of its table of positions are never used, and llama.cpp counts from zero.
    """
    c = read_encoder(config, where, ("gelu",))
    first = read_config(_Padding, config, where).pad_token_id + 1
    if first >= c.max_position_embeddings:
        raise ArchitectureError(
            f"{where}: pad_token_id {first - 1} leaves none of {c.max_position_embeddings}"
            " positions (max_position_embeddings)"
        )
    used = {"context_length": u32(c.max_position_embeddings - first)}
    found = describe_encoder("bert", c, BERT, used)
    cut = partial(rows_of_each, start=first, stop=c.max_position_embeddings)
    # Byte-level vocabularies do not state it.
    types = {"tokenizer.ggml.token_type_count": u32(c.type_vocab_size)}
    return replace(found, keys=found.keys | types, via={"position_embd": cut})


def roberta_classifier(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a RoBERTa or XLM-RoBERTa with a classifier of two layers."""
    head = with_bias("classifier.dense", "cls", "hidden", "hidden")
    head += with_bias("classifier.out_proj", "cls.output", "labels", "hidden")
    return with_classifier(roberta(config, where), head, config, where)


_SETTINGS = replace(BERT_SETTINGS, read=BERT_SETTINGS.read | reads(_Padding))
_ROBERTA = Declared(roberta, _SETTINGS)
_CLASSIFIER = Declared(roberta_classifier, _SETTINGS)
FAMILIES = {
    "RobertaModel": _ROBERTA,
    "RobertaForMaskedLM": _ROBERTA,
    "RobertaForSequenceClassification": _CLASSIFIER,
    "XLMRobertaModel": _ROBERTA,
    "XLMRobertaForMaskedLM": _ROBERTA,
    "XLMRobertaForSequenceClassification": _CLASSIFIER,
}
