"""general.*: who made the model and what it is called, as llama.cpp's converter finds it out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, cast

import yaml
from gguf import GGUFType, GGUFValueType, GGUFWriter, Metadata
from gguf.utility import size_label

from dynquant.arch.base import ModelTensor
from dynquant.errors import CheckpointError
from dynquant.keys import Keys, KeyValue, f32, string, strings, u32

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_HUB_CACHE = re.compile(r"models--(.+)/snapshots/[0-9a-f]+")


def general_keys(
    folder: Path, config: Mapping[str, Any], architecture: str, tensors: Iterable[ModelTensor]
) -> Keys:
    """Return general.* but file_type and quantization_version, in llama.cpp's order.

    From the front matter of README.md, generation_config.json, `_name_or_path` where it is a
    name on the Hub, and the folder's name. Never a path.
    """
    tensors = tuple(tensors)
    n_weights = sum(prod(t.shape) for t in tensors)
    name, hub_id = _names(folder, config)
    writer = GGUFWriter(None, architecture)  # never opened: it records keys, types and order
    writer.add_type(GGUFType.MODEL)
    try:
        metadata = Metadata.apply_metadata_heuristic(  # pyright: ignore[reportUnknownMemberType]
            Metadata(), _model_card(folder), {"_name_or_path": hub_id}, Path(name), n_weights
        )
        for key, value in _generation_config(folder).items():
            if key in _SAMPLING and value is not None:
                setattr(metadata, _SAMPLING[key], value)
        metadata.name = metadata.name or name or "model"
        metadata.size_label = metadata.size_label or _size_label(tensors)
        metadata.set_gguf_meta_model(writer)
        return {key: _key(v.value, v.type) for key, v in writer.kv_data[0].items()}
    except (TypeError, ValueError, AttributeError) as e:
        raise CheckpointError(
            f"{folder}: the front matter of README.md or generation_config.json: {e}"
        ) from e


# generation_config.json's names, and gguf's.
_SAMPLING = {
    "sequence": "sampling_sequence",
    "top_k": "sampling_top_k",
    "top_p": "sampling_top_p",
    "min_p": "sampling_min_p",
    "xtc_probability": "sampling_xtc_probability",
    "xtc_threshold": "sampling_xtc_threshold",
    "temperature": "sampling_temp",
    "penalty_last_n": "sampling_penalty_last_n",
    "penalty_repeat": "sampling_penalty_repeat",
    "mirostat": "sampling_mirostat",
    "mirostat_tau": "sampling_mirostat_tau",
    "mirostat_eta": "sampling_mirostat_eta",
}


def _size_label(tensors: Sequence[ModelTensor]) -> str:
    """Return how many weights a model has; one with experts, as their number times its weights."""
    stacks = [t for t in tensors if t.parts.role.endswith("_exps")]
    n_weights = sum(prod(t.shape) for t in tensors)
    n_shared = n_weights - sum(prod(t.shape) for t in stacks)
    n_of_one = sum(prod(t.shape[1:]) for t in stacks)
    n_experts = sum(t.shape[0] for t in stacks) // len(stacks) if stacks else 0
    return size_label(n_weights, n_shared, n_of_one, n_experts)


def _names(folder: Path, config: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the folder's name, and the name on the Hub where there is one."""
    # A link's own name is the model's, so that it is not followed without need.
    absolute = folder.resolve() if ".." in folder.parts else folder.absolute()
    cached = _HUB_CACHE.fullmatch("/".join(absolute.parts[-3:]))
    if cached:
        hub_id = cached[1].replace("--", "/", 1)
        return hub_id.rpartition("/")[2], hub_id
    said = config.get("_name_or_path")
    return absolute.name, said if isinstance(said, str) and _HUB_ID.fullmatch(said) else None


def _model_card(folder: Path) -> dict[str, Any]:
    try:
        return Metadata.load_model_card(folder)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as e:
        why = " ".join(str(e).split())
        raise CheckpointError(f"{folder / 'README.md'}: front matter is not YAML: {why}") from e


def _generation_config(folder: Path) -> dict[str, Any]:
    # Whatever JSON the file holds, whatever the annotation says.
    found = cast("object", Metadata.load_generation_config(folder))
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _key(value: Any, type_: GGUFValueType) -> KeyValue:
    """Return a recorded key in the type it claims: YAML also has numbers where text is meant."""
    if type_ is GGUFValueType.ARRAY:
        return strings([str(v) for v in value])
    if type_ is GGUFValueType.FLOAT32:
        return f32(value)
    if type_ is GGUFValueType.STRING:
        return string(str(value))
    if type_ is GGUFValueType.UINT32:
        return u32(int(value))
    return KeyValue(int(value), type_)
