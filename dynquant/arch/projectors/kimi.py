"""MoonViT: the vision encoder of Kimi-VL, Kimi-K2.5 and GLM-5.2-Vision.

Positions are learned and interpolated, and rotary in two directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Form, Row, Via
from dynquant.arch.config import Count, LayersCount, Positive, read_config
from dynquant.arch.settings import Only, Settings, harmless, reads
from dynquant.arch.towers.limits import pixels, reduced
from dynquant.arch.towers.rotary import one_direction_after_the_other, rotary_problems
from dynquant.arch.towers.vision import GELU, OUT, Vision, biased, stated, vision_keys
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped, rows_between
from dynquant.untrusted import shown

_IN = "model.vision_tower."
_LAYER = _IN + "encoder.blocks.{}."
_EPSILON = 1e-5
"""Of all norms in the model's own code."""

_SIDE = 2
"""Patches of a side that become one token."""

_MOST_TOKENS = 1024
"""llama.cpp's limit of tokens for a picture of a Kimi-VL."""


@dataclass(frozen=True)
class _Moon:
    """Settings of the encoder, with the defaults of its class."""

    hidden_size: Count = 1152
    intermediate_size: Count = 4304
    num_hidden_layers: LayersCount = 27
    num_attention_heads: Count = 16
    patch_size: Count = 14
    init_pos_emb_height: Count = 64
    init_pos_emb_width: Count = 64


@dataclass(frozen=True)
class _Joined:
    """Settings of Kimi-K2.5's projector."""

    projector_ln_eps: Positive = _EPSILON
    mm_hidden_size: Count | None = None
    text_hidden_size: Count | None = None


@dataclass(frozen=True)
class _Limits:
    """Patches that the image processors permit, by the names of the three."""

    in_token_limit: Count = 4096
    in_patch_limit: Count | None = None
    max_patches: Count = 16384


def _flat(source: TensorSource) -> TensorSource:
    """Return a table of positions [height, width, hidden] as a matrix."""
    return Reshaped(source, (source.shape[0] * source.shape[1], source.shape[2]))


def _part(source: TensorSource, number: int, n_head: int) -> TensorSource:
    """Return queries, keys or values (0, 1, 2) of a fused matrix or bias, in llama.cpp's order."""
    n = source.shape[0] // 3
    found = rows_between(source, number * n, (number + 1) * n)
    return found if number == 2 else one_direction_after_the_other(found, n_head)


def _separate(n_head: int) -> Iterator[Row]:
    for number, name in enumerate(("attn_q", "attn_k", "attn_v")):
        via = partial(_part, number=number, n_head=n_head)
        yield Row(_LAYER + "wqkv.weight", f"{OUT}{name}.weight", "three hidden", via=via)
        yield Row(_LAYER + "wqkv.bias", f"{OUT}{name}.bias", "three", via=via)


def _fused(n_head: int) -> tuple[Row, Row]:
    via = partial(one_direction_after_the_other, n_head=2 * n_head, n_kept=n_head)
    weight, bias = biased(_LAYER + "wqkv", OUT + "attn_qkv", "three hidden")
    return replace(weight, via=via), replace(bias, via=via)


def _encoder(via: Via | None, attention: tuple[Row, ...]) -> tuple[Row, ...]:
    """Return the encoder's rows; via: of the table of positions."""
    positions = _IN + "patch_embed.pos_emb.weight"
    return (
        *biased(_IN + "patch_embed.proj", "v.patch_embd", "hidden colours patch patch"),
        Row(positions, "v.position_embd.weight", "side side hidden", via=via),
        *biased(_LAYER + "norm0", OUT + "ln1", "hidden"),
        *attention,
        *biased(_LAYER + "wo", OUT + "attn_out", "hidden hidden"),
        *biased(_LAYER + "norm1", OUT + "ln2", "hidden"),
        *biased(_LAYER + "mlp.fc0", OUT + "ffn_up", "ffn hidden"),
        *biased(_LAYER + "mlp.fc1", OUT + "ffn_down", "hidden ffn"),
        *biased(_IN + "encoder.final_layernorm", "v.post_ln", "hidden"),
    )


def _projector(stored: str, first: str, second: str, *others: tuple[str, str]) -> tuple[Row, ...]:
    """Return the projector's rows.

    first, second: names of its two matrices; others: the same, as other programs store them
    """
    rows = (
        *biased(stored + "pre_norm", "mm.input_norm", "hidden"),
        *biased(stored + first, "mm.1", "merged merged"),
        *biased(stored + second, "mm.2", "text merged"),
    )
    spelled = {first: [one for one, _ in others], second: [two for _, two in others]}
    return tuple(
        replace(
            row,
            forms=tuple(
                Form(row.stored.replace(name, other), row.shape, layout=other)
                for name, found in spelled.items()
                if name in row.stored
                for other in found
            ),
        )
        for row in rows
    )


def _problems(own: _Moon, config: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from rotary_problems(config, own.hidden_size // own.num_attention_heads, where)
    if own.init_pos_emb_width != own.init_pos_emb_height:
        yield (
            f"{where}: init_pos_emb_height is {own.init_pos_emb_height} and init_pos_emb_width"
            f" {own.init_pos_emb_width}; llama.cpp computes a square"
        )


def _moonvit(config: Mapping[str, Any], whole: Whole, kind: str) -> tuple[Architecture, _Moon]:
    """Describe the encoder without its rows."""
    where = f"{whole.where}: vision_config"
    own = read_config(_Moon, config, where)
    ArchitectureError.raise_any(_problems(own, config, where))
    v = Vision(
        own.hidden_size,
        own.intermediate_size,
        own.num_hidden_layers,
        own.num_attention_heads,
        own.init_pos_emb_height * own.patch_size,
        own.patch_size,
        _EPSILON,
    )
    scale = {"clip.vision.projector.scale_factor": u32(_SIDE)}
    found = Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, kind) | GELU | scale,
        rows=(),
        sizes={
            "hidden": own.hidden_size,
            "three": 3 * own.hidden_size,
            "merged": _SIDE**2 * own.hidden_size,
            "ffn": own.intermediate_size,
            "side": own.init_pos_emb_height,
            "colours": 3,
            "patch": own.patch_size,
            "text": whole.n_text,
        },
        n_layers=own.num_hidden_layers,
        tied=None,
        ignored={r".*pos_emb\.time_weight": "positions in time, which pictures do not have"},
    )
    return found, own


def kimivl(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Kimi-VL."""
    found, own = _moonvit(config, whole, "kimivl")
    where = f"{whole.folder}: settings of the image processor"
    limit = read_config(_Limits, whole.images, where).in_token_limit
    side = own.init_pos_emb_height
    return replace(
        found,
        rows=(
            *_encoder(_flat, tuple(_separate(own.num_attention_heads))),
            *_projector("model.multi_modal_projector.", "linear_1", "linear_2"),
        ),
        deviations=(
            f"{whole.where}: llama.cpp interpolates the positions of pictures that have not"
            f" {side} x {side} patches linearly, the model's own code cubically",
            *reduced(limit // _SIDE**2, _MOST_TOKENS, f"{where}: in_token_limit {limit}"),
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
    found, own = _moonvit(usual, whole, "kimik25")
    joined = read_config(_Joined, config, where)
    ArchitectureError.raise_any(_joined_problems(joined, own, whole, where))
    images = f"{whole.folder}: settings of the image processor"
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
            *_encoder(None, _fused(own.num_attention_heads)),
            *_projector(
                "model.mm_projector.",
                "proj.0",
                "proj.2",
                ("proj.linear_1", "proj.linear_2"),
                ("linear_1", "linear_2"),
            ),
        ),
    )


def _joined_problems(joined: _Joined, own: _Moon, whole: Whole, where: str) -> Iterator[str]:
    epsilons = {
        "vision_config: projector_ln_eps": joined.projector_ln_eps,
        "projection_layer_norm_eps": whole.config.get("projection_layer_norm_eps"),
    }
    for name, value in epsilons.items():
        if value not in (None, _EPSILON):
            yield (
                f"{whole.where}: {name} is {shown(value)}; llama.cpp computes the norms of the"
                f" encoder and of the projector alike, with {_EPSILON}"
            )
    widths = {
        "mm_hidden_size": (joined.mm_hidden_size, own.hidden_size),
        "text_hidden_size": (joined.text_hidden_size, whole.n_text),
    }
    for name, (value, expected) in widths.items():
        if value not in (None, expected):
            yield f"{where}: {name} is {value}; llama.cpp computes {expected}"


def _one(value: object, name: str) -> dict[str, Only]:
    return {name: Only((value,), f"llama.cpp computes {shown(value)}")}


_MERGED = _one([_SIDE, _SIDE], "merge_kernel_size")
_TRAINED = harmless("how the checkpoint was made", "initializer_range _attn_implementation")
_KIMIVL = Settings(read=reads(_Moon, more="rope_theta"), harmless=_TRAINED, only=_MERGED)
_OF_KIMIK25 = Settings(
    read=reads(
        _Moon,
        _Joined,
        more="rope_theta vt_hidden_size vt_intermediate_size vt_num_hidden_layers"
        " vt_num_attention_heads pos_emb_height pos_emb_width",
    ),
    harmless=_TRAINED
    | harmless("for videos", "init_pos_emb_time pos_emb_time video_attn_type pos_emb_type"),
    only=_MERGED
    | _one("gelu", "projector_hidden_act")
    | _one("patchmerger", "mm_projector_type")
    | _one("sd2_tpool", "merge_type")
    | _one("gelu_pytorch_tanh", "hidden_act"),
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
