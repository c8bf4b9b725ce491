"""Voxtral's audio encoder: Whisper's, whose frames are stacked four by four."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Architecture, Row
from dynquant.arch.config import read_config
from dynquant.arch.towers import whisper
from dynquant.arch.towers.audio import Audio, audio_keys, read_audio
from dynquant.arch.towers.whole import CLIP, Tower, Whole
from dynquant.errors import ArchitectureError
from dynquant.keys import u32
from dynquant.untrusted import shown

_JOIN = "model.multi_modal_projector."
_ROWS = (
    Row(_JOIN + "linear_1.weight", "mm.a.mlp.1.weight", "text ffn"),
    Row(_JOIN + "linear_2.weight", "mm.a.mlp.2.weight", "text text"),
)


@dataclass(frozen=True)
class _Voxtral:
    projector_hidden_act: str = "gelu"


def voxtral(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the audio encoder of a Voxtral, which stacks frames up to the width of its FFN."""
    where = f"{whole.where}: audio_config"
    a = read_audio(config, where)
    its = read_config(_Voxtral, whole.config, whole.where)
    ArchitectureError.raise_any(_problems(a, its, whole, where))
    factor = a.intermediate_size // a.hidden_size
    return Architecture(
        name=CLIP,
        keys=audio_keys(a, whole, "voxtral", where, n_text=whole.n_text)
        | {"clip.audio.projector.stack_factor": u32(factor)},
        rows=(*whisper.ROWS, *_ROWS),
        sizes=whisper.sizes(a, whole.n_text),
        n_layers=a.num_hidden_layers,
        tied=None,
        deviations=(
            f"{where}: llama.cpp averages each two frames of the encoder, which Voxtral's own code"
            " does not (llama.cpp's issue 25496); the language model gets half of the frames, so"
            " sounds are understood less well",
        ),
    )


def _problems(a: Audio, its: _Voxtral, whole: Whole, where: str) -> Iterator[str]:
    if a.intermediate_size % a.hidden_size:
        yield (
            f"{where}: intermediate_size is {a.intermediate_size}, which is not a multiple of"
            f" hidden_size {a.hidden_size}; Voxtral stacks frames up to it"
        )
    else:
        n_pooled = whisper.FRAMES // 4
        yield from whisper.stack_problems(a, a.intermediate_size // a.hidden_size, n_pooled, where)
    if its.projector_hidden_act != "gelu":
        yield (
            f"{whole.where}: projector_hidden_act is {shown(its.projector_hidden_act)}; llama.cpp"
            " computes gelu"
        )


PROJECTORS = {
    "VoxtralForConditionalGeneration": (
        Tower(
            voxtral,
            r"(audio_tower|multi_modal_projector)\.",
            whisper.SETTINGS,
            "audio_config",
        ),
    ),
}
