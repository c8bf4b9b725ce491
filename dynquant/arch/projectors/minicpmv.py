"""MiniCPM-V 2.6 to 4.5: SigLIP, and queries that take what they need from its patches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dynquant.arch.base import Architecture, ModelTensor, Row
from dynquant.arch.config import Count, Truth, read_config, without_nulls
from dynquant.arch.settings import Settings, harmless, reads
from dynquant.arch.towers import minicpmv, siglip
from dynquant.arch.towers.minicpmv import SIDE, Slices
from dynquant.arch.towers.vision import Vision, activation_keys, biased, vision_keys, vision_sizes
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.arrays import F32
from dynquant.errors import ArchitectureError
from dynquant.keys import i32, u32
from dynquant.tensors import Computed
from dynquant.transforms import rows_between, transposed
from dynquant.untrusted import shown

_IN = "resampler."
_HEAD = 128
_VERSIONS = {"2.6": 3, "4.0": 5, "4.5": 6}
"""llama.cpp's numbers of the versions."""


@dataclass(frozen=True)
class _Whole:
    query_num: Count = 64
    drop_vision_last_layer: Truth = False


def resampler(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a MiniCPM-V."""
    where = f"{whole.where}: vision_config"
    own, slices = read_config(_Whole, whole.config, whole.where), Slices.of(whole)
    stated = read_config(Vision, {**minicpmv.DEFAULTS, **without_nulls(config)}, where)
    ArchitectureError.raise_any(
        [*_problems(stated, whole), *minicpmv.problems(slices, stated, whole)]
    )
    n_layers = stated.num_hidden_layers - own.drop_vision_last_layer
    v = replace(stated, image_size=slices.scale_resolution, num_hidden_layers=n_layers)
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, _with_means(whole), "resampler")
        | activation_keys(v.hidden_act, where)
        | {
            "clip.minicpmv_version": i32(_VERSIONS[str(whole.config["version"])]),
            "clip.minicpmv_query_num": u32(own.query_num),
        },
        rows=(*_SEES, *_resampler(whole.n_text)),
        sizes={
            **vision_sizes(v, whole),
            "patches": SIDE**2,
            "queries": own.query_num,
            "three": 3 * whole.n_text,
        },
        n_layers=n_layers,
        tied=None,
        # The graph computes it again for each picture, but does not load without it.
        extra=(ModelTensor(f"{_IN}pos_embed_k", Computed(_positions(whole.n_text))),),
        ignored={
            r".*resampler\.(temporal_)?pos_embed.*": "positions, which follow from the size",
            r".*\.position_ids": "numbers from zero on, which need no tensor",
        },
        deviations=tuple(minicpmv.warnings(slices, whole)),
    )


def _problems(v: Vision, whole: Whole) -> Iterator[str]:
    if str(whole.config.get("version")) not in _VERSIONS:
        yield (
            f"{whole.where}: version is {shown(whole.config.get('version'))}; supported for"
            f" MiniCPMV are {', '.join(_VERSIONS)}"
        )
    if whole.n_text % _HEAD:
        yield (
            f"{whole.where}: the language model's width {whole.n_text} is not a multiple of"
            f" {_HEAD}, the width of a head"
        )
    if v.layer_norm_eps != 1e-6:
        yield (
            f"{whole.where}: layer_norm_eps is {v.layer_norm_eps}; llama.cpp computes the queries"
            " with the same number, and the model with 1e-06"
        )


def _with_means(whole: Whole) -> Whole:
    """Return the model with the usual names of its processor's settings."""
    images = whole.images
    usual = {"image_mean": images.get("norm_mean"), "image_std": images.get("norm_std")}
    return replace(whole, images={**{n: v for n, v in usual.items() if v}, **images})


def _positions(width: int) -> F32:
    """Return sines and cosines of the columns and rows of patches, float32 [patches, width]."""
    fast = 1 / 10000 ** (np.arange(width // 4) / (width // 4))
    y, x = np.divmod(np.arange(SIDE**2), SIDE)
    parts = [f(np.outer(n, fast)) for n in (x, y) for f in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


_SEES = tuple(
    replace(row.within("model.vision_tower.vision_model.", "vpm."), forms=()) for row in siglip.ROWS
)


def _resampler(width: int) -> tuple[Row, ...]:
    parts = {
        part: partial(rows_between, start=n * width, stop=(n + 1) * width)
        for n, part in enumerate(("q", "k", "v"))
    }
    return (
        Row(_IN + "query", _IN + "query", "queries text"),
        Row(_IN + "kv_proj.weight", _IN + "kv.weight", "text hidden"),
        *biased(_IN + "ln_q", _IN + "ln_q", "text"),
        *biased(_IN + "ln_kv", _IN + "ln_kv", "text"),
        *(
            Row(f"{_IN}attn.in_proj_{end}", f"{_IN}attn.{part}.{end}", shape, via=via)
            for part, via in parts.items()
            for end, shape in (("weight", "three text"), ("bias", "three"))
        ),
        *biased(_IN + "attn.out_proj", _IN + "attn.out", "text text"),
        *biased(_IN + "ln_post", _IN + "ln_post", "text"),
        Row(_IN + "proj", _IN + "proj.weight", "text text", via=transposed),
    )


PROJECTORS = {
    "MiniCPMV": (
        Tower(
            resampler,
            r"(vpm|resampler)\.",
            Settings(
                read=reads(Vision),
                harmless=harmless("the encoder's own head is not used", "vision_use_head"),
                only=siglip.ONLY,
            ),
        ),
    ),
}
