"""What the encoders of Gemma 4 have in common: their processor, and matrices within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from dynquant.arch.base import Row
from dynquant.arch.towers.processor import contradictions
from dynquant.arch.towers.whole import Whole
from dynquant.arrays import F32
from dynquant.keys import Keys, boolean, f32, string, u32
from dynquant.tensors import TensorSource
from dynquant.text_settings import text_settings
from dynquant.transforms import Columns, Elementwise, Reshaped
from dynquant.untrusted import shown

SIZE = 224
"""Pixels of a side, which llama.cpp reads and does not use: pictures have any size."""

_MEANS: dict[str, Any] = {
    "do_normalize": False,
    "image_mean": [0.0, 0.0, 0.0],
    "image_std": [1.0, 1.0, 1.0],
}
_MAX_TOKENS = 280
_FEWEST, _MOST = 70, 1120
"""Limits of llama.cpp on the tokens of a picture."""

_CAUSAL = (1536, 2560)
"""Widths of the language models (E2B, E4B) whose pictures llama.cpp computes causally."""

_LARGEST = np.finfo(np.float32).max


def with_means(whole: Whole) -> Whole:
    """Return the model with its processor's defaults, which leave the colours as they are."""
    return replace(whole, images={**_MEANS, **whole.images})


def of_text(whole: Whole) -> Mapping[str, Any]:
    """Return the settings of the language model."""
    return text_settings(whole.config) or {}


def is_causal(whole: Whole) -> bool:
    """Return whether the tokens of a picture see only those before them."""
    return of_text(whole).get("use_bidirectional_attention") != "vision"


def picture_problems(whole: Whole, patch_size: int, pooling: int) -> Iterator[str]:
    """Yield what llama.cpp cannot compute, and what the processor contradicts.

    patch_size: pixels of a side; pooling: patches of a side that become one

    llama.cpp chooses by the language model's width whether the tokens of a picture see one another.
    """
    yield from contradictions(whole, patch_size=patch_size, pooling_kernel_size=pooling)
    if is_causal(whole) != (whole.n_text in _CAUSAL):
        stated = of_text(whole).get("use_bidirectional_attention")
        yield (
            f"{whole.where}: use_bidirectional_attention is {shown(stated)} for a language model of"
            f" width {whole.n_text}; llama.cpp computes pictures causally for the widths"
            f" {_CAUSAL[0]} and {_CAUSAL[1]}, and for no others"
        )


def picture_warnings(whole: Whole) -> Iterator[str]:
    """Yield what differs for some pictures."""
    most = whole.images.get("max_soft_tokens", _MAX_TOKENS)
    yield (
        f"{whole.folder}: the model's processor scales every picture to about {shown(most)} tokens;"
        f" llama.cpp keeps the size of pictures of {_FEWEST} to {_MOST} tokens, unless both"
        f" --image-min-tokens and --image-max-tokens are {shown(most)}"
    )


def clippable(stored: str, name: str, shape: str, *, bounds: bool) -> tuple[Row, ...]:
    """Return the rows of a matrix, and of the bounds of what goes in and comes out."""
    return (
        Row(f"{stored}.linear.weight", f"{name}.weight", shape),
        *(
            Row(f"{stored}.{one}", f"{name}.{one}", "", via=_bound)
            for one in ("input_max", "input_min", "output_max", "output_min")
            if bounds
        ),
    )


def _bound(source: TensorSource) -> TensorSource:
    """Return a number as a vector; one that is infinite is no bound."""

    def finite(x: F32) -> F32:
        return np.clip(x, -_LARGEST, _LARGEST)

    return Elementwise(Reshaped(source, (1,)), finite)


def patches(source: TensorSource) -> TensorSource:
    """Return a convolution over pictures from a matrix whose inputs are ordered by pixel.

    source: [outputs, height * width * colours]
    """
    n_out, n_in = source.shape
    side = round((n_in // 3) ** 0.5)
    return Reshaped(by_colour(source), (n_out, 3, side, side))


def by_colour(source: TensorSource) -> TensorSource:
    """Return rows whose elements are ordered by colour and pixel from those by pixel and colour."""
    pixels = source.shape[-1] // 3
    order = np.arange(3 * pixels, dtype=np.int64).reshape(pixels, 3).T.reshape(-1)
    return Columns(source, order, 1)


def audio_keys(
    whole: Whole, kind: str, *, width: int, ffn: int, layers: int, heads: int, mels: int
) -> Keys:
    """Return the keys of an audio encoder, in the order of llama.cpp's converter.

    kind:  llama.cpp's name of the projector
    mels:  the numbers that stand for each step of time
    """
    return {
        "clip.has_audio_encoder": boolean(True),
        "clip.audio.projection_dim": u32(whole.n_text),
        "clip.audio.embedding_length": u32(width),
        "clip.audio.feed_forward_length": u32(ffn),
        "clip.audio.block_count": u32(layers),
        "clip.audio.attention.head_count": u32(heads),
        "clip.audio.projector_type": string(kind),
        "clip.audio.num_mel_bins": u32(mels),
        "clip.audio.attention.layer_norm_epsilon": f32(1e-6),
    }
