"""LLaVA 1.5 and its relatives: an inner layer of CLIP or SigLIP, and two matrices.

llama.cpp's graph of CLIP adds the class token after the patches, but takes the outputs from the
second on, as if it were the first (llama.cpp's issue 25814). Positions are stored in the order in
which the graph adds them, so that each output is the model's. But there is none of the first patch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Integer, Truth, read_config, without_nulls
from dynquant.arch.settings import Settings, harmless, reads
from dynquant.arch.towers import clip, siglip
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
from dynquant.keys import i32s
from dynquant.untrusted import shown

_JOIN = "model.multi_modal_projector."
_PROJECTOR = (
    *biased(_JOIN + "linear_1", "mm.0", "text hidden"),
    *biased(_JOIN + "linear_2", "mm.2", "text text"),
)


@dataclass(frozen=True)
class _Model:
    vision_feature_layer: Integer = -2
    vision_feature_select_strategy: str = "default"
    projector_hidden_act: str = "gelu"
    multimodal_projector_bias: Truth = True


def llava(
    config: Mapping[str, Any],
    whole: Whole,
    *,
    defaults: Mapping[str, Any],
    rows: tuple[Row, ...],
    has_class: bool,
) -> Architecture:
    """Describe the vision encoder of a LLaVA, up to the layer whose output is used.

    defaults:  of transformers' class of the encoder
    rows:      of the encoder
    has_class: whether the encoder has a class token
    """
    where = f"{whole.where}: vision_config"
    v = read_config(Vision, {**defaults, **without_nulls(config)}, where)
    model = read_config(_Model, whole.config, whole.where)
    n_stored, asked = v.num_hidden_layers, model.vision_feature_layer
    n_layers = asked if asked >= 0 else n_stored + 1 + asked
    size = {"crop_size" if has_class else "size": v.image_size}
    ArchitectureError.raise_any(
        [
            *_problems(model, n_layers, n_stored, has_class, whole.where),
            *contradictions(whole, **size),
        ]
    )
    side = v.image_size // v.patch_size
    unused = "|".join(map(str, range(n_layers, n_stored))) or "none"
    return Architecture(
        name=CLIP,
        keys=vision_keys(replace(v, num_hidden_layers=n_layers), whole, "mlp")
        | activation_keys(v.hidden_act, where)
        | {"clip.vision.feature_layer": i32s([n_layers])},
        rows=(*_PROJECTOR, *rows),
        sizes={**vision_sizes(v, whole), "places": side * side + 1},
        n_layers=n_layers,
        tied=None,
        ignored={
            **siglip.UNUSED,
            rf".*encoder\.layers\.({unused})\..*": "after the layer whose output is used",
            r".*\.post_layernorm\..*": "of the last layer's output, which is not used",
        },
        deviations=(*erf_warning(v.hidden_act, where), *_warnings(whole, has_class)),
    )


def _problems(
    model: _Model, n_layers: int, n_stored: int, has_class: bool, where: str
) -> Iterator[str]:
    if not 1 <= n_layers <= n_stored:
        yield (
            f"{where}: vision_feature_layer is {model.vision_feature_layer}; the encoder has the"
            f" {n_stored} layers of vision_config"
        )
    strategy = "default" if has_class else "full"
    if model.vision_feature_select_strategy != strategy:
        yield (
            f"{where}: vision_feature_select_strategy is"
            f" {shown(model.vision_feature_select_strategy)}; llama.cpp computes this encoder with"
            f" {strategy!r}"
        )
    if model.projector_hidden_act != "gelu":
        yield (
            f"{where}: projector_hidden_act is {shown(model.projector_hidden_act)}; llama.cpp"
            " computes 'gelu'"
        )
    if not model.multimodal_projector_bias:
        yield f"{where}: multimodal_projector_bias is false; llama.cpp needs biases"


def _warnings(whole: Whole, has_class: bool) -> Iterator[str]:
    if has_class:
        yield (
            f"{whole.folder}: llama.cpp leaves out the first patch of each picture, at its top"
            " left, and adds the class token after the last (llama.cpp's issue 25814)"
        )
    if whole.images.get("do_pad") is not True:
        done = "crops them to their middle" if has_class else "stretches them"
        yield (
            f"{whole.folder}: llama.cpp adds margins to pictures that are not square; the model's"
            f" own image processor {done}"
        )


def _projector(
    defaults: Mapping[str, Any], rows: tuple[Row, ...], known: Mapping[str, str], has_class: bool
) -> tuple[Tower]:
    describe = partial(llava, defaults=defaults, rows=rows, has_class=has_class)
    settings = Settings(read=reads(Vision), harmless=known, only=siglip.ONLY)
    return (Tower(describe, r"(vision_tower|multi_modal_projector)\.", settings),)


_SIGLIP = tuple(row for row in siglip.ROWS if not row.name.startswith("v.post_ln"))
_CLASS = "LlavaForConditionalGeneration"
PROJECTORS = {
    f"{_CLASS}/clip_vision_model": _projector(clip.DEFAULTS, clip.ROWS, clip.HARMLESS, True),
    f"{_CLASS}/siglip_vision_model": _projector(
        siglip.DEFAULTS,
        _SIGLIP,
        harmless("LLaVA does not use the encoder's head", "vision_use_head"),
        False,
    ),
}
_NEXT = (
    "llama.cpp's graph neither adds an embedding after each row of patches (image_newline), nor"
    " leaves out those of margins"
)
REFUSED = dict.fromkeys(
    ("LlavaNextForConditionalGeneration", "LlavaNextVideoForConditionalGeneration"), _NEXT
)
