"""Compressed attention: windows of tokens become one key each, and attention reads these too.

Layers of one kind compress windows of 4 tokens, each together with the window before it, and have
an indexer that chooses among them. Layers of the other kind compress windows of 128 tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dynquant.arch.base import Row, on
from dynquant.arch.config import LayersCount, Natural, read_config
from dynquant.errors import ArchitectureError

_SPARSE, _HEAVY = "compressed_sparse_attention", "heavily_compressed_attention"
RATIOS = {"sliding_attention": 0, _SPARSE: 4, _HEAVY: 128}
"""Tokens of a window, by the kind of a layer; llama.cpp has no others."""

_IN, _OUT = "model.layers.{}.attn.", "blk.{}."


def _compressor(stored: str, name: str, window: str, width: str, head: str) -> tuple[Row, ...]:
    before, after = f"{_IN}{stored}compressor.", f"{_OUT}{name}compressor_"
    return (
        Row(before + "wkv.weight", after + "kv.weight", f"{width} hidden"),
        Row(before + "wgate.weight", after + "gate.weight", f"{width} hidden"),
        Row(before + "ape", after + "ape.weight", f"{window} {width}"),
        Row(before + "norm.weight", after + "norm.weight", head),
    )


_INDEXER = _IN + "indexer."
_WITH_INDEXER = (
    *_compressor("", "attn_", "few", "head_twice", "head"),
    Row(_INDEXER + "wq_b.weight", _OUT + "indexer.attn_q_b.weight", "index_q q_rank"),
    Row(_INDEXER + "weights_proj.weight", _OUT + "indexer.proj.weight", "index_heads hidden"),
    *_compressor("indexer.", "indexer_", "few", "index_head_twice", "index_head"),
)
_WITHOUT = _compressor("", "attn_", "many", "head", "head")


@dataclass(frozen=True)
class Compression:
    """config.json's settings: the kind of each layer, in either of two forms."""

    num_hidden_layers: LayersCount
    layer_types: tuple[str, ...] | None = None
    compress_ratios: tuple[Natural, ...] | None = None
    compress_rates: dict[str, int] | None = None
    compress_rate_csa: int | None = None
    compress_rate_hca: int | None = None

    @property
    def ratios(self) -> tuple[int, ...]:
        """Tokens of a window for each layer, 0 for layers without; transformers' default."""
        n = self.num_hidden_layers
        if self.layer_types is not None:
            return tuple(RATIOS[kind] for kind in self.layer_types)
        if self.compress_ratios is not None:
            return self.compress_ratios[:n]
        return tuple(4 if layer >= 2 and layer % 2 else 128 for layer in range(n))

    def problems(self, where: str) -> Iterator[str]:
        """Yield a message for each window that llama.cpp does not compute."""
        n, listed = self.num_hidden_layers, self.compress_ratios
        if listed is not None and (len(listed) < n or {*listed} - {*RATIOS.values()}):
            yield (
                f"{where}: compress_ratios must have one of 0, 4 and 128 for each of {n} layers, as"
                " llama.cpp's graph needs"
            )
        rates = {
            **(self.compress_rates or {}),
            **({_SPARSE: self.compress_rate_csa} if self.compress_rate_csa is not None else {}),
            **({_HEAVY: self.compress_rate_hca} if self.compress_rate_hca is not None else {}),
        }
        for kind, rate in rates.items():
            if RATIOS.get(kind) != rate:
                yield (
                    f"{where}: {kind} compresses {rate} tokens into one; llama.cpp computes"
                    f" {RATIOS.get(kind, 'no such layers')}"
                )


def read_ratios(config: Mapping[str, Any], where: str) -> tuple[int, ...]:
    """Return the tokens of a window for each layer; 0 for layers without compression.

    Raises ArchitectureError for windows that llama.cpp does not compute.
    """
    found = read_config(Compression, config, where)
    ArchitectureError.raise_any(found.problems(where))
    return found.ratios


def compressor_rows(ratios: Sequence[int]) -> tuple[Row, ...]:
    """Return the rows of compressed attention.

    Dimensions: those of `Indexer.sizes` and `compressor_sizes`, `q_rank`, `head` and `hidden`
    """
    few, many = ([i for i, n in enumerate(ratios) if n == ratio] for ratio in (4, 128))
    return (*on(few, _WITH_INDEXER), *on(many, _WITHOUT))


def compressor_sizes(n_per_head: int, n_per_index_head: int) -> dict[str, int]:
    """Return the dimensions that these rows name."""
    return {
        "few": 4,
        "many": 128,
        "head_twice": 2 * n_per_head,
        "index_head_twice": 2 * n_per_index_head,
    }
