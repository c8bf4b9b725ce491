"""Make tests/references/rotated: modules with rotations that act while they run.

    pip install '.[references]' compressed-tensors
    python scripts/references/make_rotated_references.py

tests/references/rotated/<case>/ is a checkpoint of linear modules, rotated by compressed_tensors:

    config.json           its quantization_config with the transform_config
    model.safetensors     the stored weights, biases, matrices and permutations
    expected.safetensors  what the modules compute as they run: the answers to zeros (bias) and to
                          the rows of an identity matrix (weight), float32, computed in float64

A matrix that several modules share is stored once, as transformers does.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.transform import TransformConfig, apply_transform_config
from safetensors.torch import save_file

OUT = Path(__file__).resolve().parents[2] / "tests" / "references" / "rotated"

LINEAR, DOWN = ["Linear"], ["re:.*down_proj$"]


def scheme(kind: str, targets: list[str], *places: tuple[str, bool], **more: Any) -> dict[str, Any]:
    """Return one entry of a transform_config; places: locations, and whether inverted."""
    apply = [
        {"targets": targets, "location": location, "inverse": inverse, "ignore": ["lm_head"]}
        for location, inverse in places
    ]
    return {"type": kind, "apply": apply, "precision": "torch.float64", **more}


INPUT = ("input", False), ("weight_input", True)
OUTPUT = ("weight_output", False), ("output", True)

CASES: dict[str, dict[str, Any]] = {
    "hadamard": {"R4": scheme("hadamard", DOWN, *INPUT)},
    "hadamard-blocks": {"R4": scheme("hadamard", DOWN, *INPUT, head_dim=8)},
    "hadamard-permuted": {"R4": scheme("hadamard", DOWN, *INPUT, randomize=True)},
    "random": {"v": scheme("random-hadamard", LINEAR, *INPUT)},
    "random-inverse": {"v": scheme("random-hadamard", LINEAR, ("input", True), INPUT[1])},
    "random-output": {"u": scheme("random-hadamard", LINEAR, *OUTPUT)},
    "quip": {
        "v": scheme("random-hadamard", LINEAR, *INPUT),
        "u": scheme("random-hadamard", LINEAR, *OUTPUT),
    },
    "quip-blocks": {
        "v": scheme("random-hadamard", LINEAR, *INPUT, head_dim=4, randomize=True),
        "u": scheme("random-hadamard", LINEAR, *OUTPUT, head_dim=8, randomize=True),
    },
    "two-inputs": {
        "a": scheme("random-hadamard", DOWN, ("input", False), head_dim=8),
        "b": scheme("random-hadamard", DOWN, ("input", False)),
    },
    "two-outputs": {
        "a": scheme("random-hadamard", DOWN, ("output", False), head_dim=8),
        "b": scheme("random-hadamard", DOWN, ("output", True)),
    },
    "matrix": {"m": scheme("random-matrix", DOWN, *INPUT)},
    "matrix-both-ways": {
        "m": scheme("random-matrix", LINEAR, ("input", True), ("output", False), head_dim=4)
    },
    "folded": {"R1": scheme("hadamard", DOWN, ("weight_input", True), ("weight_output", False))},
}


class Mlp(torch.nn.Module):
    """Two linear modules with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Linear(24, 32, dtype=torch.float64)
        self.down_proj = torch.nn.Linear(32, 24, dtype=torch.float64)


def make(name: str, config: dict[str, Any]) -> None:
    """Write the folder of one case."""
    torch.manual_seed(len(name))
    model = torch.nn.Module()
    model.mlp = Mlp()
    model.lm_head = torch.nn.Linear(24, 8, bias=False, dtype=torch.float64)
    if name == "folded":
        model.mlp.down_proj = torch.nn.Linear(32, 32, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.float())
    parsed = TransformConfig.model_validate({"config_groups": config})
    apply_transform_config(model, parsed)
    stored: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    with torch.no_grad():
        # The modules run with the numbers that are stored.
        for p in model.parameters():
            if p.is_floating_point():
                p.copy_(p.float())
        for key, p in model.named_parameters(remove_duplicate=True):
            if id(p) not in seen:
                seen.add(id(p))
                is_sign = p.is_floating_point() and bool((p.abs() == 1).all())
                stored[key] = p.detach().to(torch.bfloat16) if is_sign else p.detach()
        stored = {k: t.float() if t.dtype == torch.float64 else t for k, t in stored.items()}
        expected: dict[str, torch.Tensor] = {}
        for key in ("mlp.up_proj", "mlp.down_proj", "lm_head"):
            module = model.get_submodule(key)
            bias = module(torch.zeros(1, module.in_features, dtype=torch.float64))
            rows = module(torch.eye(module.in_features, dtype=torch.float64)) - bias
            expected[f"{key}.weight"] = rows.T.float().contiguous()
            if module.bias is not None:
                expected[f"{key}.bias"] = bias[0].float()
    folder = OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    settings = {
        "quant_method": "compressed-tensors",
        "format": "dense",
        "config_groups": {},
        "transform_config": parsed.model_dump(mode="json"),
    }
    text = json.dumps({"tie_word_embeddings": False, "quantization_config": settings}, indent=1)
    (folder / "config.json").write_text(text + "\n")
    save_file({n: t.contiguous() for n, t in stored.items()}, folder / "model.safetensors")
    save_file(expected, folder / "expected.safetensors")
    print(f"{name}: {', '.join(stored)}")


if __name__ == "__main__":
    for case, config in CASES.items():
        make(case, config)
