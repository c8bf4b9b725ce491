"""Qwen2.5-Omni: Qwen2.5-VL's vision encoder, and Whisper's layers in windows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import Count, read_config
from dynquant.arch.projectors import qwen_vl
from dynquant.arch.settings import harmless, reads
from dynquant.arch.towers import audio, whisper
from dynquant.arch.towers.audio import audio_keys, read_audio
from dynquant.arch.towers.vision import OUT, biased, of_several
from dynquant.arch.towers.whole import CLIP, Tower, Whole

_HEARS = whisper.IN
_BLOCK = "model.visual.blocks.{}.attn."
_FUSED = f"{_BLOCK}qkv."
_APART = (
    *biased(_BLOCK + "q", OUT + "attn_q", "hidden hidden"),
    *biased(_BLOCK + "k", OUT + "attn_k", "hidden hidden"),
    *biased(_BLOCK + "v", OUT + "attn_v", "hidden hidden"),
)


@dataclass(frozen=True)
class _Windows:
    n_window: Count = 100


def sees(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the vision encoder of a Qwen2.5-Omni: Qwen2.5-VL's, with matrices stored apart."""
    found = qwen_vl.qwen25vl(config, whole)
    rows = (row for row in found.rows if not row.stored.startswith(_FUSED))
    marks = (
        f"{whole.where}: llama.cpp puts <|vision_start|> and <|vision_end|> around pictures, where"
        " Qwen2.5-Omni has <|vision_bos|> and <|vision_eos|>; its answers about pictures differ"
    )
    return replace(
        found,
        keys=of_several(found.keys),
        rows=(*rows, *_APART),
        deviations=(*found.deviations, marks),
    )


def hears(config: Mapping[str, Any], whole: Whole) -> Architecture:
    """Describe the audio encoder of a Qwen2.5-Omni: Whisper's layers, in windows."""
    where = f"{whole.where}: audio_config"
    a = read_audio(config, where)
    seconds = read_config(_Windows, config, where).n_window * 2 / 100
    windows = (
        f"{where}: llama.cpp computes windows of 30 seconds, filled with silence, and gives the"
        f" language model the silence too; the model's own code computes windows of {seconds:g}"
        " seconds without silence, so sounds are understood less well"
    )
    return Architecture(
        name=CLIP,
        keys=audio_keys(a, whole, "qwen2a", where, n_text=whole.n_text, of_several=True),
        rows=(
            *whisper.CONVOLUTIONS,
            *whisper.LAYERS,
            *biased(_HEARS + "ln_post", "a.post_ln", "hidden"),
            *biased(_HEARS + "proj", "mm.a.fc", "text hidden"),
        ),
        sizes=whisper.sizes(a, whole.n_text),
        n_layers=a.num_hidden_layers,
        tied=None,
        extra=(whisper.computed_positions(a, where),),
        ignored={r".*\.audio_bos_eos_token\.weight": "embeddings that the model does not use"},
        deviations=(windows,),
    )


_SEES = replace(
    qwen_vl.SETTINGS25,
    harmless={
        **qwen_vl.SETTINGS25.harmless,
        **harmless("other settings state it", "embed_dim mlp_ratio"),
        **harmless("an encoder has no words", "tie_word_embeddings"),
        **harmless("used while training only", "init_std"),
    },
)
_HEARD = replace(
    whisper.SETTINGS,
    read=whisper.SETTINGS.read | reads(_Windows),
    harmless=audio.HARMLESS | audio.WIDTH,
)
_OMNI = (
    Tower(sees, qwen_vl.WITHIN, _SEES, "thinker_config.vision_config"),
    Tower(hears, r"audio_tower\.", _HEARD, "thinker_config.audio_config"),
)
PROJECTORS = {
    "Qwen2_5OmniForConditionalGeneration": _OMNI,
    "Qwen2_5OmniModel": _OMNI,
    "Qwen2_5OmniThinkerForConditionalGeneration": _OMNI,
}
