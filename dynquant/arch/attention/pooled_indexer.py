"""The indexer of GLM-5.3-Flash: a small attention that chooses which tokens the layer's own sees.

It is that of indexer.py, and scores pools of a few consecutive tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dynquant.arch.attention.indexer import ROWS, Indexer
from dynquant.arch.base import Row
from dynquant.arch.config import Count, Truth
from dynquant.keys import Keys, boolean, booleans, u32

_IN, _OUT = "model.layers.{}.self_attn.indexer.", "blk.{}."
INDEXER = (
    *ROWS,
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
class Pools:
    """The settings besides those of `Indexer`, with the defaults of transformers."""

    index_kpool: Count = 16
    index_kpool_always_select_tail: Truth = True

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name, besides those of the rows in indexer.py."""
        return {"pool": self.index_kpool}

    def keys(self, arch: str, has_own: Sequence[bool]) -> Keys:
        """Return the keys besides those of `Indexer`.

        has_own: for each layer whether it has an indexer, if its attention needs one
        """
        before = f"{arch}.attention.indexer."
        return {
            f"{before}kpool": u32(self.index_kpool),
            f"{before}kpool_select_tail": boolean(self.index_kpool_always_select_tail),
            f"{before}types": booleans(has_own),
        }

    def problems(self, indexer: Indexer, where: str) -> Iterator[str]:
        """Yield a message for settings with which llama.cpp aborts."""
        if self.index_kpool == 1 or indexer.index_topk % self.index_kpool:
            yield (
                f"{where}: index_kpool is {self.index_kpool} and index_topk is"
                f" {indexer.index_topk}; llama.cpp needs pools of at least two tokens, and"
                " index_topk to be a multiple"
            )
