"""InternViT, the encoder of InternVL: a class token, factors of layers, tiles of a picture."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Natural, Truth, read_config, without_nulls
from dynquant.arch.settings import constant, harmless, reads
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.vision import (
    Vision,
    activation_keys,
    as_vector,
    class_token_last,
    erf_warning,
    vision_keys,
)
from dynquant.arch.towers.whole import CLIP, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32
from dynquant.untrusted import shown

PATCH = "hidden colours patch patch"
"""The shape of the patch embedding."""

_RMS = (3200, 45)
"""Width and layers of the encoder for which llama.cpp computes RMS norms: InternViT 6B."""


@dataclass(frozen=True)
class Intern:
    """The encoder's own settings, with the names and defaults of transformers' class."""

    norm_type: str = "layer_norm"
    attention_bias: Truth = False
    use_qk_norm: Truth = False


@dataclass(frozen=True)
class Tiles:
    """The numbers of tiles that a picture becomes; None where the model does not state them."""

    lowest: Natural | None
    highest: Count | None


READ = reads(Vision, Intern)
HARMLESS = harmless(
    "used while training only",
    "dropout drop_path_rate projection_dropout layer_scale_init_value use_mask_token",
) | harmless("the encoder has no words", "tie_word_embeddings")
ONLY = (
    constant(3, "num_channels")
    | constant(True, "use_absolute_position_embeddings")
    | constant(True, "use_mean_pooling")
)


def embeddings(class_token: str, positions: str) -> tuple[Row, Row]:
    """Return the rows of the class token and the positions, given their stored names.

    llama.cpp's graph has the class token last. It adds the positions as they are in the file.
    """
    return (
        Row(class_token, "v.class_embd", "one one hidden", via=as_vector),
        Row(positions, "v.position_embd.weight", "one places hidden", via=class_token_last),
    )


def internvit(
    config: Mapping[str, Any], whole: Whole, rows: Sequence[Row], ratio: float, tiles: Tiles
) -> Architecture:
    """Describe the encoder.

    config: vision_config with the names of transformers' class
    rows:   all that an encoder can have
    ratio:  sides of a picture in patches after patches are joined, as a part of those before

    Raises ArchitectureError for what llama.cpp does not compute.
    """
    where = f"{whole.where}: vision_config"
    own = read_config(Intern, config, where)
    usual = {"hidden_act": "gelu", **without_nulls(config), **_lengths(config, where)}
    v = read_config(Vision, usual, where)
    side, scale = v.image_size // v.patch_size, round(1 / ratio) if ratio > 0 else 0
    ArchitectureError.raise_any(
        [
            *_norm_problems(v, own, where),
            *_tile_problems(side, scale, ratio, tiles, whole),
            *contradictions(whole, size=v.image_size, crop_size=v.image_size),
        ]
    )
    return Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, "internvl")
        | activation_keys(v.hidden_act, where)
        | {"clip.vision.projector.scale_factor": u32(scale)}
        | _numbers(tiles),
        rows=tuple(row for row in rows if _has(own, row)),
        sizes={
            "one": 1,
            "hidden": v.hidden_size,
            "three": 3 * v.hidden_size,
            "ffn": v.intermediate_size,
            "colours": 3,
            "patch": v.patch_size,
            "places": side * side + 1,
            "joined": v.hidden_size * scale**2,
            "text": whole.n_text,
        },
        n_layers=v.num_hidden_layers,
        tied=None,
        deviations=(
            *erf_warning(v.hidden_act, where),
            f"{whole.folder}: llama.cpp divides pictures into other tiles than the model's own"
            " code: it chooses them by a picture's size, not its shape, and adds black margins",
        ),
    )


def _numbers(tiles: Tiles) -> Keys:
    numbers = {"min": tiles.lowest, "max": tiles.highest}
    return {
        f"clip.vision.preproc_{name}_tiles": u32(n) for name, n in numbers.items() if n is not None
    }


def _has(own: Intern, row: Row) -> bool:
    """Return whether an encoder with these settings has the tensor of a row."""
    if row.name.endswith("_norm.weight"):
        return own.use_qk_norm
    if row.name.endswith((".attn_q.bias", ".attn_k.bias", ".attn_v.bias")):
        return own.attention_bias
    return own.norm_type != "rms_norm" or not row.name.endswith((".ln1.bias", ".ln2.bias"))


def _lengths(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return sizes that are stated as height and width; raise ArchitectureError if they differ."""
    pairs = {n: config.get(n) for n in ("image_size", "patch_size")}
    lists: dict[str, list[Any]] = {n: v for n, v in pairs.items() if isinstance(v, list)}
    ArchitectureError.raise_any(
        f"{where}: {name} is {shown(pair)}; llama.cpp computes squares"
        for name, pair in lists.items()
        if len(pair) != 2 or pair[0] != pair[1]
    )
    return {name: pair[0] for name, pair in lists.items()}


def _norm_problems(v: Vision, own: Intern, where: str) -> Iterator[str]:
    is_rms = (v.hidden_size, v.num_hidden_layers) == _RMS
    if own.norm_type != ("rms_norm" if is_rms else "layer_norm"):
        yield (
            f"{where}: norm_type is {shown(own.norm_type)}; llama.cpp computes RMS norms if"
            f" hidden_size is {_RMS[0]} and num_hidden_layers {_RMS[1]}, and layer norms if not"
        )
    elif own.use_qk_norm and not is_rms:
        yield f"{where}: queries and keys have RMS norms; llama.cpp would compute layer norms"


def _tile_problems(
    side: int, scale: int, ratio: float, tiles: Tiles, whole: Whole
) -> Iterator[str]:
    if scale < 1 or abs(1 / scale - ratio) > 1e-6 or side % scale:
        yield (
            f"{whole.where}: downsample_ratio is {ratio}; llama.cpp joins squares of a whole number"
            f" of the {side} x {side} patches of a tile"
        )
    if tiles.lowest not in (None, 1):
        yield (
            f"{whole.folder}: the smallest number of tiles is {tiles.lowest}; llama.cpp divides"
            " pictures as the model does only if it is 1"
        )
