"""Pooling of embedding models: how all tokens' vectors become one (sentence-transformers)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from dynquant.arch.config import read_config
from dynquant.arch.dense_modules import WITH_DENSE
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32
from dynquant.untrusted import MAX_CONFIG, is_inside, parse_json, read_regular, shown

# llama_pooling_type, by the names of sentence-transformers' 1_Pooling/config.json.
_TYPES = {
    "pooling_mode_mean_tokens": 1,
    "pooling_mode_cls_token": 2,
    "pooling_mode_lasttoken": 3,
}
_MODES = {"mean": 1, "cls": 2, "lasttoken": 3}
_KNOWN = ("Transformer", "Pooling", "Normalize")


@dataclass(frozen=True)
class _Module:
    type: str
    path: str = ""


@dataclass(frozen=True)
class _Modules:
    modules: tuple[_Module, ...]


def folders_of(folder: Path) -> tuple[Path, Path]:
    """Return the folder with modules.json and the one with the model's config.json.

    They are the same, except where sentence-transformers keeps the model in a folder below
    (`0_Transformer`). Either of the two may be given.

    Raises ArchitectureError if modules.json is damaged, or names a folder elsewhere.
    """
    if not (folder / "config.json").exists() and (folder / "modules.json").is_file():
        return folder, _transformer(folder) or folder
    above = folder.absolute().parent
    if (above / "modules.json").is_file() and not (folder / "modules.json").exists():
        inner = _transformer(above)
        if inner and inner.name == folder.absolute().name and inner.parent == above:
            return above, folder
    return folder, folder


def _transformer(folder: Path) -> Path | None:
    path = folder / "modules.json"
    for module in read_config(_Modules, {"modules": _read(path)}, str(path)).modules:
        if module.type.rpartition(".")[2] == "Transformer" and module.path:
            inner = folder / module.path
            if not is_inside(folder, inner):
                raise ArchitectureError(f"{path}: {shown(str(inner))} is not in this folder")
            return inner
    return None


def pooling_keys(folder: Path, arch: str) -> Keys:
    """Return `<arch>.pooling_type` as modules.json names it; no key if there is no such file.

    Raises ArchitectureError for pooling that llama.cpp does not have, and for modules other than
    pooling and `Normalize`, which llama.cpp does itself.
    """
    path = folder / "modules.json"
    if not path.is_file():
        return {}
    modules = read_config(_Modules, {"modules": _read(path)}, str(path)).modules
    kinds = [module.type.rpartition(".")[2] for module in modules]
    ArchitectureError.raise_any(
        f"{path}: llama.cpp does not compute a module of type {shown(kind)}; it supports"
        f" {', '.join(_KNOWN)}"
        for kind in kinds
        if kind not in _KNOWN and not (kind == "Dense" and arch == WITH_DENSE)
    )
    if "Pooling" not in kinds:
        return {}
    config_path = folder / modules[kinds.index("Pooling")].path / "config.json"
    if not is_inside(folder, config_path):
        raise ArchitectureError(f"{path}: {shown(str(config_path))} is not in this folder")
    config = _read(config_path)
    settings = cast("dict[str, Any]", config) if isinstance(config, dict) else {}
    found = [type_ for name, type_ in _TYPES.items() if settings.get(name) is True]
    mode: object = settings.get("pooling_mode")
    found += [_MODES[mode]] if isinstance(mode, str) and mode in _MODES else []
    if len(set(found)) != 1:
        named = [k for k, v in settings.items() if k.startswith("pooling_mode") and v]
        raise ArchitectureError(
            f"{config_path}: pooling by {' and '.join(named) or 'nothing'}; llama.cpp needs exactly"
            " one of mean, first token and last token"
        )
    return {f"{arch}.pooling_type": u32(found[0])}


def dense_folders(folder: Path) -> list[Path]:
    """Return the folders of the Dense modules that modules.json lists, in order."""
    path = folder / "modules.json"
    if not path.is_file():
        return []
    modules = read_config(_Modules, {"modules": _read(path)}, str(path)).modules
    found = [folder / m.path for m in modules if m.type.rpartition(".")[2] == "Dense" and m.path]
    ArchitectureError.raise_any(
        f"{path}: {shown(str(inner))} is not in this folder"
        for inner in found
        if not is_inside(folder, inner)
    )
    return found


def _read(path: Path) -> Any:
    try:
        return parse_json(read_regular(path, MAX_CONFIG).decode("utf-8"))
    except (OSError, ValueError) as e:
        raise ArchitectureError(f"{path}: {e}; download the file again") from e
