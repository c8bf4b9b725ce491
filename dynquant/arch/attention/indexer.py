"""The indexer of sparse attention: for each token, it chooses the tokens that attention reads.

Small heads score all earlier tokens, and the best `index_topk` are kept. Queries come from the
short vector of latent attention, and all heads share one key. A layer without an indexer uses the
choice of the layer before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from dynquant.arch.base import Row, on
from dynquant.arch.config import Count, LayersCount, Natural, read_config, without_nulls
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32

_IN, _OUT = "model.layers.{}.self_attn.indexer.", "blk.{}.indexer."
ROWS = (
    Row(_IN + "wq_b.weight", _OUT + "attn_q_b.weight", "index_q q_rank"),
    Row(_IN + "wk.weight", _OUT + "attn_k.weight", "index_head hidden"),
    Row(_IN + "k_norm.weight", _OUT + "k_norm.weight", "index_head"),
    Row(_IN + "k_norm.bias", _OUT + "k_norm.bias", "index_head"),
    Row(_IN + "weights_proj.weight", _OUT + "proj.weight", "index_heads hidden"),
)
"""The rows of a layer."""

_HADAMARD = 64
"""llama.cpp rotates the indexer's heads by Hadamard matrices of at least this size."""


@dataclass(frozen=True)
class Indexer:
    """config.json's settings of the indexer."""

    index_n_heads: Count
    index_head_dim: Count
    index_topk: Count

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            "index_q": self.index_n_heads * self.index_head_dim,
            "index_head": self.index_head_dim,
            "index_heads": self.index_n_heads,
        }

    def keys(self, arch: str) -> Keys:
        """Return `<arch>.attention.indexer.*`."""
        return {
            f"{arch}.attention.indexer.head_count": u32(self.index_n_heads),
            f"{arch}.attention.indexer.key_length": u32(self.index_head_dim),
            f"{arch}.attention.indexer.top_k": u32(self.index_topk),
        }


def read_indexer(config: Mapping[str, Any], where: str, defaults: Mapping[str, int]) -> Indexer:
    """Return the settings of the indexer.

    defaults: of the model's class

    Raises ArchitectureError for heads that llama.cpp cannot compute.
    """
    found = read_config(Indexer, {**defaults, **without_nulls(config)}, where)
    ArchitectureError.raise_any(_problems(found, where))
    return found


def _problems(found: Indexer, where: str) -> Iterator[str]:
    n = found.index_head_dim
    if n % _HADAMARD:
        yield (
            f"{where}: index_head_dim is {n}; llama.cpp computes indexers with multiples of"
            f" {_HADAMARD}"
        )


def indexer_rows(
    layers: Collection[int], ahead: range, *, optional: bool = False
) -> tuple[Row, ...]:
    """Return the rows of the layers that have an indexer.

    layers:   the model's own that have one
    ahead:    the layers that predict further ahead
    optional: whether the latter may have none
    Dimensions: those of `Indexer.sizes`, `q_rank` and `hidden`
    """
    last = tuple(replace(row, optional=optional) for row in ROWS)
    return (*on(layers, ROWS), *(on(ahead, last) if ahead else ()))


@dataclass(frozen=True)
class Indexed:
    """Which layers have an indexer, in three forms; the first that is stated counts."""

    num_hidden_layers: LayersCount
    indexer_types: tuple[Literal["full", "shared"], ...] | None = None
    index_topk_pattern: str | tuple[Literal["full", "shared"], ...] | None = None
    index_topk_freq: Natural = 1
    index_skip_topk_offset: Natural = 2


def has_own_indexer(config: Mapping[str, Any], where: str) -> list[bool]:
    """Return for each layer whether it has an indexer, if its attention needs one.

    Raises ArchitectureError if the settings do not say it for each layer.
    """
    kinds = read_config(Indexed, config, where)
    n, pattern = kinds.num_hidden_layers, kinds.index_topk_pattern
    if kinds.indexer_types is not None:
        name, found = "indexer_types", [kind == "full" for kind in kinds.indexer_types]
    elif pattern is not None:
        if wrong := sorted({*pattern} - {"F", "S", "full", "shared"}):
            raise ArchitectureError(
                f"{where}: index_topk_pattern has {wrong[0]!r}; it consists of F and S"
            )
        name, found = "index_topk_pattern", [kind in ("F", "full") for kind in pattern]
    else:
        every, first = max(kinds.index_topk_freq, 1), kinds.index_skip_topk_offset
        return [max(layer - first + 1, 0) % every == 0 for layer in range(n)]
    if len(found) != n:
        raise ArchitectureError(
            f"{where}: {name} has {len(found)} entries for num_hidden_layers {n}; take both from"
            " one model"
        )
    return found
