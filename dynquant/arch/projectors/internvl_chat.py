"""InternVL, as OpenGVLab publishes it: queries, keys and values of InternViT in one matrix."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Integer, Natural, read_config
from dynquant.arch.settings import Only, Settings, harmless
from dynquant.arch.towers import internvit
from dynquant.arch.towers.internvit import PATCH, Tiles
from dynquant.arch.towers.vision import OUT, biased, fused
from dynquant.arch.towers.whole import Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.untrusted import shown

_IN = "model.vision_model."
_LAYER = _IN + "encoder.layers.{}."
_ROWS = (
    *biased(_IN + "embeddings.patch_embedding", "v.patch_embd", PATCH),
    *internvit.embeddings(
        _IN + "embeddings.class_embedding", _IN + "embeddings.position_embedding"
    ),
    Row(_LAYER + "attn.q_norm.weight", OUT + "attn_q_norm.weight", "hidden"),
    Row(_LAYER + "attn.k_norm.weight", OUT + "attn_k_norm.weight", "hidden"),
    *biased(_LAYER + "attn.proj", OUT + "attn_out", "hidden hidden"),
    *biased(_LAYER + "norm1", OUT + "ln1", "hidden"),
    *biased(_LAYER + "norm2", OUT + "ln2", "hidden"),
    Row(_LAYER + "ls1", OUT + "ls1.weight", "hidden"),
    Row(_LAYER + "ls2", OUT + "ls2.weight", "hidden"),
    *biased(_LAYER + "mlp.fc1", OUT + "ffn_up", "ffn hidden"),
    *biased(_LAYER + "mlp.fc2", OUT + "ffn_down", "hidden ffn"),
    *biased("model.mlp1.0", "mm.model.mlp.0", "joined"),
    *biased("model.mlp1.1", "mm.model.mlp.1", "text joined"),
    *biased("model.mlp1.3", "mm.model.mlp.3", "text text"),
)
_USUAL = {"qkv_bias": "attention_bias", "qk_normalization": "use_qk_norm"}
"""The names of transformers' class for settings that OpenGVLab's names otherwise."""

_DEFAULTS: dict[str, Any] = {"norm_type": "rms_norm", "use_qk_norm": True}
"""Defaults of OpenGVLab's class, where they differ from those of transformers."""


@dataclass(frozen=True)
class _Model:
    downsample_ratio: float = 0.5
    select_layer: Integer = -1
    ps_version: str = "v1"
    min_dynamic_patch: Natural = 1
    max_dynamic_patch: Count = 6
    force_image_size: Count | None = None


_TILES = {"dynamic_image_size": True, "use_thumbnail": True, "pad2square": False}
"""How pictures become tiles in llama.cpp."""


@dataclass(frozen=True)
class _Width:
    hidden_size: Count


def internvl_chat(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of an InternVLChatModel."""
    model = read_config(_Model, whole.config, whole.where)
    ArchitectureError.raise_any(_problems(model, config, whole.where))
    hidden = read_config(_Width, config, f"{whole.where}: vision_config").hidden_size
    qkv = fused(
        _LAYER + "attn.qkv",
        OUT,
        "three hidden",
        dict.fromkeys(("attn_q", "attn_k", "attn_v"), hidden),
    )
    usual = {_USUAL.get(n, n): value for n, value in config.items() if value is not None}
    tiles = Tiles(model.min_dynamic_patch, model.max_dynamic_patch)
    found = internvit.internvit(
        {**_DEFAULTS, **usual}, whole, (*_ROWS, *qkv), model.downsample_ratio, tiles
    )
    return replace(found, deviations=(*found.deviations, *_warnings(whole)))


def _warnings(whole: Whole) -> Iterator[str]:
    """Yield a warning for each setting of tiles that llama.cpp has fixed."""
    for name, computed in _TILES.items():
        if (value := whole.config.get(name)) not in (None, computed):
            stated, ours = json.dumps(value), json.dumps(computed)
            yield f"{whole.where}: {name} is {stated}; llama.cpp computes {ours}"


def _problems(model: _Model, config: Mapping[str, Any], where: str) -> Iterator[str]:
    size = config.get("image_size")
    if model.select_layer != -1:
        yield (
            f"{where}: select_layer is {model.select_layer}; llama.cpp takes the output of the last"
            " layer, -1"
        )
    if model.ps_version != "v2":
        yield (
            f"{where}: ps_version is {shown(model.ps_version)}; llama.cpp joins patches in the"
            " order of 'v2'"
        )
    if model.force_image_size not in (None, size):
        yield (
            f"{where}: force_image_size is {model.force_image_size}, and vision_config has"
            f" image_size {shown(size)}; llama.cpp does not interpolate positions"
        )


_MOE = harmless(
    "of a mixture of experts, which use_moe would state",
    "capacity_factor eval_capacity_factor laux_allreduce moe_coeff_ratio moe_output_scale"
    " moe_intermediate_size noisy_gate_policy num_experts num_routed_experts num_shared_experts"
    " shared_expert_intermediate_size use_residual use_rts use_weighted_residual",
)
PROJECTORS = {
    "InternVLChatModel": (
        Tower(
            internvl_chat,
            r"(vision_model|mlp1)\.",
            Settings(
                read=internvit.READ | _USUAL.keys(),
                harmless=internvit.HARMLESS | _MOE,
                only=internvit.ONLY
                | {"use_moe": Only((False,), "llama.cpp computes this encoder without experts")},
            ),
        ),
    ),
}
