"""Make tests/references/config_fields.json: the settings of each family's class, with defaults.

    pip install '.[references]'
    python scripts/references/make_config_fields.py

An object for each class of tests/references that transformers has: the fields of its configuration
class besides those of all models, and `rope_theta`, each with its default.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import transformers

REFERENCES = Path(__file__).resolve().parents[2] / "tests" / "references"
_SPELLINGS = {"PhiMoEForCausalLM": "PhimoeForCausalLM"}
_RENAMED = ("KimiLinearForCausalLM",)
"""Classes that save most settings under other names than their fields'."""


def fields_of(architecture: str) -> dict[str, Any] | None:
    """Return the fields with their defaults; None if transformers has no such class."""
    model = getattr(transformers, _SPELLINGS.get(architecture, architecture), None)
    if model is None:
        return None
    config = model.config_class
    # Of a larger model, the settings of its language model.
    for part in ("thinker_config", "text_config"):
        config = getattr(config, "sub_configs", {}).get(part, config)
    if not dataclasses.is_dataclass(config):
        return None  # a class around any language model
    of_all = {f.name for f in dataclasses.fields(transformers.PreTrainedConfig)}
    found = {f.name: f.default for f in dataclasses.fields(config)}
    theta = getattr(config, "default_theta", 10000.0)
    # Gemma 3 has two.
    has_one = "rope_parameters" in found and isinstance(theta, float)
    rope = {"rope_theta": theta} if has_one else {}
    saved = config.attribute_map if architecture in _RENAMED else {}
    return {saved.get(k, k): v for k, v in found.items() if k not in of_all} | rope


def main() -> None:
    """Write the file."""
    configs = sorted(REFERENCES.glob("*/config.json"))
    classes = {json.loads(p.read_text("utf-8"))["architectures"][0] for p in configs}
    found = {name: fields for name in sorted(classes) if (fields := fields_of(name)) is not None}
    (REFERENCES / "config_fields.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
