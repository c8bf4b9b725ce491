"""JSON of plans, GGUF files and quant types, for scripts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from math import prod
from typing import Any

import numpy as np
from gguf import GGUFValueType

from dynquant.checkpoint.gguf import GGUFFile
from dynquant.keys import KeyValue, Scalar
from dynquant.plan.plan import Plan
from dynquant.quants.readers import READERS, unread
from dynquant.quants.table import QuantType
from dynquant.recipe.rules import Recipe


def plan_json(plan: Plan) -> dict[str, Any]:
    """Return a plan as `dynquant plan --json` prints it; scripts depend on this form."""
    return {
        "architecture": plan.architecture,
        "recipe": plan.recipe.name,
        "effort": plan.effort,
        "imatrix": plan.imatrix.path.name if plan.imatrix else None,
        "moments": {
            "file": plan.moments.path.name,
            "header_sha256": plan.moments.header_sha256,
        }
        if plan.moments
        else None,
        "tensor_bytes": plan.tensor_bytes,
        "bits_per_weight": plan.bits_per_weight,
        "weights": plan.n_weights,
        "type_counts": plan.type_counts,
        "readers": unread(plan.type_counts, plan.architecture, is_adapter=plan.is_adapter),
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.type.name,
                "bytes": t.n_bytes,
                "offset": t.offset,
                "rule": t.rule,
                "instead_of": t.instead_of.name if t.instead_of else None,
                "importance": t.importance,
                "feedback": {"damping": setting.damping, "sweeps": setting.sweeps}
                if (setting := plan.feedback.get(t.name))
                else None,
            }
            for t in plan.tensors
        ],
        "warnings": list(plan.warnings),
        "ignored": dict(plan.ignored),
        "prediction_layers": list(plan.prediction),
        "lacks": list(plan.missing),
        "shards": [{"tensors": s.stop - s.start, "bytes": s.n_bytes} for s in plan.shards],
        "refusals": list(plan.refusals),
        "grids": {
            name: {"type": grid.type.name, "exact": grid.exact} for name, grid in plan.grids.items()
        },
    }


def file_json(file: GGUFFile) -> dict[str, Any]:
    """Return a file as `dynquant inspect --json` prints it: as a plan, with the keys added."""
    n_bytes = sum(t.n_bytes for t in file.tensors)
    weights = sum(prod(t.shape) for t in file.tensors)
    return {
        "architecture": _text(file, "general.architecture"),
        "recipe": _text(file, "dynquant.recipe"),
        "tensor_bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / weights if weights else 0.0,
        "weights": weights,
        "type_counts": dict(Counter(t.type_name for t in file.tensors).most_common()),
        "tensors": [
            {
                "name": t.name,
                "shape": list(t.shape),
                "type": t.type_name,
                "bytes": t.n_bytes,
                "offset": t.offset,
                "rule": None,
            }
            for t in file.tensors
        ],
        "keys": {name: _value(key) for name, key in file.keys.items()},
        "key_types": {name: _type(key) for name, key in file.keys.items()},
        "file_bytes": file.path.stat().st_size,
    }


def _text(file: GGUFFile, name: str) -> str | None:
    key = file.keys.get(name)
    return key.value if key is not None and isinstance(key.value, str) else None


def _type(key: KeyValue) -> str:
    return key.type.name if key.sub_type is None else f"{key.type.name}[{key.sub_type.name}]"


def _value(key: KeyValue) -> Any:
    if isinstance(key.value, tuple):
        return [_scalar(v, key.sub_type) for v in key.value]
    return _scalar(key.value, key.type)


def _scalar(value: Scalar, type_: GGUFValueType | None) -> Scalar:
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return str(value)  # JSON has no number for it
    # The shortest decimal that reads back as the same 32 bits: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if type_ is GGUFValueType.FLOAT32 else value


def recipes_json(recipes: Iterable[Recipe]) -> list[dict[str, Any]]:
    """Return recipes as `dynquant recipes --json` prints them."""
    return [
        {
            "name": r.name,
            "description": r.description.strip(),
            "importance": r.importance,
            "architectures": list(r.intended),
            "sha256": r.sha256,
        }
        for r in recipes
    ]


def types_json(types: Iterable[QuantType]) -> list[dict[str, Any]]:
    """Return quant types as `dynquant types --json` prints them."""
    return [
        {
            "name": t.name,
            "bits_per_weight": t.bpw,
            "block_size": t.block_size,
            "type_size": t.type_size,
            "needs_importance": t.needs_importance,
            "readers": {
                r.name: {
                    "version": r.version,
                    "reads": r.reads(t.name),
                    "except": list(r.exceptions(t.name)),
                }
                for r in READERS.values()
            },
            "description": t.description,
        }
        for t in types
    ]
