"""SAM's vision encoder, which sees patches of 16 pixels before another encoder."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dynquant.arch.base import Row
from dynquant.arch.config import Count, LayersCount, Natural
from dynquant.arch.towers.vision import biased
from dynquant.keys import Keys, u32
from dynquant.untrusted import shown

PATCH = 16
SIZE = 1024
"""Pixels of a side of the whole picture."""

_WINDOW = 14
_SIDE = SIZE // PATCH
_GLOBAL = (2, 5, 8, 11)
"""Layers without a window in llama.cpp."""

_IN = "model.sam_model."


@dataclass(frozen=True)
class Sam:
    """Settings of `sam_vit_b`.

    output_channels: after the last layer; the models' own code has 256
    """

    width: Count
    layers: LayersCount
    heads: Count
    downsample_channels: tuple[Count, Count] = (512, 1024)
    global_attn_indexes: tuple[Natural, ...] = _GLOBAL
    output_channels: Count = 256


def problems(sam: Sam, where: str) -> Iterator[str]:
    """Yield what llama.cpp cannot compute."""
    if sam.width % sam.heads:
        yield f"{where}: width {sam.width} is not a multiple of {sam.heads} heads"
    without = [n for n in _GLOBAL if n < sam.layers]
    if [n for n in sorted(sam.global_attn_indexes) if n < sam.layers] != without:
        yield (
            f"{where}: global_attn_indexes is {shown(list(sam.global_attn_indexes))}; llama.cpp"
            f" computes the layers {', '.join(map(str, _GLOBAL))} without a window"
        )


def keys(sam: Sam) -> Keys:
    """Return the keys of the encoder."""
    return {
        "clip.vision.window_size": u32(_WINDOW),
        "clip.vision.sam.block_count": u32(sam.layers),
        "clip.vision.sam.embedding_length": u32(sam.width),
        "clip.vision.sam.head_count": u32(sam.heads),
    }


def sizes(sam: Sam) -> dict[str, int]:
    """Return the dimensions that the rows name; `last` is the next encoder's width."""
    return {
        "sam": sam.width,
        "sam_qkv": 3 * sam.width,
        "sam_ffn": 4 * sam.width,
        "sam_head": sam.width // sam.heads,
        "sam_side": _SIDE,
        "near": 2 * _WINDOW - 1,
        "far": 2 * _SIDE - 1,
        "neck": sam.output_channels,
        "between": sam.downsample_channels[0],
        "one": 1,
        "three": 3,
        "sam_patch": PATCH,
        "colours": 3,
    }


def rows(sam: Sam) -> tuple[Row, ...]:
    """Return all tensors: as many layers as this encoder has, whatever the next one has."""
    return (
        Row(_IN + "pos_embed", "v.sam.pos_embd.weight", "one sam_side sam_side sam"),
        *biased(_IN + "patch_embed.proj", "v.sam.patch_embd", "sam colours sam_patch sam_patch"),
        *(row for n in range(sam.layers) for row in _layer(n)),
        Row(_IN + "neck.0.weight", "v.sam.neck.0.weight", "neck sam one one"),
        *biased(_IN + "neck.1", "v.sam.neck.1", "neck"),
        Row(_IN + "neck.2.weight", "v.sam.neck.2.weight", "neck neck three three"),
        *biased(_IN + "neck.3", "v.sam.neck.3", "neck"),
        Row(_IN + "net_2.weight", "v.sam.net_2.weight", "between neck three three"),
        Row(_IN + "net_3.weight", "v.sam.net_3.weight", "last between three three"),
    )


def _layer(n: int) -> tuple[Row, ...]:
    stored, name = f"{_IN}blocks.{n}.", f"v.sam.blk.{n}."
    seen = "far" if n in _GLOBAL else "near"
    return (
        *biased(stored + "norm1", name + "pre_ln", "sam"),
        *biased(stored + "attn.qkv", name + "attn.qkv", "sam_qkv sam"),
        *biased(stored + "attn.proj", name + "attn.out", "sam sam"),
        Row(stored + "attn.rel_pos_h", name + "attn.pos_h.weight", f"{seen} sam_head"),
        Row(stored + "attn.rel_pos_w", name + "attn.pos_w.weight", f"{seen} sam_head"),
        *biased(stored + "norm2", name + "post_ln", "sam"),
        *biased(stored + "mlp.lin1", name + "mlp.lin1", "sam_ffn sam"),
        *biased(stored + "mlp.lin2", name + "mlp.lin2", "sam sam_ffn"),
    )
