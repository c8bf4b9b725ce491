"""Ultravox's audio encoder: Whisper's, whose frames are stacked, normed, and gated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import Count, Natural, Truth, read_config
from dynquant.arch.towers import audio, whisper
from dynquant.arch.towers.audio import audio_keys, read_audio
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.checkpoint.safetensors import open_checkpoint
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.text_settings import text_settings
from dynquant.untrusted import shown

_JOIN = "multi_modal_projector."
_LAST = _JOIN + "linear_2.weight"
_ROWS = (
    Row(f"model.{_JOIN}ln_pre.weight", "mm.a.norm_pre.weight", "stacked"),
    Row(f"model.{_JOIN}linear_1.weight", "mm.a.mlp.1.weight", "2*gated stacked"),
    Row(f"model.{_JOIN}ln_mid.weight", "mm.a.norm_mid.weight", "gated"),
    Row(f"model.{_LAST}", "mm.a.mlp.2.weight", "text gated"),
)
_WHISPER = {
    "d_model": 384,
    "encoder_ffn_dim": 1536,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "num_mel_bins": 80,
}
"""Defaults of transformers' WhisperConfig."""


@dataclass(frozen=True)
class _Ultravox:
    hidden_size: Count = 4096
    stack_factor: Count = 8
    projector_act: str = "swiglu"
    projector_ln_mid: Truth = False
    num_projector_layers: Natural = 0
    audio_latency_block_size: Natural = 0


def ultravox(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the audio encoder of an Ultravox; hidden_size is the width before the gate."""
    where = f"{whole.where}: audio_config"
    stated = {name: n for name, n in _WHISPER.items() if _usual(name, config) is None}
    a = read_audio({**config, **stated}, where)
    its = read_config(_Ultravox, whole.config, whole.where)
    ArchitectureError.raise_any(
        [
            *_problems(its, whole.where),
            *whisper.stack_problems(a, its.stack_factor, whisper.FRAMES // 2, where),
        ]
    )
    n_text = _n_text(whole)
    return Architecture(
        name=CLIP,
        keys=audio_keys(a, whole, "ultravox", where, n_text=n_text)
        | {"clip.audio.projector.stack_factor": u32(its.stack_factor)},
        rows=(*whisper.ROWS, *_ROWS),
        sizes={
            **whisper.sizes(a, n_text),
            "stacked": its.stack_factor * a.hidden_size,
            "gated": its.hidden_size // 2,
        },
        n_layers=a.num_hidden_layers,
        tied=None,
        deviations=(whisper.silence(where, "the sound, and does not attend to the silence"),),
    )


def _usual(name: str, config: Mapping[str, Any]) -> object:
    """Return the value of one of Whisper's settings under this or its usual name."""
    return config.get(name, config.get(audio.OWN_NAMES.get(name, name)))


def _n_text(whole: Whole) -> int:
    """Return the width of the language model, which may be named only (`text_model_id`)."""
    if text_settings(whole.config) is not None:
        return whole.n_text
    for name, tensor in open_checkpoint(whole.folder, elsewhere=whole.elsewhere).tensors.items():
        if name.endswith(_LAST) and len(tensor.shape) == 2:
            return tensor.shape[0]
    raise ArchitectureError(f"{whole.folder}: has no {_LAST}; download the weights again")


def _problems(its: _Ultravox, where: str) -> Iterator[str]:
    if its.hidden_size % 2:
        yield f"{where}: hidden_size is {its.hidden_size}; it must be even, for its half is a gate"
    if its.projector_act != "swiglu":
        yield f"{where}: projector_act is {shown(its.projector_act)}; llama.cpp computes swiglu"
    if not its.projector_ln_mid:
        yield (
            f"{where}: projector_ln_mid is false, which norms the projector's output; llama.cpp"
            " computes the norm before the last matrix, which Ultravox has since version 0.5"
        )
    if its.num_projector_layers:
        yield (
            f"{where}: num_projector_layers is {its.num_projector_layers}; llama.cpp computes a"
            " projector without layers"
        )
    if its.audio_latency_block_size:
        yield (
            f"{where}: audio_latency_block_size is {its.audio_latency_block_size}; llama.cpp"
            " computes attention over the whole sound"
        )


PROJECTORS = {
    "UltravoxModel": (
        Tower(
            ultravox,
            r"(audio_tower|multi_modal_projector)\.",
            whisper.SETTINGS,
            "audio_config",
            named="audio_model_id",
        ),
    ),
}
