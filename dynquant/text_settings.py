"""Where the config.json of a larger model has the settings of its language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

PLACES = (
    "text_config",
    "language_config",
    "llm_config",
    "lm_config",
    "thinker_config.text_config",
)
"""Objects with these settings, as models that see, hear or speak name them."""


def text_settings(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a larger model's language model; None if they are no object."""
    for place in PLACES:
        found: Any = config
        for name in place.split("."):
            found = (
                cast("Mapping[str, Any]", found).get(name) if isinstance(found, Mapping) else None
            )
        if isinstance(found, dict) and found:
            return cast("dict[str, Any]", found)
    return None
