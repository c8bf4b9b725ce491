"""Janus Pro's vision encoder: SigLIP with other names, and two matrices."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Positive, Truth, read_config, without_nulls
from dynquant.arch.settings import Settings, constant, harmless, reads
from dynquant.arch.towers import siglip
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.vision import (
    Vision,
    activation_keys,
    biased,
    erf_warning,
    vision_keys,
    vision_sizes,
)
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError

_JOIN = "model.aligner."
_DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 16,
    "hidden_act": "gelu",
}
"""Defaults of transformers' class."""


@dataclass(frozen=True)
class _Janus:
    mlp_ratio: Positive = 4.0
    attention_bias: Truth = True
    depth: Count = 2
    projection_dim: Count = 2048


def janus(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Janus Pro."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Janus, config, where)
    usual = {**_DEFAULTS, "intermediate_size": 1, **without_nulls(config)}
    v = read_config(Vision, usual, where)
    v = replace(v, intermediate_size=int(v.hidden_size * own.mlp_ratio))
    ArchitectureError.raise_any([*_problems(own, whole), *contradictions(whole, size=v.image_size)])
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "janus_pro") | activation_keys(v.hidden_act, where),
        rows=(
            *biased(_JOIN + "fc1", "mm.0", "text hidden"),
            *biased(_JOIN + "hidden_layers.0", "mm.1", "text text"),
            *(_renamed(row) for row in siglip.INNER if own.attention_bias or not _is_bias(row)),
        ),
        sizes=vision_sizes(v, whole),
        n_layers=v.num_hidden_layers,
        tied=None,
        ignored=siglip.UNUSED,
        deviations=(
            *erf_warning(v.hidden_act, where),
            f"{whole.folder}: llama.cpp adds no tokens around pictures; write <begin_of_image>"
            " before each and <end_of_image> after it, as the model's own code does",
        ),
    )


def _renamed(row: Row) -> Row:
    return row.within(".out_proj.", ".projection_layer.")


def _is_bias(row: Row) -> bool:
    return row.name.endswith((".attn_q.bias", ".attn_k.bias", ".attn_v.bias"))


def _problems(own: _Janus, whole: Whole) -> Iterator[str]:
    where = f"{whole.where}: vision_config"
    if own.depth != 2:
        yield f"{where}: depth is {own.depth}; llama.cpp computes a projector of 2 matrices"
    if own.projection_dim != whole.n_text:
        yield (
            f"{where}: projection_dim is {own.projection_dim}, and the language model has"
            f" hidden_size {whole.n_text}; take both from one model"
        )


PROJECTORS = {
    "JanusForConditionalGeneration": (
        Tower(
            janus,
            r"(vision_model|aligner)\.",
            Settings(
                read=reads(Vision, _Janus),
                harmless=harmless(
                    "used while training only", "hidden_dropout_rate projection_dropout"
                )
                | harmless("image_size and patch_size state it", "num_image_tokens"),
                only=siglip.ONLY | constant(False, "use_qk_norm"),
            ),
        ),
    ),
}
