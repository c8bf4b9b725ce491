"""InternVL, as transformers has it: InternViT with separate queries, keys and values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Integer, Natural, Truth, read_config
from dynquant.arch.settings import Settings
from dynquant.arch.towers import internvit
from dynquant.arch.towers.internvit import PATCH, Tiles
from dynquant.arch.towers.vision import OUT, biased
from dynquant.arch.towers.whole import Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.untrusted import shown

_IN = "model.vision_tower."
_LAYER = _IN + "encoder.layer.{}."
_ATTENTION = _LAYER + "attention."
_JOIN = "model.multi_modal_projector."
_ROWS = (
    *biased(_IN + "embeddings.patch_embeddings.projection", "v.patch_embd", PATCH),
    *internvit.embeddings(_IN + "embeddings.cls_token", _IN + "embeddings.position_embeddings"),
    *biased(_ATTENTION + "q_proj", OUT + "attn_q", "hidden hidden"),
    *biased(_ATTENTION + "k_proj", OUT + "attn_k", "hidden hidden"),
    *biased(_ATTENTION + "v_proj", OUT + "attn_v", "hidden hidden"),
    Row(_ATTENTION + "q_norm.weight", OUT + "attn_q_norm.weight", "hidden"),
    Row(_ATTENTION + "k_norm.weight", OUT + "attn_k_norm.weight", "hidden"),
    *biased(_ATTENTION + "projection_layer", OUT + "attn_out", "hidden hidden"),
    *biased(_LAYER + "layernorm_before", OUT + "ln1", "hidden"),
    *biased(_LAYER + "layernorm_after", OUT + "ln2", "hidden"),
    Row(_LAYER + "lambda_1", OUT + "ls1.weight", "hidden"),
    Row(_LAYER + "lambda_2", OUT + "ls2.weight", "hidden"),
    *biased(_LAYER + "mlp.fc1", OUT + "ffn_up", "ffn hidden"),
    *biased(_LAYER + "mlp.fc2", OUT + "ffn_down", "hidden ffn"),
    *biased(_JOIN + "layer_norm", "mm.model.mlp.0", "joined"),
    *biased(_JOIN + "linear_1", "mm.model.mlp.1", "text joined"),
    *biased(_JOIN + "linear_2", "mm.model.mlp.3", "text text"),
)


@dataclass(frozen=True)
class _Model:
    downsample_ratio: float = 0.5
    vision_feature_layer: Integer = -1
    vision_feature_select_strategy: str = "default"
    projector_hidden_act: str = "gelu"


@dataclass(frozen=True)
class _Processor:
    min_patches: Natural | None = None
    max_patches: Count | None = None
    crop_to_patches: Truth = True


def internvl(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of an InternVL."""
    model = read_config(_Model, whole.config, whole.where)
    ArchitectureError.raise_any(_problems(model, whole.where))
    prepared = whole.processor
    given = read_config(_Processor, whole.images, prepared)
    tiles = Tiles(given.min_patches, given.max_patches)
    found = internvit.internvit(config, whole, _ROWS, model.downsample_ratio, tiles)
    if given.crop_to_patches:
        return found
    whole_picture = (
        f"{prepared}: crop_to_patches is false; llama.cpp always shows the tiles of a picture"
        " beside the whole"
    )
    return replace(found, deviations=(*found.deviations, whole_picture))


def _problems(model: _Model, where: str) -> Iterator[str]:
    fixed = {
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "default",
        "projector_hidden_act": "gelu",
    }
    for name, value in fixed.items():
        if (found := getattr(model, name)) != value:
            yield f"{where}: {name} is {shown(found)}; llama.cpp computes {shown(value)}"


PROJECTORS = {
    "InternVLForConditionalGeneration": (
        Tower(
            internvl,
            r"(vision_tower|multi_modal_projector)\.",
            Settings(read=internvit.READ, harmless=internvit.HARMLESS, only=internvit.ONLY),
        ),
    ),
}
