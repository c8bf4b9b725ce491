"""Sarvam's mixture of experts: a Ling 2.0 without groups of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.base import Architecture
from dynquant.arch.config import usual_names, without_nulls
from dynquant.arch.families.bailing import SECOND, bailing2
from dynquant.arch.settings import Declared, constant

_PUBLISHED = {
    "attention_bias": "use_qkv_bias",
    "n_routed_experts": "num_experts",
    "n_shared_experts": "num_shared_experts",
    "num_local_experts": "num_experts",
    "num_mtp_layers": "num_nextn_predict_layers",
}
"""Names of transformers' class, and those of published files."""

_DEFAULTS: dict[str, Any] = {
    "head_dim": 64,
    "n_group": 1,
    "rope_theta": 8e6,
    "routed_scaling_factor": 2.5,
    "topk_group": 1,
}
"""Those of transformers, where they differ from Ling's."""


def sarvam(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a Sarvam mixture of experts: a Ling 2.0 whose heads are rotated as a whole.

    The published code subtracts the mean of the bias that chooses experts, which has no effect on
    the choice.
    """
    stated = usual_names(without_nulls(config), where, _PUBLISHED)
    return bailing2({**_DEFAULTS, **stated}, where)


_HARMLESS = {k: v for k, v in SECOND.harmless.items() if k not in ("norm_topk_prob", *_PUBLISHED)}
FAMILIES = {
    "SarvamMoEForCausalLM": Declared(
        sarvam,
        replace(
            SECOND,
            read=SECOND.read | {*_PUBLISHED},
            harmless=_HARMLESS,
            only={**SECOND.only, **constant(True, "norm_topk_prob")},
        ),
    ),
}
