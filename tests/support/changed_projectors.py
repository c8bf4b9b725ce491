"""Reference checkpoints of projectors with other settings."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from places import REFERENCES


def changed(
    case: str,
    folder: Path,
    vision: Mapping[str, Any] | None = None,
    images: Mapping[str, Any] | None = None,
    **larger: Any,
) -> Path:
    """Copy a checkpoint with changes; None removes a setting.

    vision: of the vision encoder; images: of the image processor; larger: of config.json
    """
    copy = folder / case
    shutil.copytree(REFERENCES / "projectors" / case, copy)
    config = _read(copy / "config.json")
    config["vision_config"] = _with(config["vision_config"], vision or {})
    _write(copy / "config.json", _with(config, larger))
    own = _read(copy / "preprocessor_config.json")
    _write(copy / "preprocessor_config.json", _with(own, images or {}))
    return copy


def rename(folder: Path, named: Callable[[str], str]) -> None:
    """Give the stored tensors of a checkpoint other names."""
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header: dict[str, Any] = json.loads(whole[8:end])
    meta = header.pop("__metadata__", {})
    found = json.dumps({"__metadata__": meta, **{named(n): e for n, e in header.items()}}).encode()
    path.write_bytes(len(found).to_bytes(8, "little") + found + whole[end:])


def _with(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**settings, **changes}.items() if value is not None}


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def _write(path: Path, settings: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(settings), "utf-8")
