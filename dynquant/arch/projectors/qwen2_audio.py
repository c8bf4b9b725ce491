"""Qwen2-Audio's encoder: Whisper's, whose frames are averaged two by two."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.towers import whisper
from dynquant.arch.towers.audio import audio_keys, read_audio
from dynquant.arch.towers.vision import biased
from dynquant.arch.towers.whole import CLIP, Tower, Whole


def qwen2audio(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the audio encoder of a Qwen2-Audio."""
    where = f"{whole.where}: audio_config"
    a = read_audio(config, where)
    return Architecture(
        name=CLIP,
        keys=audio_keys(a, whole, "qwen2a", where, n_text=whole.n_text),
        rows=(
            *whisper.ROWS,
            *biased("model.multi_modal_projector.linear", "mm.a.fc", "text hidden"),
        ),
        sizes=whisper.sizes(a, whole.n_text),
        n_layers=a.num_hidden_layers,
        tied=None,
        deviations=(whisper.silence(where, "the sound, and does not attend to the silence"),),
    )


PROJECTORS = {
    "Qwen2AudioForConditionalGeneration": (
        Tower(
            qwen2audio,
            r"(audio_tower|multi_modal_projector)\.",
            whisper.SETTINGS,
            "audio_config",
        ),
    ),
}
