"""Latent attention (MLA): the tensor tables, dimensions and keys of its two layouts in a GGUF.

The matrix kv_b computes keys and values of all heads from one short vector per token. llama.cpp
uses it as two tensors (layout `split`): the half for the keys is transposed for each head, so that
scores are computed from the short vector directly. llama.cpp also runs files with the whole matrix
(layout `merged`), but then caches full keys and values.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from dynquant.arch.base import Row
from dynquant.keys import Keys, u32
from dynquant.tensors import TensorSource
from dynquant.transforms import rows_of_each, transposed

Layout = Literal["split", "merged"]

_IN, _OUT = "model.layers.{}.", "blk.{}."
_ATTENTION = _IN + "self_attn."

_BEFORE = (Row(_IN + "input_layernorm.weight", _OUT + "attn_norm.weight", "hidden"),)
_Q_WHOLE = (Row(_ATTENTION + "q_proj.weight", _OUT + "attn_q.weight", "q hidden"),)
_Q_LATENT = (
    Row(_ATTENTION + "q_a_proj.weight", _OUT + "attn_q_a.weight", "q_rank hidden"),
    Row(_ATTENTION + "q_a_layernorm.weight", _OUT + "attn_q_a_norm.weight", "q_rank"),
    Row(_ATTENTION + "q_b_proj.weight", _OUT + "attn_q_b.weight", "q q_rank"),
)
_KV_LATENT = (
    Row(_ATTENTION + "kv_a_proj_with_mqa.weight", _OUT + "attn_kv_a_mqa.weight", "kv_a hidden"),
    Row(_ATTENTION + "kv_a_layernorm.weight", _OUT + "attn_kv_a_norm.weight", "kv_rank"),
)
_KV_B = _ATTENTION + "kv_b_proj.weight"
_KV_MERGED = (Row(_KV_B, _OUT + "attn_kv_b.weight", "kv_b kv_rank"),)
_AFTER = (
    Row(_ATTENTION + "o_proj.weight", _OUT + "attn_output.weight", "hidden v"),
    Row(_IN + "post_attention_layernorm.weight", _OUT + "ffn_norm.weight", "hidden"),
)


@dataclass(frozen=True)
class Latent:
    """The dimensions of latent attention; `nope` are the weights of a head that are not rotated.

    q_rank: length of the short vector of queries; None if queries are computed directly
    """

    n_head: int
    kv_rank: int
    q_rank: int | None
    nope: int
    rope: int
    value: int

    @property
    def n_per_head(self) -> int:
        """Weights of a query and of a key."""
        return self.nope + self.rope

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the tables name, besides those of a decoder."""
        return {
            "q": self.n_head * self.n_per_head,
            "q_rank": self.q_rank or 0,
            "kv_a": self.kv_rank + self.rope,
            "kv_rank": self.kv_rank,
            "kv_b": self.n_head * (self.nope + self.value),
            "v": self.n_head * self.value,
        }

    def rows(self, layout: Layout) -> tuple[Row, ...]:
        """Return the tensor table of a layer's attention and its norms."""
        q = _Q_WHOLE if self.q_rank is None else _Q_LATENT
        kv_b = self._split() if layout == "split" else _KV_MERGED
        return _BEFORE + q + _KV_LATENT + kv_b + _AFTER

    def _split(self) -> tuple[Row, ...]:
        """Return kv_b as two rows; it has `nope` rows of keys, then `value` of values, per head."""
        keys = partial(_keys_of, n_key=self.nope, n_value=self.value)
        values = partial(
            rows_of_each, start=self.nope, stop=self.nope + self.value, each=self.nope + self.value
        )
        return (
            Row(_KV_B, _OUT + "attn_k_b.weight", "kv_b kv_rank", via=keys),
            Row(_KV_B, _OUT + "attn_v_b.weight", "kv_b kv_rank", via=values),
        )

    def n_head_kv(self, layout: Layout) -> int:
        """Return head_count_kv: split attention is one head of keys to llama.cpp."""
        return 1 if layout == "split" else self.n_head

    def keys(self, arch: str, layout: Layout) -> Keys:
        """Return the keys of the dimensions; split keys are as long as the short vector."""
        if layout == "split":
            lengths = {
                "key_length": self.kv_rank + self.rope,
                "value_length": self.kv_rank,
                "key_length_mla": self.n_per_head,
                "value_length_mla": self.value,
            }
        else:
            lengths = {"key_length": self.n_per_head, "value_length": self.value}
        ranks = {"q_lora_rank": self.q_rank or 0, "kv_lora_rank": self.kv_rank}
        return {f"{arch}.rope.dimension_count": u32(self.rope)} | {
            f"{arch}.attention.{name}": u32(n) for name, n in (ranks | lengths).items()
        }


def _keys_of(source: TensorSource, n_key: int, n_value: int) -> TensorSource:
    """Return each head's rows of keys, transposed."""
    return transposed(rows_of_each(source, 0, n_key, each=n_key + n_value))
