"""GLM-5, 5.1 and 5.2: a DeepSeek-V3.2 in which several layers may share an indexer's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dynquant.arch.base import Architecture
from dynquant.arch.config import LayersCount, Natural, read_config, without_nulls
from dynquant.arch.dense_layers import DenseLayers, n_leading_dense
from dynquant.arch.experts import SIGMOID
from dynquant.arch.families.deepseek import HARMLESS, READ, with_sigmoids
from dynquant.arch.gguf_graph import FileKeys, GGUFGraph
from dynquant.arch.indexer import Indexer, read_indexer
from dynquant.arch.latent_decoder import Kind
from dynquant.arch.settings import Declared, Settings, constant, harmless, reads
from dynquant.errors import ArchitectureError
from dynquant.keys import booleans

NAME = "glm-dsa"
_DEFAULTS = {"index_n_heads": 32, "index_head_dim": 128, "index_topk": 2048}
_LETTERS = {"F": "full", "S": "shared"}


@dataclass(frozen=True)
class _Shared:
    """Which layers have an indexer: a list, a pattern, or one in `index_topk_freq` layers."""

    num_hidden_layers: LayersCount
    indexer_types: tuple[Literal["full", "shared"], ...] | None = None
    index_topk_pattern: str | tuple[Literal["full", "shared"], ...] | None = None
    index_topk_freq: Natural = 1
    index_skip_topk_offset: int = 2

    @property
    def types(self) -> tuple[str, ...]:
        """The kind of each layer."""
        if self.indexer_types is not None:
            return self.indexer_types
        if self.index_topk_pattern is not None:
            return tuple(_LETTERS.get(kind, kind) for kind in self.index_topk_pattern)
        first, freq = self.index_skip_topk_offset - 1, max(self.index_topk_freq, 1)
        layers = range(self.num_hidden_layers)
        return tuple("shared" if max(i - first, 0) % freq else "full" for i in layers)

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message if the layers are not all described, or the first has no indexer."""
        if len(self.types) != self.num_hidden_layers or {*self.types} - {"full", "shared"}:
            yield (
                f"{where}: indexer_types and index_topk_pattern need one of full and shared (F and"
                f" S) for each of {self.num_hidden_layers} layers"
            )
        elif self.types[0] != "full":
            yield (
                f"{where}: the first layer has no indexer, and no layer before it has one whose"
                " choice it could use"
            )


def glm_dsa(config: Mapping[str, Any], where: str) -> Architecture:
    """Describe a GLM-5."""
    # transformers' defaults.
    defaults = {"n_group": 1, "topk_group": 1, "rms_norm_eps": 1e-5}
    present = without_nulls(config)
    shared = read_config(_Shared, config, where)
    ArchitectureError.raise_any(shared.problems(where))
    indexer = read_indexer(config, where, _DEFAULTS)
    indexed = [layer for layer, kind in enumerate(shared.types) if kind == "full"]
    kind = Kind(SIGMOID, NAME, indexer, indexed, scalings=())
    dense = {"first_k_dense_replace": n_leading_dense(config, where, default=3)}
    found = with_sigmoids({**defaults, **present, **dense}, where, kind)
    types = booleans([kind == "full" for kind in shared.types])
    return replace(found, keys={**found.keys, f"{NAME}.attention.indexer.types": types})


FAMILIES = {
    "GlmMoeDsaForCausalLM": Declared(
        glm_dsa,
        Settings(
            read=READ | reads(DenseLayers, Indexer, _Shared, more="layer_types"),
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
