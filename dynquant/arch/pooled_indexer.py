"""The indexer of GLM-5.3-Flash: a small attention that chooses which tokens the layer's own sees.

It scores pools of a few consecutive tokens. A layer without an indexer uses the choice of the layer
before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dynquant.arch.base import Row
from dynquant.arch.config import Count, LayersCount, Natural, Truth, read_config
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, boolean, booleans, u32

_IN, _OUT = "model.layers.{}.self_attn.indexer.", "blk.{}."
INDEXER = (
    Row(_IN + "wq_b.weight", _OUT + "indexer.attn_q_b.weight", "index_q q_rank"),
    Row(_IN + "wk.weight", _OUT + "indexer.attn_k.weight", "index_head hidden"),
    Row(_IN + "k_norm.weight", _OUT + "indexer.k_norm.weight", "index_head"),
    Row(_IN + "k_norm.bias", _OUT + "indexer.k_norm.bias", "index_head"),
    Row(_IN + "weights_proj.weight", _OUT + "indexer.proj.weight", "index_heads hidden"),
    Row(
        _IN + "index_kpool_compress_gate",
        _OUT + "indexer_compressor_gate.weight",
        "index_head hidden",
    ),
    Row(
        _IN + "index_kpool_compress_ape", _OUT + "indexer_compressor_ape.weight", "pool index_head"
    ),
)
"""The rows of a layer with an indexer."""


@dataclass(frozen=True)
class Indexer:
    """The settings, with the names of config.json and the defaults of transformers."""

    index_topk: Count = 2048
    index_head_dim: Count = 128
    index_n_heads: Count = 32
    index_kpool: Count = 16
    index_kpool_always_select_tail: Truth = True

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name, besides `hidden` and `q_rank`."""
        return {
            "index_head": self.index_head_dim,
            "index_heads": self.index_n_heads,
            "index_q": self.index_n_heads * self.index_head_dim,
            "pool": self.index_kpool,
        }

    def keys(self, arch: str, has_own: Sequence[bool]) -> Keys:
        """Return the keys.

        has_own: for each layer whether it has an indexer, if its attention needs one
        """
        before = f"{arch}.attention.indexer."
        return {
            f"{before}head_count": u32(self.index_n_heads),
            f"{before}key_length": u32(self.index_head_dim),
            f"{before}top_k": u32(self.index_topk),
            f"{before}kpool": u32(self.index_kpool),
            f"{before}kpool_select_tail": boolean(self.index_kpool_always_select_tail),
            f"{before}types": booleans(has_own),
        }

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for settings with which llama.cpp aborts."""
        if self.index_kpool == 1 or self.index_topk % self.index_kpool:
            yield (
                f"{where}: index_kpool is {self.index_kpool} and index_topk is {self.index_topk};"
                " llama.cpp needs pools of at least two tokens, and index_topk to be a multiple"
            )


@dataclass(frozen=True)
class _Kinds:
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
    kinds = read_config(_Kinds, config, where)
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


KINDS = frozenset(
    {"indexer_types", "index_topk_pattern", "index_topk_freq", "index_skip_topk_offset"}
)
"""The settings that `has_own_indexer` reads."""
