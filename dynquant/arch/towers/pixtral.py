"""Pixtral's vision encoder, and the projector that several larger models have behind it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config
from dynquant.arch.settings import Settings, constant, harmless, reads
from dynquant.arch.towers.processor import contradictions, edges
from dynquant.arch.towers.rotary import rotary_problems
from dynquant.arch.towers.vision import (
    OUT,
    Vision,
    activation_keys,
    biased,
    erf_warning,
    vision_keys,
)
from dynquant.arch.towers.whole import CLIP, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.text_settings import text_settings
from dynquant.transforms import interleaved_heads
from dynquant.untrusted import shown

TOWER = "model.vision_tower."
_LAYER = TOWER + "transformer.layers.{}."
PROJECTOR = "model.multi_modal_projector."
_EPSILON = 1e-5
"""Of all norms in the model's own code."""

_IMAGES = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
"""Defaults of the image processor; some models have no settings of one."""

_EDGE = 1024
"""The longest side of a picture, unless the settings of the image processor state another."""

GELU = Literal["gelu", "gelu_pytorch_tanh", "gelu_new", "gelu_fast"]
"""llama.cpp approximates GELU by its tanh form."""


@dataclass(frozen=True)
class _Pixtral:
    """Settings of the encoder, with the defaults of its class."""

    hidden_size: Count = 1024
    intermediate_size: Count = 4096
    num_hidden_layers: LayersCount = 24
    num_attention_heads: Count = 16
    head_dim: Count | None = None
    image_size: Count = 1024
    patch_size: Count = 16
    hidden_act: str = "gelu"


@dataclass(frozen=True)
class Joined:
    """Settings of what joins the encoder to the language model."""

    projector_hidden_act: GELU = "gelu"
    spatial_merge_size: Count = 2
    multimodal_projector_bias: Truth = False


@dataclass(frozen=True)
class _Text:
    vocab_size: Count
    rms_norm_eps: Positive = 1e-6


def _matrices(v: Vision) -> Sequence[Row]:
    """Return the encoder's rows; llama.cpp rotates adjacent pairs of queries and keys."""
    rotated = partial(interleaved_heads, n_head=v.num_attention_heads)
    attention, ffn = _LAYER + "attention.", _LAYER + "feed_forward."
    return (
        Row(TOWER + "patch_conv.weight", "v.patch_embd.weight", "hidden colours patch patch"),
        Row(TOWER + "ln_pre.weight", "v.pre_ln.weight", "hidden"),
        Row(_LAYER + "attention_norm.weight", OUT + "ln1.weight", "hidden"),
        Row(attention + "q_proj.weight", OUT + "attn_q.weight", "hidden hidden", via=rotated),
        Row(attention + "k_proj.weight", OUT + "attn_k.weight", "hidden hidden", via=rotated),
        Row(attention + "v_proj.weight", OUT + "attn_v.weight", "hidden hidden"),
        Row(attention + "o_proj.weight", OUT + "attn_out.weight", "hidden hidden"),
        Row(_LAYER + "ffn_norm.weight", OUT + "ln2.weight", "hidden"),
        Row(ffn + "gate_proj.weight", OUT + "ffn_gate.weight", "ffn hidden"),
        Row(ffn + "up_proj.weight", OUT + "ffn_up.weight", "ffn hidden"),
        Row(ffn + "down_proj.weight", OUT + "ffn_down.weight", "hidden ffn"),
    )


_MERGER = (
    Row(PROJECTOR + "norm.weight", "mm.input_norm.weight", "hidden"),
    Row(PROJECTOR + "patch_merger.merging_layer.weight", "mm.patch_merger.weight", "hidden merged"),
)


def _projector(*, has_bias: bool) -> tuple[Row, ...]:
    rows = (
        *biased(PROJECTOR + "linear_1", "mm.1", "text hidden"),
        *biased(PROJECTOR + "linear_2", "mm.2", "text text"),
    )
    return rows if has_bias else rows[::2]


def _problems(own: _Pixtral, config: Mapping[str, Any], where: str) -> Iterator[str]:
    each = own.hidden_size // own.num_attention_heads
    if own.head_dim not in (None, each):
        yield (
            f"{where}: head_dim is {own.head_dim}; llama.cpp computes hidden_size divided by"
            f" num_attention_heads, {each}"
        )
    yield from rotary_problems(config, each, where)


def encoder(
    config: Mapping[str, Any],
    whole: Whole,
    joined: Joined,
    kind: str,
    problems: Iterable[str] = (),
) -> Architecture:
    """Describe an encoder and its projector, without what only some models have.

    kind:     llama.cpp's name of the projector
    problems: messages of the larger model, which are reported with those of the encoder
    """
    whole = replace(whole, images={**_IMAGES, **whole.images})
    where = f"{whole.where}: vision_config"
    own = read_config(_Pixtral, config, where)
    merged = joined.spatial_merge_size
    said = contradictions(
        whole,
        patch_size=(own.patch_size, own.patch_size * merged),
        spatial_merge_size=merged,
    )
    ArchitectureError.raise_any([*_problems(own, config, where), *said, *problems])
    text = read_config(_Text, text_settings(whole.config) or {}, f"{whole.where}: text_config")
    v = Vision(
        own.hidden_size,
        own.intermediate_size,
        own.num_hidden_layers,
        own.num_attention_heads,
        own.image_size,
        own.patch_size,
        _EPSILON,
        own.hidden_act,
    )
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, kind) | activation_keys(own.hidden_act, where),
        rows=(*_matrices(v), *_projector(has_bias=joined.multimodal_projector_bias)),
        sizes={
            "hidden": own.hidden_size,
            "merged": joined.spatial_merge_size**2 * own.hidden_size,
            "ffn": own.intermediate_size,
            "colours": 3,
            "patch": own.patch_size,
            "picture": own.image_size,
            "text": whole.n_text,
            "vocab": text.vocab_size,
        },
        n_layers=own.num_hidden_layers,
        tied=None,
        deviations=erf_warning(own.hidden_act, where),
    )


def merging(found: Architecture, whole: Whole, joined: Joined) -> Architecture:
    """Add what merges patches; its norm has the language model's epsilon in the model's code."""
    text = read_config(_Text, text_settings(whole.config) or {}, f"{whole.where}: text_config")
    epsilon = text.rms_norm_eps
    warnings = (
        ()
        if epsilon == _EPSILON
        else (
            f"{whole.where}: text_config has rms_norm_eps {shown(epsilon)}; llama.cpp computes the"
            f" projector's norm with {_EPSILON}, which matters for very small numbers only",
        )
    )
    return replace(
        found,
        keys=found.keys | {"clip.vision.spatial_merge_size": u32(joined.spatial_merge_size)},
        rows=(*found.rows, *_MERGER),
        deviations=(*found.deviations, *warnings),
    )


def longest_edge(whole: Whole, image_size: int) -> int:
    """Return the longest side of a picture, in pixels, by the settings of the image processor.

    image_size: of config.json, for a model without these settings
    """
    return edges(whole).longest_edge or (_EDGE if whole.images else image_size)


SETTINGS = Settings(
    read=reads(_Pixtral, more="rope_theta"),
    harmless=harmless("used while training only", "is_composition tie_word_embeddings"),
    only=constant(3, "num_channels"),
)
"""What is known of the encoder's settings."""
