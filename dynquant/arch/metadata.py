"""general.*: name, author, license and sampling settings, found as llama.cpp's converter does."""

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
"""Limit in characters; the longest, with lists of datasets and languages, have some thousands."""

_MAX_DEPTH = 16
"""Limit on nesting in front matter; evaluation results, the deepest in use, have six levels."""

_MAX_QUOTED = 500
_HUB_CACHE = re.compile(r"models--(.+)/snapshots/[0-9a-f]+")


def general_keys(
    folder: Path,
    config: Mapping[str, Any],
    architecture: str,
    tensors: Iterable[ModelTensor],
    kind: str = GGUFType.MODEL,
) -> Keys:
    """Return general.* without file_type and quantization_version, in llama.cpp's order.

    Sources: the front matter of README.md, generation_config.json, `_name_or_path` if it is a name
    on the Hub, and the folder's name. No key ever holds a path.

    kind: general.type
    """
    tensors = tuple(tensors)
    n_weights = sum(prod(t.shape) for t in tensors)
    name, hub_id = _names(folder, config)
    writer = GGUFWriter(None, architecture)  # never opened: it records keys, types and order
    writer.add_type(kind)
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
            f" {str(e)[:_MAX_QUOTED]}"
        ) from e


def _size_label(n_weights: int, tensors: Iterable[ModelTensor]) -> str:
    """Return `8B`, or `8x7B` for a mixture: number of experts, and weights with one expert."""
    stacks = [t for t in tensors if t.parts.role.endswith("_exps") and len(t.shape) > 2]
    n_stacked = sum(prod(t.shape) for t in stacks)
    one_each = sum(prod(t.shape[1:]) for t in stacks)
    n_experts = sum(t.shape[0] for t in stacks) // len(stacks) if stacks else 0
    return size_label(n_weights, n_weights - n_stacked, one_each, n_experts)


# Names in generation_config.json, and in the gguf package.
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
    """Return the folder's name, and the name on the Hub if there is one."""
    # Links are not followed without need: the link's name is the model's.
    absolute = folder.resolve() if ".." in folder.parts else folder.absolute()
    cached = _HUB_CACHE.fullmatch("/".join(absolute.parts[-3:]))
    if cached:
        hub_id = cached[1].replace("--", "/", 1)
        return hub_id.rpartition("/")[2], hub_id
    stated = config.get("_name_or_path")
    return absolute.name, stated if isinstance(stated, str) and _HUB_ID.fullmatch(stated) else None


class _Aliases(yaml.MarkedYAMLError):
    """An alias or deep nesting: with aliases, a few lines expand to more than fits in memory."""


class _FrontMatter(yaml.SafeLoader):
    """A YAML loader that rejects aliases and nesting deeper than in model cards."""

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
    """Return the front matter of README.md, as gguf's Metadata.load_model_card reads it."""
    path = folder / "README.md"
    if not path.is_file():
        return {}
    try:
        lines = _text(folder, path).splitlines()
        if not lines or lines[0] != "---":
            return {}
        end = lines.index("---", 1) if "---" in lines[1:] else len(lines)
        # `no` is a language here, not false; tabs are not valid YAML but occur.
        text = "\n".join(lines[1:end]).replace("\t", "  ") + "\n"
        text = text.replace("- no\n", '- "no"\n')
        if len(text) > _MAX_FRONT_MATTER:
            raise ValueError(f"{len(text)} characters; at most {_MAX_FRONT_MATTER} are read")
        found: object = yaml.load(text, _FrontMatter)  # a SafeLoader
    except (yaml.YAMLError, ValueError, OSError, RecursionError) as e:
        why = " ".join(str(e).split())
        raise CheckpointError(f"{path}: front matter is not YAML: {why}") from e
    return _without_paths(cast("dict[str, Any]", found)) if isinstance(found, dict) else {}


def _without_paths(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model card without bases that are no names on the Hub.

    Programs for training write the base's folder there, also into a tag.
    """
    found = dict(card)
    for name, is_public in (("base_model", _is_hub_name), ("tags", _is_public_tag)):
        stated = found.get(name)
        listed = cast("list[object]", stated) if isinstance(stated, list) else [stated]
        if not all(map(is_public, listed)):
            del found[name]
            if public := [one for one in listed if is_public(one)]:
                found[name] = public
    return found


def _is_hub_name(base: object) -> bool:
    if not isinstance(base, str):
        return True  # the gguf package says what it does with it
    return _HUB_ID.fullmatch(base.removeprefix("https://huggingface.co/")) is not None


def _is_public_tag(tag: object) -> bool:
    if not isinstance(tag, str) or not tag.startswith("base_model:"):
        return True
    return _HUB_ID.fullmatch(tag.rpartition(":")[2]) is not None


def _generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    if not path.is_file():
        return {}
    try:
        found = parse_json(_text(folder, path))
    except (ValueError, OSError):
        return {}  # as in gguf: the file of some models is not valid
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _text(folder: Path, path: Path) -> str:
    """Return the text of a file in the folder; parts of it are written to the output."""
    if not is_inside(folder, path):
        raise ValueError("a link out of the folder; copy the file into it")
    return read_regular(path, MAX_CONFIG).decode("utf-8")


def _key(value: Any, type_: GGUFValueType) -> KeyValue:
    """Return a recorded key in its declared type: YAML may hold a number where text is meant."""
    if type_ is GGUFValueType.ARRAY:
        return strings([str(v) for v in value])
    if type_ is GGUFValueType.FLOAT32:
        return f32(value)
    if type_ is GGUFValueType.STRING:
        return string(str(value))
    if type_ is GGUFValueType.UINT32:
        return u32(int(value))
    return KeyValue(int(value), type_)
