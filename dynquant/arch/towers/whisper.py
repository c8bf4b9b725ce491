"""Whisper's encoder, which several larger models have: two convolutions, then usual layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from dynquant.arch.base import ModelTensor, Row
from dynquant.arch.settings import Settings, constant, reads
from dynquant.arch.towers import audio
from dynquant.arch.towers.audio import OUT, Audio
from dynquant.arch.towers.vision import biased
from dynquant.arrays import U8
from dynquant.errors import ArchitectureError
from dynquant.quants import ALL, QuantType
from dynquant.tensors import f32_bytes
from dynquant.transforms import column

IN = "model.audio_tower."
_TIMESCALE = 10000
"""The longest wave of computed positions."""

_LAYER = IN + "layers.{}."

FRAMES = 3000
"""Frames of a window, 10 ms each; llama.cpp fills the last window with silence."""


SETTINGS = Settings(
    read=reads(Audio, more=audio.NAMES),
    harmless=audio.HARMLESS,
    only=audio.ONLY | constant(1500, "max_source_positions"),
)
"""Settings of an encoder of windows of 30 seconds."""


def _convolution(number: int, n_in: str) -> tuple[Row, Row]:
    stored, name = f"{IN}conv{number}.", f"a.conv1d.{number}."
    return (
        Row(stored + "weight", name + "weight", f"hidden {n_in} kernel"),
        Row(stored + "bias", name + "bias", "hidden", via=column),
    )


CONVOLUTIONS = (*_convolution(1, "mels"), *_convolution(2, "hidden"))

POSITIONS = Row(IN + "embed_positions.weight", "a.position_embd.weight", "positions hidden")
"""Stored positions; models of Qwen compute the same."""

LAYERS = (
    *biased(_LAYER + "self_attn_layer_norm", OUT + "ln1", "hidden"),
    *biased(_LAYER + "self_attn.q_proj", OUT + "attn_q", "hidden hidden"),
    Row(_LAYER + "self_attn.k_proj.weight", OUT + "attn_k.weight", "hidden hidden"),
    *biased(_LAYER + "self_attn.v_proj", OUT + "attn_v", "hidden hidden"),
    *biased(_LAYER + "self_attn.out_proj", OUT + "attn_out", "hidden hidden"),
    *biased(_LAYER + "final_layer_norm", OUT + "ln2", "hidden"),
    *biased(_LAYER + "fc1", OUT + "ffn_up", "ffn hidden"),
    *biased(_LAYER + "fc2", OUT + "ffn_down", "hidden ffn"),
)
"""The keys have no bias."""

ROWS = (*CONVOLUTIONS, POSITIONS, *LAYERS, *biased(IN + "layer_norm", "a.post_ln", "hidden"))
"""All tensors of the encoder."""


def sizes(a: Audio, n_text: int) -> dict[str, int]:
    """Return the dimensions that the rows name."""
    return {
        "hidden": a.hidden_size,
        "ffn": a.intermediate_size,
        "mels": a.num_mel_bins,
        "kernel": 3,
        "positions": FRAMES // 2,
        "text": n_text,
    }


def silence(where: str, only: str) -> str:
    """Return the warning for models that leave out the silence after a sound.

    only: what the model's own code gives to the language model
    """
    return (
        f"{where}: llama.cpp fills the last 30 seconds of a sound with silence, and gives the"
        f" language model the silence too; the model's own code gives it only {only}"
    )


def stack_problems(a: Audio, factor: int, n_frames: int, where: str) -> Iterator[str]:
    """Yield a message if llama.cpp stops because of a wrong number of stacked frames.

    factor:   how many frames are stacked
    n_frames: of a window, when they are stacked
    """
    # llama.cpp rounds up with GGML_PAD, which is meant for powers of two, and expects the number
    # rounded down.
    stride = factor * a.hidden_size
    padded = (n_frames * a.hidden_size + stride - 1) & ~(stride - 1)
    if padded // stride != n_frames // factor:
        yield (
            f"{where}: hidden_size is {a.hidden_size}, of which {factor} frames are stacked;"
            f" llama.cpp miscounts them and stops at the first sound (it counts"
            f" {n_frames // factor}, and makes {padded // stride})"
        )


@dataclass(frozen=True)
class _Positions:
    """Positions that are not stored: sines, then cosines, float32 [1500, width].

    As in the model's own code, waves and angles are rounded to float32. Functions are computed in
    float64, so that every machine rounds to the same numbers.
    """

    width: int

    @property
    def shape(self) -> tuple[int, ...]:
        """[positions, width]."""
        return (FRAMES // 2, self.width)

    @property
    def stored(self) -> QuantType:
        """F32, as computed."""
        return ALL["F32"]

    def read(self, start: int, stop: int, into: U8) -> None:
        """Fill `into` with rows start..stop."""
        n = self.width // 2
        step = np.float32(-np.log(_TIMESCALE) / (n - 1))
        logarithms = step * np.arange(n, dtype=np.float32)
        waves = np.exp(logarithms.astype(np.float64)).astype(np.float32)
        angles = np.arange(start, stop, dtype=np.float32)[:, None] * waves
        found = [np.sin(angles.astype(np.float64)), np.cos(angles.astype(np.float64))]
        into[:] = f32_bytes(np.concatenate(found, axis=1).astype(np.float32))


def computed_positions(a: Audio, where: str) -> ModelTensor:
    """Return the positions of an encoder that does not store them.

    Raises ArchitectureError for a width without sines and cosines.
    """
    if a.hidden_size % 2 or a.hidden_size < 4:
        raise ArchitectureError(
            f"{where}: hidden_size is {a.hidden_size}; positions are as many sines as cosines, at"
            " least two"
        )
    return ModelTensor(POSITIONS.name, _Positions(a.hidden_size))
