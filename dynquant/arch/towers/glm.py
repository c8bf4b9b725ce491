"""The vision encoder that GLM-4.1V and its successors have: patches of two frames, gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, LayersCount, Positive, Truth, read_config
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.rotary import rotary_problems
from dynquant.arch.towers.vision import (
    OUT,
    Vision,
    activation_keys,
    biased,
    erf_warning,
    first_and_second_frame,
    vision_keys,
)
from dynquant.arch.towers.whole import CLIP, Whole
from dynquant.errors import ArchitectureError

IN = "model.visual."
LAYER = IN + "blocks.{}."
FRAMES, SIDE = 2, 2
"""Frames of a patch, and patches of a side that become one token."""


@dataclass(frozen=True)
class Glm:
    """Settings of the encoder, with the defaults of GLM-4.1V's class."""

    depth: LayersCount = 24
    hidden_size: Count = 1536
    num_heads: Count = 12
    intermediate_size: Count = 13696
    out_hidden_size: Count = 4096
    image_size: Count = 336
    patch_size: Count = 14
    rms_norm_eps: Positive = 1e-5
    hidden_act: str = "silu"
    attention_bias: Truth = False


def _matrix(stored: str, name: str, shape: str, *, has_bias: bool) -> tuple[Row, ...]:
    rows = biased(stored, name, shape)
    return rows if has_bias else rows[:1]


def layer_rows(*, has_bias: bool, biased_everywhere: bool) -> tuple[Row, ...]:
    """Return the rows of a layer without norms of heads.

    has_bias: whether queries, keys and values have biases; biased_everywhere: and all others
    """
    attn, mlp, all_have = LAYER + "attn.", LAYER + "mlp.", has_bias and biased_everywhere
    return (
        Row(LAYER + "norm1.weight", OUT + "ln1.weight", "hidden"),
        *_matrix(attn + "qkv", OUT + "attn_qkv", "three hidden", has_bias=has_bias),
        *_matrix(attn + "proj", OUT + "attn_out", "hidden hidden", has_bias=all_have),
        Row(LAYER + "norm2.weight", OUT + "ln2.weight", "hidden"),
        *_matrix(mlp + "gate_proj", OUT + "ffn_gate", "ffn hidden", has_bias=all_have),
        *_matrix(mlp + "up_proj", OUT + "ffn_up", "ffn hidden", has_bias=all_have),
        *_matrix(mlp + "down_proj", OUT + "ffn_down", "hidden ffn", has_bias=all_have),
    )


MERGER = (
    Row(IN + "post_layernorm.weight", "v.post_ln.weight", "hidden"),
    *biased(IN + "downsample", "mm.patch_merger", "text hidden merged merged"),
    Row(IN + "merger.proj.weight", "mm.model.fc.weight", "text text"),
    *biased(IN + "merger.post_projection_norm", "mm.post_norm", "text"),
    Row(IN + "merger.gate_proj.weight", "mm.gate.weight", "context text"),
    Row(IN + "merger.up_proj.weight", "mm.up.weight", "context text"),
    Row(IN + "merger.down_proj.weight", "mm.down.weight", "text context"),
)


def _problems(own: Glm, config: Mapping[str, Any], whole: Whole, where: str) -> Iterator[str]:
    yield from rotary_problems(config, own.hidden_size // own.num_heads, where)
    yield from contradictions(
        whole, patch_size=own.patch_size, merge_size=SIDE, temporal_patch_size=FRAMES
    )
    if own.out_hidden_size != whole.n_text:
        yield (
            f"{where}: out_hidden_size is {own.out_hidden_size}, and the language model has"
            f" hidden_size {whole.n_text}; take both from one model"
        )


def encoder(config: Mapping[str, Any], whole: Whole, kind: str) -> tuple[Architecture, Glm]:
    """Describe the encoder without its layers; `ffn` and `context` are the caller's."""
    where = f"{whole.where}: vision_config"
    own = read_config(Glm, config, where)
    ArchitectureError.raise_any(_problems(own, config, whole, where))
    v = Vision(
        own.hidden_size,
        own.intermediate_size,
        own.depth,
        own.num_heads,
        own.image_size,
        own.patch_size,
        own.rms_norm_eps,
        own.hidden_act,
    )
    found = Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, kind) | activation_keys(own.hidden_act, where),
        rows=(
            *first_and_second_frame(
                IN + "patch_embed.proj.weight", "hidden colours frames patch patch"
            ),
            Row(IN + "patch_embed.proj.bias", "v.patch_embd.bias", "hidden"),
        ),
        sizes={
            "hidden": own.hidden_size,
            "three": 3 * own.hidden_size,
            "head": own.hidden_size // own.num_heads,
            "colours": 3,
            "frames": FRAMES,
            "patch": own.patch_size,
            "positions": (own.image_size // own.patch_size) ** 2,
            "merged": SIDE,
            "text": own.out_hidden_size,
        },
        n_layers=own.depth,
        tied=None,
        ignored={r".*\.position_ids": "numbers from zero on, which need no tensor"},
        deviations=erf_warning(own.hidden_act, where),
    )
    return found, own
