"""GLM-4.7-Flash: latent attention and experts as in a DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import without_nulls
from dynquant.arch.families.deepseek import HARMLESS, READ, deepseek3
from dynquant.arch.mixtures.dense_layers import DenseLayers, n_leading_dense
from dynquant.arch.settings import Declared, Settings, reads


def glm4moelite(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-4.7-Flash, which has DeepSeek-V3's graph in llama.cpp."""
    # transformers' defaults.
    defaults = {
        "n_group": 1,
        "topk_group": 1,
        "routed_scaling_factor": 1.8,
        "rms_norm_eps": 1e-5,
    }
    present = without_nulls(config)
    dense = {"first_k_dense_replace": n_leading_dense(config, where)}
    return deepseek3({**defaults, **present, **dense}, where)


FAMILIES = {
    "Glm4MoeLiteForCausalLM": Declared(
        glm4moelite, Settings(read=READ | reads(DenseLayers), harmless=HARMLESS)
    ),
}
