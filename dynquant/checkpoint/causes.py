"""Single causes of many problems: what a folder holds in place of a model's weights.

Without these checks, each tensor of such a folder is reported as missing, unknown or of another
shape. The cause is reported instead, once and with what to do.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dynquant.checkpoint.safetensors import INDEX, Checkpoint

_ADAPTER = re.compile(
    r".*\.(base_layer|original_module|modules_to_save"
    r"|lora_(A|B|a|b|embedding_A|embedding_B|magnitude_vector)"
    r"|(ia3|oft|hada|lokr|vera|boft)_\w+)(\..*)?"
)
"""Names in PEFT's modules that wrap a layer, and those of adapters in MLX (lora_a, lora_b)."""

_BITSANDBYTES = re.compile(
    r".*(\.SCB|\.weight_format|\.absmax|\.nested_absmax|\.quant_map|\.nested_quant_map"
    r"|\.quant_state\.bitsandbytes__\w+)"
)
"""Names of LLM.int8()'s row scales, and of the state of NF4 and FP4 (bitsandbytes' QuantState)."""


def check_config(config: Mapping[str, Any], where: str) -> Iterator[str]:
    """Yield the problem of a config.json of MLX, whose packing is not supported.

    where: the path of config.json, which begins the message
    """
    settings: object = config.get("quantization")
    if isinstance(settings, dict) and "bits" in settings and "group_size" in settings:
        yield (
            f"{where}: the weights are quantized by MLX (key `quantization`), which is not"
            " supported; use the model that it was made from, or undo it with"
            " `mlx_lm.convert --dequantize`"
        )


def check_weights(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield the causes that the names of the stored tensors show."""
    if unmerged := _first(_ADAPTER, checkpoint):
        yield (
            f"{checkpoint.folder}: the weights contain an adapter that is not merged"
            f" ({unmerged}); merge it with PEFT's `merge_and_unload()` and save the model again"
        )
    state = _first(_BITSANDBYTES, checkpoint)
    if state and not checkpoint.config.get("quantization_config"):
        yield (
            f"{checkpoint.folder}: the weights are quantized by bitsandbytes ({state}), but"
            " config.json has no quantization_config; use its base model, or save it again from"
            " transformers after `model.dequantize()`"
        )


def _first(pattern: re.Pattern[str], checkpoint: Checkpoint) -> str | None:
    return next((name for name in checkpoint.tensors if pattern.fullmatch(name)), None)


def unread_files(checkpoint: Checkpoint) -> Iterator[str]:
    """Yield a warning for weights beside the model that the output does not contain."""
    folder, read = checkpoint.folder, {t.path.name for t in checkpoint.tensors.values()}
    adapters = _beside(folder, "adapter_model.*") + _beside(folder, "adapters.safetensors")
    if adapters:
        yield (
            f"left out: {adapters[0]}: an adapter beside the model; if it is not merged, put it"
            " into a separate folder with adapter_config.json, and merge it (--merge-adapter"
            " FOLDER) or convert it (convert FOLDER --base MODEL)"
        )
    others = [n for n in _beside(folder, "*.safetensors") if n not in read and n not in adapters]
    # Mistral stores the same weights a second time under its own names.
    others = [n for n in others if not n.startswith("consolidated")]
    others += [n for n in _beside(folder, "value_head.*") if n not in others]
    if others:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        why = "the model's index does not list it; if it belongs to the model, add it to the index"
        if not (folder / INDEX).exists():
            why = f"without {INDEX} it is not read; if it belongs to the model, add that file"
        yield f"left out: {others[0]}{more}: {why}"


def _beside(folder: Path, pattern: str) -> list[str]:
    return sorted(p.name for p in folder.glob(pattern) if p.is_file())
