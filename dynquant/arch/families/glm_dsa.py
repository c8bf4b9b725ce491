"""GLM-5, 5.1 and 5.2: a DeepSeek-V3.2 in which several layers may share an indexer's choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dynquant.arch.attention.indexer import Indexed, Indexer, has_own_indexer, read_indexer
from dynquant.arch.base import Architecture
from dynquant.arch.config import without_nulls
from dynquant.arch.families.deepseek import HARMLESS, READ, with_sigmoids
from dynquant.arch.gguf_files.graph import FileKeys, GGUFGraph
from dynquant.arch.mixtures.dense_layers import DenseLayers, n_leading_dense
from dynquant.arch.mixtures.experts import SIGMOID
from dynquant.arch.mixtures.latent_decoder import Kind
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import booleans

NAME = "glm-dsa"
_DEFAULTS = {"index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048}


def glm_dsa(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-5."""
    # transformers' defaults.
    defaults = {"n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5}
    has_own = has_own_indexer(config, where)
    if not has_own[0]:
        raise ArchitectureError(
            f"{where}: the first layer has no indexer, and there is no layer before it"
            " whose choice it could use; give it one (indexer_types)"
        )
    indexer = read_indexer(config, where, _DEFAULTS)
    indexed = [layer for layer, is_own in enumerate(has_own) if is_own]
    kind = Kind(SIGMOID, NAME, indexer, indexed, scalings=())
    dense = {"first_k_dense_replace": n_leading_dense(config, where, default=3)}
    found = with_sigmoids({**defaults, **without_nulls(config), **dense}, where, kind)
    return replace(found, keys={**found.keys, f"{NAME}.attention.indexer.types": booleans(has_own)})


FAMILIES = {
    "GlmMoeDsaForCausalLM": Declared(
        glm_dsa,
        Settings(
            read=READ | reads(DenseLayers, Indexer, Indexed, more="layer_types"),
            harmless=HARMLESS
            | harmless("while tokens are predicted further ahead", "index_share_for_mtp_iteration")
            | harmless("llama.cpp scores experts in F32", "moe_router_dtype"),
            layer_types=("indexed_attention",),
            only=constant(True, "indexer_rope_interleave"),
        ),
    ),
}


def _layers_of(keys: FileKeys) -> dict[str, Any]:
    """Return which layers of a GGUF need an indexer; the graph requires that they have one."""
    kinds = keys.kinds("attention.indexer.types", "shared", "full") or []
    is_known = len(kinds) == keys.n_layers and kinds[:1] == ["full"]
    return {"indexer_types": kinds if is_known else ["full"] * keys.n_layers}


GRAPHS = {
    "glm-dsa": GGUFGraph("GlmMoeDsaForCausalLM", settings={"q_lora_rank": 32}, layers=_layers_of),
}
