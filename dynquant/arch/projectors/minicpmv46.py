"""MiniCPM-V 4.6's encoder: SigLIP, which merges patches 2 x 2 within and again after its layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Natural, read_config, without_nulls
from dynquant.arch.settings import Only, Settings, reads
from dynquant.arch.towers import minicpmv, siglip
from dynquant.arch.towers.minicpmv import Slices
from dynquant.arch.towers.vision import Vision, activation_keys, biased, vision_keys, vision_sizes
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, i32s, u32
from dynquant.untrusted import shown

_WITHIN = "model.vision_tower.vit_merger."
_AFTER = "model.merger.mlp.0."
_SKIPPED = {
    r".*vision_tower\.vit_merger\..*": "downsample_mode is '4x', which does not merge within",
}


@dataclass(frozen=True)
class _Whole:
    insert_layer_id: Natural = 6
    downsample_mode: Literal["4x", "16x"] = "16x"
    merger_times: Count = 1
    merge_kernel_size: tuple[Count, Count] = (2, 2)


def minicpmv46(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a MiniCPM-V 4.6."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Whole, whole.config, whole.where)
    slices = Slices.of(whole)
    v = read_config(Vision, {**minicpmv.DEFAULTS, **without_nulls(config)}, where)
    ArchitectureError.raise_any(
        [*_problems(own, v, config, whole), *minicpmv.problems(slices, v, whole)]
    )
    merges_twice = own.downsample_mode == "16x"
    as_sliced = replace(v, image_size=slices.scale_resolution)
    return Architecture(
        name=CLIP,
        keys=vision_keys(as_sliced, whole, "minicpmv4_6")
        | activation_keys(v.hidden_act, where)
        | _merging(own, twice=merges_twice),
        rows=(*_after(), *siglip.ROWS, *(_within() if merges_twice else ())),
        sizes={
            **vision_sizes(v, whole),
            "four": 4 * v.hidden_size,
            "wide": 4 * v.intermediate_size,
            "patches": minicpmv.SIDE**2,
        },
        n_layers=v.num_hidden_layers,
        tied=None,
        ignored=siglip.UNUSED | ({} if merges_twice else _SKIPPED),
        deviations=tuple(minicpmv.warnings(slices, whole)),
    )


def _merging(own: _Whole, *, twice: bool) -> Keys:
    return {
        "clip.vision.projector.scale_factor": u32(4 if twice else 2),
        "clip.vision.wa_layer_indexes": i32s([own.insert_layer_id]),
    }


def _problems(own: _Whole, v: Vision, config: Mapping[str, Any], whole: Whole) -> Iterator[str]:
    if own.insert_layer_id >= v.num_hidden_layers:
        yield (
            f"{whole.where}: insert_layer_id is {own.insert_layer_id}, and the encoder has"
            f" {v.num_hidden_layers} layers"
        )
    if config.get("insert_layer_id") not in (None, own.insert_layer_id):
        yield (
            f"{whole.where}: insert_layer_id is {own.insert_layer_id}, and"
            f" {shown(config['insert_layer_id'])} in vision_config; make them equal"
        )
    if own.merger_times != 1 or own.merge_kernel_size != (2, 2):
        yield (
            f"{whole.where}: merger_times is {own.merger_times} and merge_kernel_size"
            f" {shown(list(own.merge_kernel_size))}; llama.cpp merges 2 x 2 once"
        )
    if whole.images.get("downsample_mode") not in (None, own.downsample_mode):
        yield (
            f"{whole.folder}: downsample_mode is {shown(whole.images['downsample_mode'])} in the"
            f" settings of the image processor, and {own.downsample_mode!r} in config.json; make"
            " them equal"
        )


def _after() -> tuple[Row, ...]:
    return (
        *biased(_AFTER + "pre_norm", "mm.input_norm", "four"),
        *biased(_AFTER + "linear_1", "mm.up", "four four"),
        *biased(_AFTER + "linear_2", "mm.down", "text four"),
    )


def _within() -> tuple[Row, ...]:
    attention, name = _WITHIN + "self_attn.", "v.vit_merger."
    return (
        *biased(_WITHIN + "layer_norm1", name + "ln1", "hidden"),
        *biased(attention + "q_proj", name + "attn_q", "hidden hidden"),
        *biased(attention + "k_proj", name + "attn_k", "hidden hidden"),
        *biased(attention + "v_proj", name + "attn_v", "hidden hidden"),
        *biased(attention + "out_proj", name + "attn_out", "hidden hidden"),
        *biased(_WITHIN + "pre_norm", name + "ds_ln", "four"),
        *biased(_WITHIN + "linear_1", name + "ds_ffn_up", "wide four"),
        *biased(_WITHIN + "linear_2", name + "ds_ffn_down", "hidden wide"),
    )


PROJECTORS = {
    "MiniCPMV4_6ForConditionalGeneration": (
        Tower(
            minicpmv46,
            r"(vision_tower|merger)\.",
            Settings(
                read=reads(Vision, more="insert_layer_id"),
                only=siglip.ONLY
                | {"window_kernel_size": Only(([2, 2],), "llama.cpp merges 2 x 2")},
            ),
        ),
    ),
}
