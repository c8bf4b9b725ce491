"""config.json in the current and the older form of transformers describes the same model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from agreement import FAMILIES, load_reference

from dynquant.arch.base import Model
from dynquant.arch.load import load_model

SETTINGS = ("rope_theta", "partial_rotary_factor")


def today(config: dict[str, Any]) -> dict[str, Any]:
    """Return the current form: rope in `rope_parameters`, and `dtype`."""
    old = {"rope_scaling", "torch_dtype", *SETTINGS}
    rope = {"rope_type": "default", **(config.get("rope_scaling") or {})}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    rope |= {key: config[key] for key in SETTINGS if key in config}
    rest = {key: value for key, value in config.items() if key not in old}
    return {**rest, "rope_parameters": rope, "dtype": config.get("torch_dtype")}


def before(config: dict[str, Any]) -> dict[str, Any]:
    """Return the older form: rope at the top level, with scaling, if any, in `rope_scaling`."""
    rope = config["rope_parameters"]
    scaling = {key: value for key, value in rope.items() if key not in SETTINGS}
    rest = {key: value for key, value in config.items() if key not in ("rope_parameters", "dtype")}
    return {
        **rest,
        **{key: rope[key] for key in SETTINGS if key in rope},
        "rope_scaling": scaling if scaling.keys() - {"rope_type"} else None,
        "torch_dtype": config.get("dtype"),
    }


def described(model: Model) -> tuple[object, ...]:
    """Return everything that a plan is made from, except the folder's name."""
    keys = {k: v for k, v in model.keys.items() if not k.startswith("general.")}
    return keys, [(t.name, t.shape) for t in model.tensors], model.ignored


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_both_spellings_of_rope_describe_one_model(family: str, tmp_path: Path) -> None:
    folder = load_reference(family).folder
    config = json.loads((folder / "config.json").read_text("utf-8"))
    rope = config.get("rope_parameters")
    if rope and any(isinstance(value, dict) for value in rope.values()):
        pytest.skip("settings for each kind of layer have no other spelling")
    if not rope and "rope_theta" not in config:
        pytest.skip("positions are not rotated")
    other = shutil.copytree(folder, tmp_path / "other")
    respelled = before(config) if rope else today(config)
    (other / "config.json").write_text(json.dumps(respelled), "utf-8")
    assert described(load_model(other)) == described(load_model(folder))
