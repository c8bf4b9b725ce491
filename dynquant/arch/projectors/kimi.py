"""Kimi-VL, Kimi-K2.5 and GLM-5.2-Vision: MoonViT, whose patches are merged and projected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import Count, Positive, read_config
from dynquant.arch.settings import Settings, harmless, reads
from dynquant.arch.towers.limits import other_limit, pixels
from dynquant.arch.towers.moonvit import (
    EPSILON,
    MERGED,
    READ,
    SIDE,
    TRAINED,
    MoonViT,
    encoder,
    flat,
    fused_rows,
    moonvit,
    one,
    projector,
    separate,
)
from dynquant.arch.towers.vision import stated
from dynquant.arch.towers.whole import Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.untrusted import shown

_MOST_TOKENS = 1024
"""llama.cpp's limit of tokens for a picture of a Kimi-VL."""


@dataclass(frozen=True)
class _Joined:
    """Settings of Kimi-K2.5's projector."""

    projector_ln_eps: Positive = EPSILON
    mm_hidden_size: Count | None = None
    text_hidden_size: Count | None = None


@dataclass(frozen=True)
class _Limits:
    """Patches that the image processors permit, by the names of the three."""

    in_token_limit: Count = 4096
    in_patch_limit: Count | None = None
    max_patches: Count = 16384


def kimivl(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Kimi-VL."""
    found, own = moonvit(config, whole, "kimivl")
    where = whole.processor
    limit = read_config(_Limits, whole.images, where).in_token_limit
    side = own.init_pos_emb_height
    return replace(
        found,
        rows=(
            *encoder(flat, tuple(separate(own.num_attention_heads))),
            *projector("model.multi_modal_projector.", "linear_1", "linear_2"),
        ),
        deviations=(
            f"{whole.where}: llama.cpp interpolates positions linearly, except in pictures of"
            f" {side} x {side} patches; the model's own code interpolates cubically",
            *other_limit(limit // SIDE**2, _MOST_TOKENS, f"{where}: in_token_limit {limit}"),
        ),
    )


def kimik25(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Kimi-K2.5 or K2.6."""
    where = f"{whole.where}: vision_config"
    usual = stated(
        config,
        hidden_size="vt_hidden_size",
        intermediate_size="vt_intermediate_size",
        num_hidden_layers="vt_num_hidden_layers",
        num_attention_heads="vt_num_attention_heads",
        init_pos_emb_height="pos_emb_height",
        init_pos_emb_width="pos_emb_width",
    )
    found, own = moonvit(usual, whole, "kimik25")
    joined = read_config(_Joined, config, where)
    ArchitectureError.raise_any(_joined_problems(joined, own, whole, where))
    images = whole.processor
    limits = read_config(_Limits, whole.images, images)
    limit = "max_patches" if limits.in_patch_limit is None else "in_patch_limit"
    most = limits.in_patch_limit or limits.max_patches
    area = own.patch_size**2
    return replace(
        found,
        keys=found.keys
        | {
            # llama.cpp's converter sets the smallest number of patches to 8.
            "clip.vision.image_min_pixels": u32(8 * area),
            "clip.vision.image_max_pixels": pixels(most, area, f"{images}: {limit}"),
        },
        rows=(
            *encoder(None, fused_rows(own.num_attention_heads)),
            *projector(
                "model.mm_projector.",
                "proj.0",
                "proj.2",
                ("proj.linear_1", "proj.linear_2"),
                ("linear_1", "linear_2"),
            ),
        ),
    )


def _joined_problems(joined: _Joined, own: MoonViT, whole: Whole, where: str) -> Iterator[str]:
    epsilons = {
        "vision_config: projector_ln_eps": joined.projector_ln_eps,
        "projection_layer_norm_eps": whole.config.get("projection_layer_norm_eps"),
    }
    for name, value in epsilons.items():
        if value not in (None, EPSILON):
            yield (
                f"{whole.where}: {name} is {shown(value)}; llama.cpp computes the norms of the"
                f" encoder and of the projector alike, with {EPSILON}"
            )
    widths = {
        "mm_hidden_size": (joined.mm_hidden_size, own.hidden_size),
        "text_hidden_size": (joined.text_hidden_size, whole.n_text),
    }
    for name, (value, expected) in widths.items():
        if value not in (None, expected):
            yield f"{where}: {name} is {value}; llama.cpp computes {expected}"


_KIMIVL = Settings(read=READ, harmless=TRAINED, only=MERGED)
_OF_KIMIK25 = Settings(
    read=READ
    | reads(
        _Joined,
        more="vt_hidden_size vt_intermediate_size vt_num_hidden_layers vt_num_attention_heads"
        " pos_emb_height pos_emb_width",
    ),
    harmless=TRAINED
    | harmless("for videos", "init_pos_emb_time pos_emb_time video_attn_type pos_emb_type"),
    only=MERGED
    | one("gelu", "projector_hidden_act")
    | one("patchmerger", "mm_projector_type")
    | one("sd2_tpool", "merge_type")
    | one("gelu_pytorch_tanh", "hidden_act"),
)
_KIMIK25 = (Tower(kimik25, r"(vision_tower|mm_projector)\.", _OF_KIMIK25),)
PROJECTORS = {
    "KimiVLForConditionalGeneration": (
        Tower(kimivl, r"(vision_tower|multi_modal_projector)\.", _KIMIVL),
    ),
    "Glm5vForConditionalGeneration": _KIMIK25,
    "KimiK25ForConditionalGeneration": _KIMIK25,
    "Kimi_K25ForConditionalGeneration": _KIMIK25,
}
