"""Attention in which one vector of a token is the key and the value of all heads (DeepSeek-V4).

The last weights of a head are rotated, by one rope in layers without compression and by another in
those with it. The heads' results pass through two matrices, the first of which has a part for each
group of heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from dynquant.arch.base import Form, Row
from dynquant.arch.config import Count, Positive
from dynquant.arch.decoder import Config
from dynquant.arch.positions.rope import Rope, mscale_keys, read_rope, rope_settings
from dynquant.errors import ArchitectureError
from dynquant.keys import Keys, f32, u32

_IN, _OUT = "model.layers.{}.attn.", "blk.{}."
SINGLE_KEY = (
    Row(_IN + "attn_sink", _OUT + "attn_sinks.weight", "heads"),
    Row(_IN + "wq_a.weight", _OUT + "attn_q_a.weight", "q_rank hidden"),
    Row(_IN + "q_norm.weight", _OUT + "attn_q_a_norm.weight", "q_rank"),
    Row(_IN + "wq_b.weight", _OUT + "attn_q_b.weight", "q q_rank"),
    Row(_IN + "wkv.weight", _OUT + "attn_kv.weight", "head hidden"),
    Row(
        _IN + "kv_norm.weight",
        _OUT + "attn_kv_a_norm.weight",
        "head",
        forms=(Form(_IN + "norm.weight", "head"),),  # as transformers saves it
    ),
    Row(_IN + "wo_a.weight", _OUT + "attn_output_a.weight", "o_rank q_group"),
    Row(_IN + "wo_b.weight", _OUT + "attn_output_b.weight", "hidden o_rank"),
)
"""The rows of a layer."""


@dataclass(frozen=True)
class SingleKey:
    """config.json's settings, with the defaults of transformers."""

    head_dim: Count = 512
    q_lora_rank: Count = 1024
    o_groups: Count = 8
    o_lora_rank: Count = 1024
    sliding_window: Count = 128
    rope_theta: Positive = 10000.0
    compress_rope_theta: Positive = 160000.0
    qk_rope_head_dim: Count | None = None
    partial_rotary_factor: Positive | None = None

    @property
    def n_rotated(self) -> int:
        """Weights of a head that are rotated."""
        if self.partial_rotary_factor is not None:
            return int(self.head_dim * self.partial_rotary_factor)
        return self.qk_rope_head_dim or self.head_dim // 8

    def sizes(self, n_heads: int) -> dict[str, int]:
        """Return the dimensions that the rows name, besides those of a decoder."""
        return {
            "heads": n_heads,
            "q_rank": self.q_lora_rank,
            "q_group": n_heads * self.head_dim // self.o_groups,
            "o_rank": self.o_groups * self.o_lora_rank,
        }

    def keys(self, arch: str, compress: Rope) -> Keys:
        """Return the keys of attention; compress: the rope of layers with compression."""
        scaling = mscale_keys(arch, replace(compress, mscale=None, mscale_all_dim=None))
        scaling.pop(f"{arch}.rope.scaling.attn_factor", None)  # the graph has none
        keys = {
            "rope.dimension_count": u32(self.n_rotated),
            "attention.q_lora_rank": u32(self.q_lora_rank),
            "attention.sliding_window": u32(self.sliding_window),
            "attention.output_group_count": u32(self.o_groups),
            "attention.output_lora_rank": u32(self.o_lora_rank),
            "attention.compress_rope_freq_base": f32(compress.rope_theta),
        }
        return scaling | {f"{arch}.{name}": value for name, value in keys.items()}

    def ropes(self, config: Mapping[str, Any], where: str) -> tuple[Rope, Rope]:
        """Return the rope of layers without compression, and of those with it.

        Raises ArchitectureError for settings that llama.cpp does not compute.
        """
        found = rope_settings(config)
        if isinstance(found.get("main"), dict) and isinstance(found.get("compress"), dict):
            main, compress = found["main"], found["compress"]
        else:
            bases = (None, self.rope_theta, self.compress_rope_theta)
            if found.get("rope_theta") not in bases:
                raise ArchitectureError(
                    f"{where}: rope_theta is {found['rope_theta']} among the settings of the rope,"
                    f" but {bases[1]} and compress_rope_theta {bases[2]} beside them; remove what"
                    " is wrong"
                )
            main = {"rope_theta": self.rope_theta}
            compress = {**found, "rope_theta": self.compress_rope_theta}
        # Unlike in other models, sines and cosines have no factor unless one is stated.
        shared = {
            "partial_rotary_factor": self.n_rotated / self.head_dim,
            "attention_factor": 1.0,
        }
        context = {"max_position_embeddings": config.get("max_position_embeddings")}
        ropes = (
            read_rope({**context, "rope_parameters": {**shared, **main}}, where, (), partial=1.0),
            read_rope(
                {**context, "rope_parameters": {**shared, **compress}},
                where,
                ("linear", "yarn"),
                ("beta_fast", "beta_slow"),
                partial=1.0,
            ),
        )
        ArchitectureError.raise_any(self._rope_problems(ropes, where))
        return ropes

    def _rope_problems(self, ropes: tuple[Rope, Rope], where: str) -> Iterator[str]:
        rotated = {int(self.head_dim * rope.partial_rotary_factor) for rope in ropes}
        stated = self.qk_rope_head_dim or self.n_rotated
        if rotated | {stated} != {self.n_rotated}:
            yield (
                f"{where}: qk_rope_head_dim and partial_rotary_factor rotate {stated} and"
                f" {', '.join(map(str, sorted(rotated)))} weights of a head; remove what is wrong"
            )
        for rope in ropes:
            if rope.attention_factor != 1:
                yield (
                    f"{where}: attention_factor is {rope.attention_factor}; llama.cpp computes this"
                    " family with 1"
                )

    def problems(self, c: Config, n_index_head: int, where: str) -> Iterator[str]:
        """Yield a message for each size that does not fit; n_index_head: of the indexer's heads."""
        if c.num_attention_heads % self.o_groups:
            yield (
                f"{where}: num_attention_heads {c.num_attention_heads} is not a multiple of"
                f" o_groups {self.o_groups}"
            )
        if self.n_rotated % 2 or self.n_rotated > n_index_head:
            yield (
                f"{where}: qk_rope_head_dim is {self.n_rotated}; rotary embeddings need an even"
                f" number that fits in a head of the indexer, index_head_dim {n_index_head}"
            )
