"""MoonViT, a vision encoder whose positions are learned and interpolated, and rotary, too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from dynquant.arch.base import Architecture, Form, Row, Via
from dynquant.arch.config import Count, LayersCount, read_config
from dynquant.arch.settings import Only, harmless, reads
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.rotary import one_direction_after_the_other, rotary_problems
from dynquant.arch.towers.vision import GELU, OUT, Vision, biased, vision_keys
from dynquant.arch.towers.whole import CLIP, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped, rows_between
from dynquant.untrusted import shown

_IN = "model.vision_tower."
_LAYER = _IN + "encoder.blocks.{}."
EPSILON = 1e-5
"""Of all norms in the model's own code."""

SIDE = 2
"""Patches of a side that become one token."""


@dataclass(frozen=True)
class MoonViT:
    """Settings of the encoder, with the defaults of its class."""

    hidden_size: Count = 1152
    intermediate_size: Count = 4304
    num_hidden_layers: LayersCount = 27
    num_attention_heads: Count = 16
    patch_size: Count = 14
    init_pos_emb_height: Count = 64
    init_pos_emb_width: Count = 64


def flat(source: TensorSource) -> TensorSource:
    """Return a table of positions [height, width, hidden] as a matrix."""
    return Reshaped(source, (source.shape[0] * source.shape[1], source.shape[2]))


def _part(source: TensorSource, number: int, n_head: int) -> TensorSource:
    """Return queries, keys or values (0, 1, 2) of a fused matrix or bias, in llama.cpp's order."""
    n = source.shape[0] // 3
    found = rows_between(source, number * n, (number + 1) * n)
    return found if number == 2 else one_direction_after_the_other(found, n_head)


def separate(n_head: int) -> Iterator[Row]:
    """Yield the rows of queries, keys and values as three matrices."""
    for number, name in enumerate(("attn_q", "attn_k", "attn_v")):
        via = partial(_part, number=number, n_head=n_head)
        yield Row(_LAYER + "wqkv.weight", f"{OUT}{name}.weight", "three hidden", via=via)
        yield Row(_LAYER + "wqkv.bias", f"{OUT}{name}.bias", "three", via=via)


def fused_rows(n_head: int) -> tuple[Row, Row]:
    """Return the rows of queries, keys and values as one matrix."""
    via = partial(one_direction_after_the_other, n_head=2 * n_head, n_kept=n_head)
    weight, bias = biased(_LAYER + "wqkv", OUT + "attn_qkv", "three hidden")
    return replace(weight, via=via), replace(bias, via=via)


def encoder(via: Via | None, attention: tuple[Row, ...]) -> tuple[Row, ...]:
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


def projector(stored: str, first: str, second: str, *others: tuple[str, str]) -> tuple[Row, ...]:
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


def _problems(own: MoonViT, config: Mapping[str, Any], where: str) -> Iterator[str]:
    yield from rotary_problems(config, own.hidden_size // own.num_attention_heads, where)
    if own.init_pos_emb_width != own.init_pos_emb_height:
        yield (
            f"{where}: init_pos_emb_height is {own.init_pos_emb_height} and init_pos_emb_width"
            f" {own.init_pos_emb_width}; llama.cpp computes a square"
        )


def moonvit(config: Mapping[str, Any], whole: Whole, kind: str) -> tuple[Architecture, MoonViT]:
    """Describe the encoder without its rows."""
    where = f"{whole.where}: vision_config"
    own = read_config(MoonViT, config, where)
    ArchitectureError.raise_any(
        [
            *_problems(own, config, where),
            *contradictions(whole, patch_size=own.patch_size, merge_kernel_size=SIDE),
        ]
    )
    v = Vision(
        own.hidden_size,
        own.intermediate_size,
        own.num_hidden_layers,
        own.num_attention_heads,
        own.init_pos_emb_height * own.patch_size,
        own.patch_size,
        EPSILON,
    )
    scale = {"clip.vision.projector.scale_factor": u32(SIDE)}
    found = Architecture(
        name=CLIP,
        keys=vision_keys(v, whole, kind) | GELU | scale,
        rows=(),
        sizes={
            "hidden": own.hidden_size,
            "three": 3 * own.hidden_size,
            "merged": SIDE**2 * own.hidden_size,
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


READ = reads(MoonViT, more="rope_theta")
TRAINED = harmless("how the checkpoint was made", "initializer_range _attn_implementation")


def one(value: object, name: str) -> dict[str, Only]:
    """Return a setting with the one value that llama.cpp computes."""
    return {name: Only((value,), f"llama.cpp computes {shown(value)}")}


MERGED = one([SIDE, SIDE], "merge_kernel_size")
