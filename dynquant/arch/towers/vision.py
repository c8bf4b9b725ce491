"""Vision encoders: the keys that all have, and the rows of a usual encoder's layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

from dynquant.arch.base import Form, Row, Via
from dynquant.arch.config import Count, LayersCount, Positive
from dynquant.arch.towers import processor
from dynquant.arch.towers.whole import Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, boolean, f32, f32s, string, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import Reshaped, Rows, rows_between, rows_of_each
from dynquant.untrusted import shown

_EXCHANGED = frozenset(
    {"mlp", "qwen2vl_merger", "qwen2.5vl_merger", "gemma3", "idefics3", "resampler", "minicpmv4_6"}
)
"""Projectors of which old files had the feed-forward's matrices under each other's names: llama.cpp
exchanges them if the second has as many inputs as the encoder is wide."""

OUT = "v.blk.{}."


@dataclass(frozen=True)
class Vision:
    """Settings of a vision encoder, with the names of transformers' SigLIP and CLIP."""

    hidden_size: Count
    intermediate_size: Count
    num_hidden_layers: LayersCount
    num_attention_heads: Count
    image_size: Count
    patch_size: Count
    layer_norm_eps: Positive = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"


def vision_keys(v: Vision, whole: Whole, kind: str, *, of_several: bool = False) -> Keys:
    """Return the keys of every vision encoder, in the order of llama.cpp's converter.

    kind:       llama.cpp's name of the projector
    of_several: whether the file has an audio encoder too, of another kind

    Raises ArchitectureError for an encoder or pictures that llama.cpp cannot compute.
    """
    ArchitectureError.raise_any(_problems(v, whole, kind))
    norm = processor.norm(whole)
    return {
        "clip.has_vision_encoder": boolean(True),
        "clip.vision.projection_dim": u32(whole.n_text),
        "clip.vision.image_size": u32(v.image_size),
        "clip.vision.patch_size": u32(v.patch_size),
        "clip.vision.embedding_length": u32(v.hidden_size),
        "clip.vision.feed_forward_length": u32(v.intermediate_size),
        "clip.vision.block_count": u32(v.num_hidden_layers),
        "clip.vision.attention.head_count": u32(v.num_attention_heads),
        "clip.vision.image_mean": f32s(norm.image_mean),
        "clip.vision.image_std": f32s(norm.image_std),
        f"clip.{'vision.' if of_several else ''}projector_type": string(kind),
        "clip.vision.attention.layer_norm_epsilon": f32(v.layer_norm_eps),
    }


def of_several(keys: Keys) -> Keys:
    """Return the keys of a vision encoder as those of one beside an audio encoder."""
    kind = "clip.projector_type"
    return {"clip.vision.projector_type" if n == kind else n: v for n, v in keys.items()}


def vision_sizes(v: Vision, whole: Whole) -> dict[str, int]:
    """Return the dimensions that rows of vision encoders name; pictures are squares of colours."""
    return {
        "hidden": v.hidden_size,
        "ffn": v.intermediate_size,
        "colours": 3,
        "patch": v.patch_size,
        "patches": (v.image_size // v.patch_size) ** 2,
        "text": whole.n_text,
    }


def _problems(v: Vision, whole: Whole, kind: str) -> Iterator[str]:
    if v.hidden_size % v.num_attention_heads:
        yield (
            f"{whole.where}: vision_config has hidden_size {v.hidden_size}, which is not a multiple"
            f" of its {v.num_attention_heads} heads"
        )
    if v.intermediate_size == v.hidden_size and kind in _EXCHANGED:
        yield (
            f"{whole.where}: vision_config has intermediate_size equal to hidden_size"
            f" {v.hidden_size}; llama.cpp would take the feed-forward's two matrices for each other"
        )
    yield from processor.colour_problems(whole)


GELU = {"clip.use_gelu": boolean(True)}
"""GELU in its tanh form. llama.cpp's default is the quick form, x sigmoid(1.702 x)."""

SILU = {"clip.use_silu": boolean(True)}

_ACTIVATIONS: Mapping[str, Keys] = {
    "gelu_pytorch_tanh": GELU,
    "gelu_new": GELU,
    "gelu_fast": GELU,
    "gelu": GELU,
    "silu": SILU,
    "swish": SILU,
    "quick_gelu": {},
}


def activation_keys(name: str, where: str) -> Keys:
    """Return the keys of a vision encoder's activation.

    Raises ArchitectureError if llama.cpp does not compute it.
    """
    if name not in _ACTIVATIONS:
        raise ArchitectureError(
            f"{where}: hidden_act is {shown(name)}; llama.cpp computes vision encoders with"
            f" {', '.join(_ACTIVATIONS)}"
        )
    return _ACTIVATIONS[name]


def erf_warning(name: str, where: str) -> tuple[str, ...]:
    """Return a warning for the exact GELU, which llama.cpp replaces by its tanh form."""
    if name != "gelu":
        return ()
    return (
        f"{where}: hidden_act is 'gelu'; llama.cpp approximates it by its tanh form, which differs"
        " by at most 0.0005",
    )


def biased(stored: str, name: str, shape: str, *, optional: bool = False) -> tuple[Row, Row]:
    """Return the rows of a matrix or norm and of its bias.

    optional: whether a model may have no bias
    """
    return (
        Row(f"{stored}.weight", f"{name}.weight", shape),
        Row(f"{stored}.bias", f"{name}.bias", shape.split()[0], optional=optional),
    )


def fused(stored: str, name: str, shape: str, parts: Mapping[str, int]) -> tuple[Row, ...]:
    """Return the rows of matrices that are stored below one another as one, each with its bias.

    parts: the matrices in order, with their numbers of rows: {"attn_q": 64, …}
    """
    found: list[Row] = []
    start = 0
    for part, n in parts.items():
        via = partial(rows_between, start=start, stop=start + n)
        found += [
            Row(f"{stored}.weight", f"{name}{part}.weight", shape, via=via),
            Row(f"{stored}.bias", f"{name}{part}.bias", shape.split()[0], via=via),
        ]
        start += n
    return tuple(found)


def spelled(rows: Sequence[Row], before: str, *after: str) -> tuple[Row, ...]:
    """Return rows that some programs store under names with another beginning.

    after: what these programs write in place of `before`
    """
    return tuple(
        row
        if before not in row.stored
        else Row(
            row.stored,
            row.name,
            row.shape,
            row.layers,
            row.optional,
            row.parts,
            row.via,
            (
                *row.forms,
                *(
                    Form(row.stored.replace(before, other), row.shape, layout=other, via=row.via)
                    for other in after
                ),
            ),
            row.times,
        )
        for row in rows
    )


def frame(source: TensorSource, number: int) -> TensorSource:
    """Return a convolution over pictures from one over several frames.

    source: [outputs, colours, frames, height, width]; number: of the frame
    """
    n_out, n_colours, n_frames, height, width = source.shape
    matrices = Reshaped(source, (n_out * n_colours, n_frames * height, width))
    found = rows_of_each(matrices, number * height, (number + 1) * height)
    return Reshaped(found, (n_out, n_colours, height, width))


def first_and_second_frame(stored: str, shape: str) -> tuple[Row, Row]:
    """Return the rows of a patch embedding over two frames: llama.cpp has a tensor for each."""
    vias: tuple[Via, Via] = (partial(frame, number=0), partial(frame, number=1))
    return (
        Row(stored, "v.patch_embd.weight", shape, via=vias[0]),
        Row(stored, "v.patch_embd.weight.1", shape, via=vias[1]),
    )


def class_token_last(source: TensorSource) -> TensorSource:
    """Return positions with that of the class token last, where some graphs of llama.cpp need it.

    source: [1, 1 + patches, width] or [1 + patches, width], that of the class token first
    """
    n, width = source.shape[-2:]
    return Rows(Reshaped(source, (n, width)), (n, width), lambda rows: (rows + 1) % n)


def as_vector(source: TensorSource) -> TensorSource:
    """Return a tensor's elements in one dimension, such as those of a class token [1, 1, width]."""
    return Reshaped(source, (prod(source.shape),))


def stated(config: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """Return settings with the usual names beside a family's own: usual="its own name"."""
    return {**config, **{usual: config[own] for usual, own in names.items() if own in config}}
