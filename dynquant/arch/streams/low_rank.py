"""Hyper-connections of low rank, and an indexer that selects blocks of tokens for attention.

Hyper-connections keep several residual streams in place of one. A mixer makes the input of each
part of a layer from all streams, and weights with which the part's output is added to each. The
indexer scores the mean key of each block; attention sees the best blocks and the unfinished one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from dynquant.arch.base import Row, Via
from dynquant.arch.config import Count, Natural
from dynquant.arch.graph_limits import fixed
from dynquant.keys import Keys, i32s, u32
from dynquant.transforms import parts_of_groups

_IN, _OUT = "model.layers.{}.", "blk.{}."
_MIXER = {
    "hc_norm": ("norm", "streams"),
    "input_mix_weight_down": ("down", "rank streams"),
    "input_mix_weight_up": ("up", "streams rank"),
    "block_inject_weight": ("inject", "n_streams streams"),
}
STREAMS = tuple(
    Row(f"{_IN}{place}_hyper_connection.{stored}.weight", f"{_OUT}hc_{part}_{name}.weight", shape)
    for place, part in (("attn", "attn"), ("mlp", "ffn"))
    for stored, (name, shape) in _MIXER.items()
)
LAST_MIXER = tuple(
    Row(f"model.hyper_connection_mixer.{stored}.weight", f"output_hc_{name}.weight", shape)
    for stored, (name, shape) in _MIXER.items()
    if name != "inject"
)
INDEXER = (
    Row(
        _IN + "self_attn.indexer.index_qk_proj.weight",
        _OUT + "indexer.q_proj.weight",
        "index_qk hidden",
    ),
    Row(
        _IN + "self_attn.indexer.index_qk_proj.weight",
        _OUT + "indexer.k_proj.weight",
        "index_qk hidden",
    ),
    Row(_IN + "self_attn.indexer.q_layernorm.weight", _OUT + "indexer.q_norm.weight", "index_head"),
    Row(_IN + "self_attn.indexer.k_layernorm.weight", _OUT + "indexer.k_norm.weight", "index_head"),
)
_MAX_RATIO = 64
"""llama.cpp's limit on the tokens of a block."""


@dataclass(frozen=True)
class Streams:
    """config.json's settings of both, with the defaults of transformers."""

    hidden_size: Count
    indexer_n_heads: Count
    indexer_head_dim: Count
    indexer_budget: Count
    indexer_compress_ratio: Count
    indexer_kv_heads: Count = 1
    hc_count: Count = 4
    hc_lowrank: Count = 320
    hidden_act: str = "silu"
    output_gate_type: str | None = None
    mtp_num_hidden_layers: Natural = 0

    def problems(self, n_rotated: int, where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute."""
        yield from fixed(self, {"indexer_kv_heads": 1}, where)
        gate = self.output_gate_type or self.hidden_act
        if gate != "sigmoid":
            yield (
                f"{where}: output_gate_type is {gate!r} (by default hidden_act); llama.cpp computes"
                " this family with 'sigmoid'"
            )
        if self.hc_count < 2:
            yield f"{where}: hc_count is {self.hc_count}; llama.cpp needs at least two streams"
        if self.indexer_budget % self.indexer_compress_ratio:
            yield (
                f"{where}: indexer_budget {self.indexer_budget} is not a multiple of"
                f" indexer_compress_ratio {self.indexer_compress_ratio}"
            )
        if self.indexer_compress_ratio > _MAX_RATIO:
            yield (
                f"{where}: indexer_compress_ratio is {self.indexer_compress_ratio}; llama.cpp has"
                f" at most {_MAX_RATIO}"
            )
        if n_rotated > self.indexer_head_dim:
            yield (
                f"{where}: heads have {n_rotated} rotated weights, but indexer_head_dim is"
                f" {self.indexer_head_dim}"
            )

    def keys(self, arch: str, recurrent: list[bool]) -> Keys:
        """Return the keys of hyper-connections and of the indexer."""
        counts = {
            "hyper_connection.count": self.hc_count,
            "hyper_connection.low_rank": self.hc_lowrank,
            "attention.indexer.head_count": self.indexer_n_heads,
            "attention.indexer.key_length": self.indexer_head_dim,
            "attention.indexer.top_k": self.indexer_budget,
        }
        ratios = [0 if r else self.indexer_compress_ratio for r in recurrent]
        return {f"{arch}.{name}": u32(value) for name, value in counts.items()} | {
            f"{arch}.attention.compress_ratios": i32s(ratios)
        }

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            "streams": self.hc_count * self.hidden_size,
            "n_streams": self.hc_count,
            "rank": self.hc_lowrank,
            "index_qk": (self.indexer_n_heads + 1) * self.indexer_head_dim,
            "index_head": self.indexer_head_dim,
        }

    @property
    def via(self) -> dict[str, Via]:
        """The transforms of the indexer's matrix, which has the rows of queries, then of a key."""
        n = self.indexer_n_heads * self.indexer_head_dim
        parts = {"indexer.q_proj": (0, n), "indexer.k_proj": (n, n + self.indexer_head_dim)}
        return {
            role: partial(parts_of_groups, n_groups=1, parts=(part,))
            for role, part in parts.items()
        }
