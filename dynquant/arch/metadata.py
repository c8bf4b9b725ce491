"""general.*: who made the model and what it is called, as llama.cpp's converter finds it out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any, cast

import yaml
from gguf import GGUFType, GGUFValueType, GGUFWriter, Metadata
from gguf.utility import size_label

from dynquant.arch.base import ModelTensor
from dynquant.errors import CheckpointError
from dynquant.keys import Keys, KeyValue, f32, string, strings, u32
from dynquant.untrusted import MAX_CONFIG, is_inside, parse_json, read_regular

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_MAX_FRONT_MATTER = 1 << 18
"""Letters; the longest list datasets and languages, in some thousands."""

_MAX_DEPTH = 16
"""Of lists and mappings in front matter: evaluation results, the deepest, have six."""

_MAX_SAID = 500
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
        metadata.size_label = metadata.size_label or _size_label(n_weights, tensors)
        metadata.set_gguf_meta_model(writer)
        return {key: _key(v.value, v.type) for key, v in writer.kv_data[0].items()}
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as e:
        raise CheckpointError(
            f"{folder}: the front matter of README.md or generation_config.json:"
            f" {str(e)[:_MAX_SAID]}"
        ) from e


def _size_label(n_weights: int, tensors: Iterable[ModelTensor]) -> str:
    """Return `8B`, or for mixtures `8x7B`: experts, and the weights of a model with one of them."""
    stacks = [t for t in tensors if t.parts.role.endswith("_exps") and len(t.shape) > 2]
    n_stacked = sum(prod(t.shape) for t in stacks)
    one_each = sum(prod(t.shape[1:]) for t in stacks)
    n_experts = sum(t.shape[0] for t in stacks) // len(stacks) if stacks else 0
    return size_label(n_weights, n_weights - n_stacked, one_each, n_experts)


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


class _Aliases(yaml.MarkedYAMLError):
    """An alias, with which a few lines can stand for as many words as there are atoms."""


class _FrontMatter(yaml.SafeLoader):
    """YAML without aliases, no deeper than a model card is."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = cast(yaml.Event, self.peek_event())  # pyright: ignore[reportUnknownMemberType]
        if isinstance(event, yaml.AliasEvent):
            raise _Aliases(problem="an alias", problem_mark=event.start_mark)
        if self._depth == _MAX_DEPTH:
            raise _Aliases(problem="nested too deep", problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


def _model_card(folder: Path) -> dict[str, Any]:
    """Return the front matter of README.md, read as Metadata.load_model_card of gguf reads it."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        lines = _text(folder, path).splitlines()
        if not lines or lines[0] != "---":
            return {}
        end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
        # The language no is no truth value, and tabs are somebody's spaces.
        text = "\n".join(lines[1:end]).replace("\t", "  ") + "\n"
        text = text.replace("- no\n", '- "no"\n')
        if len(text) > _MAX_FRONT_MATTER:
            raise ValueError(f"{len(text)} letters; at most {_MAX_FRONT_MATTER} are read")
        found: object = yaml.load(text, _FrontMatter)  # a SafeLoader
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as e:
        why = " ".join(str(e).split())
        raise CheckpointError(f"{path}: front matter is not YAML: {why}") from e
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        found = parse_json(_text(folder, path))
    except (ValueError, OSError):
        return {}  # as gguf does: not all models have a valid one
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _text(folder: Path, path: Path) -> str:
    """Return a file of the folder, of which parts are written into the output."""
    if not is_inside(folder, path):
        raise ValueError("a link out of the folder; put the file itself there")
    return read_regular(path, MAX_CONFIG).decode("utf-8")


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
