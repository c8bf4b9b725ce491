"""Q, K and V in one matrix of the checkpoint, all rows of each together, and three in the file.

So a recipe can give each its type. Where the matrix has the heads of a group together, see
older_decoders.py and internlm2.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from dynquant.arch.base import Row
from dynquant.arch.decoder import Config
from dynquant.tensors import TensorSource
from dynquant.transforms import interleaved_heads, rows_between


def n_fused(c: Config) -> int:
    """Return the number of rows of Q, K and V together: the dimension `qkv`."""
    return (c.num_attention_heads + 2 * c.n_head_kv) * c.n_per_head


def separate_rows(
    stored: str, c: Config, *, interleaved: bool, has_bias: bool = False
) -> Iterator[Row]:
    """Yield the rows of Q, K and V.

    stored:      the name of the matrix without `weight` ("model.layers.{}.self_attn.W_pack.")
    interleaved: whether rotary pairs are interleaved on the way, as for llama.cpp's Llama graph
    has_bias:    whether a bias is stored beside the matrix
    Dimensions:  `hidden` and `qkv`
    """
    q, kv = c.num_attention_heads * c.n_per_head, c.n_head_kv * c.n_per_head
    for part, start, stop, n_head in (
        ("q", 0, q, c.num_attention_heads),
        ("k", q, q + kv, c.n_head_kv),
        ("v", q + kv, q + 2 * kv, 0),
    ):
        via = partial(_between, start=start, stop=stop, n_head=n_head if interleaved else 0)
        yield Row(f"{stored}weight", f"blk.{{}}.attn_{part}.weight", "qkv hidden", via=via)
        if has_bias:
            yield Row(f"{stored}bias", f"blk.{{}}.attn_{part}.bias", "qkv", via=via)


def _between(source: TensorSource, start: int, stop: int, n_head: int) -> TensorSource:
    """Return rows start..stop, rotary pairs interleaved; n_head: 0 if they stay in order."""
    part = rows_between(source, start, stop)
    return interleaved_heads(part, n_head) if n_head else part
