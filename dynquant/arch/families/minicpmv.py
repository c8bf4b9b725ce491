"""MiniCPM-V 2.6 to 4.5: the language model is one of another family, by the model's version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.wrapped import OTHER_SETTINGS, Wrapped
from dynquant.errors import ArchitectureError
from dynquant.untrusted import shown

_CLASSES = {
    "2.6": "Qwen2ForCausalLM",
    "4.0": "LlamaForCausalLM",
    "4.5": "Qwen3ForCausalLM",
}
"""The class that the model's own code has for the language model, by `version`."""

_OTHERS = OTHER_SETTINGS | {
    *("version", "query_num", "slice_config", "slice_mode", "use_image_id", "vision_batch_size"),
    *("batch_vision_input", "drop_vision_last_layer", "image_size", "patch_size", "model_type"),
    *("batch_3d_resampler", "max_slice_nums", "scale_resolution", "vision_encoder", "auto_map"),
}
"""Settings of the encoder and of the whole, which stand beside those of the language model."""


def _text(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    version = str(config.get("version"))
    if version not in _CLASSES:
        raise ArchitectureError(
            f"{where}: version is {shown(config.get('version'))}; supported for MiniCPMV are"
            f" {', '.join(_CLASSES)}"
        )
    own = {name: value for name, value in config.items() if name not in _OTHERS}
    return {**own, "architectures": [_CLASSES[version]]}


FAMILIES = {"MiniCPMV": Wrapped(beside=_text)}
