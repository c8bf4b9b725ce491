"""The indexer of block-sparse attention: for each head of keys, it chooses blocks of tokens.

Small heads score all earlier tokens. A block counts as much as its best token, and the last blocks
are always read (MiniMax M3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dynquant.arch.base import Row
from dynquant.arch.config import Count, Natural, read_config
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, u32

SPARSE = "minimax_m3_sparse"
"""The kind of a layer with an indexer, in `layer_types`."""

_IN, _OUT = "model.layers.{}.self_attn.index_", "blk.{}.indexer."
BLOCK_INDEXER = (
    Row(_IN + "q_proj.weight", _OUT + "q_proj.weight", "index_q hidden"),
    Row(_IN + "k_proj.weight", _OUT + "k_proj.weight", "index_head hidden"),
    Row(_IN + "q_norm.weight", _OUT + "q_norm.weight", "index_head"),
    Row(_IN + "k_norm.weight", _OUT + "k_norm.weight", "index_head"),
)
"""The rows of a layer."""

_OLDER = {
    "sparse_num_index_heads": "index_n_heads",
    "sparse_index_dim": "index_head_dim",
    "sparse_block_size": "index_block_size",
    "sparse_topk_blocks": "index_topk_blocks",
    "sparse_local_block": "index_local_blocks",
}
"""The names of `sparse_attention_config` in published files."""

_COMPUTED = {
    "use_sparse_attention": True,
    "sparse_score_type": "max",  # a block counts as much as its best token
    "sparse_init_block": 0,  # the first blocks are not always read
}
"""The values of its other settings that llama.cpp's graph computes."""

_FREQUENCY, _NO_VALUES = "sparse_attention_freq", "sparse_disable_index_value"


@dataclass(frozen=True)
class BlockIndexer:
    """config.json's settings of the indexer, with transformers' defaults."""

    index_n_heads: Count = 4
    index_head_dim: Count = 128
    index_block_size: Count = 128
    index_topk_blocks: Count = 16
    index_local_blocks: Natural = 1

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            "index_q": self.index_n_heads * self.index_head_dim,
            "index_head": self.index_head_dim,
        }

    def keys(self, arch: str) -> Keys:
        """Return `<arch>.attention.indexer.*`."""
        keys = {
            "head_count": self.index_n_heads,
            "key_length": self.index_head_dim,
            "top_k": self.index_topk_blocks,
            "block_size": self.index_block_size,
            "local_blocks": self.index_local_blocks,
        }
        return {f"{arch}.attention.indexer.{name}": u32(value) for name, value in keys.items()}

    def problems(self, n_head_kv: int, n_rotated: int, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp does not compute."""
        if self.index_n_heads != n_head_kv:
            yield (
                f"{where}: index_n_heads is {self.index_n_heads}; llama.cpp needs one head of the"
                f" indexer for each head of keys, num_key_value_heads {n_head_kv}"
            )
        if self.index_block_size & (self.index_block_size - 1):
            yield (
                f"{where}: index_block_size is {self.index_block_size}; llama.cpp computes powers"
                " of two"
            )
        if n_rotated > self.index_head_dim:
            yield (
                f"{where}: {n_rotated} weights of a head are rotated, more than the"
                f" {self.index_head_dim} of the indexer's heads (index_head_dim)"
            )


_DEFAULTS = {f.name: f.default for f in fields(BlockIndexer)}
"""What a configuration that transformers loaded may state beside the older names."""


@dataclass(frozen=True)
class _Sparse:
    sparse_attention_config: dict[str, Any] | None = None
    layer_types: tuple[str, ...] | None = None


@dataclass(frozen=True)
class _Layers:
    """Settings with a number for each layer: whether it has an indexer, and that without values."""

    sparse_attention_freq: tuple[Natural, ...] | None = None
    sparse_disable_index_value: tuple[Natural, ...] | None = None


def read_block_indexer(
    config: Mapping[str, Any], n_layers: int, where: str
) -> tuple[BlockIndexer, tuple[bool, ...]]:
    """Return the settings, and which layers have an indexer.

    Raises ArchitectureError for settings that are not valid, and for those that llama.cpp does not
    compute.
    """
    stated = read_config(_Sparse, config, where)
    older, place = stated.sparse_attention_config or {}, f"{where}: sparse_attention_config"
    flat = {f.name: config.get(f.name) for f in fields(BlockIndexer)}
    renamed = {_OLDER[name]: value for name, value in older.items() if name in _OLDER}
    ArchitectureError.raise_any(
        f"{place}: {name} is {older[name]}, but {newer} beside it is {flat[newer]}; remove the one"
        " that is wrong"
        for name, newer in _OLDER.items()
        if older.get(name) is not None and flat[newer] not in (None, _DEFAULTS[newer], older[name])
    )
    indexer = read_config(BlockIndexer, flat | renamed, where)
    layers = read_config(_Layers, older, place)
    has = tuple(map(bool, layers.sparse_attention_freq or (0,) * n_layers))
    if stated.layer_types is not None:
        has = tuple(kind == SPARSE for kind in stated.layer_types)
    without = layers.sparse_disable_index_value or (1,) * n_layers
    problems = list(_unsupported(older, place))
    if not len(has) == len(without) == n_layers:
        problems.append(f"{place}: has lists of another length than num_hidden_layers {n_layers}")
    elif any(one and not disabled for one, disabled in zip(has, without, strict=True)):
        problems.append(f"{place}: {_NO_VALUES} is 0 for a layer; llama.cpp computes none of these")
    ArchitectureError.raise_any(problems)
    return indexer, has


def _unsupported(older: Mapping[str, Any], place: str) -> Iterator[str]:
    for name, value in older.items():
        if name in (*_OLDER, _FREQUENCY, _NO_VALUES) or value is None:
            continue
        if name not in _COMPUTED:
            yield (
                f"{place}: {name} is not known; if the model's own code does not use it, remove it"
            )
        elif value != _COMPUTED[name]:
            yield f"{place}: {name} is {value!r}; llama.cpp computes {_COMPUTED[name]!r}"
