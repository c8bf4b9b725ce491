"""Embeddings of hashed n-grams: which rows of one table belong to a token and those before it.

The last tokens, each times an odd constant, are combined by exclusive or. The remainders by several
primes are rows of the table, one range of rows for each prime ("head"). The constants have more
bits than a float, so that they are keys of the GGUF and not tensors.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt
from typing import Annotated

from pydantic import Field

from dynquant.arch.base import Form, Row, on
from dynquant.arch.config import Count, Natural
from dynquant.keys import Keys, i32s, u32

_MAX_TOKENS, _MAX_HEADS = 8, 64
"""LLAMA_MAX_PLE_NGRAM and LLAMA_MAX_PLE_HEADS of llama.cpp."""

_MAX_ROWS = 2**31 - 1
"""llama.cpp indexes the rows with int32."""

_PartsCount = Annotated[int, Field(strict=True, gt=0, le=1 << 14)]
"""Published tables have 512 parts."""

_PLE = "model.layers.{}.ple."
_EMBEDDING = _PLE + "ple_embedding."
_OF_LAYER = (
    Row(_PLE + "key_proj.weight", "blk.{}.ple_key.weight", "streams ngram"),
    Row(_PLE + "value_proj.weight", "blk.{}.ple_value.weight", "hidden ngram"),
    Row(_PLE + "norm_key.weight", "blk.{}.ple_norm_key.weight", "streams"),
    Row(_PLE + "norm_query.weight", "blk.{}.ple_norm_query.weight", "streams"),
    Row(_PLE + "norm_conv.weight", "blk.{}.ple_norm_conv.weight", "streams"),
    Row(_PLE + "conv1d.weight", "blk.{}.ple_conv1d.weight", "streams one ngram_kernel"),
)
_CONSTANTS = {
    "layer_multipliers": ("layer_multipliers", "ngram_tokens"),
    "ngram_heads_offsets": ("head_offsets", "ngram_heads"),
    "ngram_heads_vocab_sizes": ("head_vocab_sizes", "ngram_heads"),
}
"""Stored integers: the name of their key, and their number."""


@dataclass(frozen=True)
class Ngrams:
    """config.json's settings of the embeddings, with the defaults of transformers."""

    hidden_size: Count
    vocab_size: Count
    hc_count: Count = 4
    ple_layer_ids: tuple[Count, ...] = ()
    ple_embed_dim: Count | None = None
    ple_conv_kernel_size: Count = 4
    ngram_size: Count = 3
    heads_per_ngram: Count = 8
    ngram_vocab_size_base: Count = 20_000_000
    make_ngram_vocab_size_divisible_by: Count = 128
    split_ngram_parts: _PartsCount = 512
    eos_token_id: Natural | tuple[Natural, ...] | None = None
    image_token_id: Natural | None = None

    @property
    def layers(self) -> list[int]:
        """The layers that add such an embedding; config.json counts from one."""
        return sorted({number - 1 for number in self.ple_layer_ids})

    @property
    def n_heads(self) -> int:
        """Heads of all lengths of n-grams, from two tokens to `ngram_size`."""
        return (self.ngram_size - 1) * self.heads_per_ngram

    @cached_property
    def n_rows(self) -> int:
        """Rows of the table: the first primes from `ngram_vocab_size_base`, and padding."""
        total, candidate = 0, self.ngram_vocab_size_base - 1
        for _ in range(self.n_heads):
            candidate += 1
            while not _is_prime(candidate):
                candidate += 1
            total += candidate
        each = self.make_ngram_vocab_size_divisible_by
        return -(-total // each) * each

    @property
    def end(self) -> int | None:
        """The token at which n-grams end; of several it is the first, as in transformers."""
        if isinstance(self.eos_token_id, tuple):
            return next(iter(self.eos_token_id), None)
        return self.eos_token_id

    def problems(self, recurrent: list[bool], where: str) -> Iterator[str]:
        """Yield a message for each setting that llama.cpp's graph cannot compute.

        recurrent: which layers have linear attention
        """
        if len(self.layers) > 1:
            yield (
                f"{where}: ple_layer_ids has {len(self.layers)} layers; llama.cpp computes"
                " embeddings of n-grams in one layer"
            )
        for layer in self.layers[:1]:
            if layer >= len(recurrent) or not recurrent[layer]:
                yield (
                    f"{where}: ple_layer_ids is [{layer + 1}], which is not a layer with linear"
                    " attention, counted from 1; llama.cpp computes embeddings of n-grams there"
                )
        if not 2 <= self.ngram_size <= _MAX_TOKENS:
            yield f"{where}: ngram_size is {self.ngram_size}; llama.cpp has 2 to {_MAX_TOKENS}"
        elif self.n_heads > _MAX_HEADS:
            yield (
                f"{where}: ngram_size {self.ngram_size} and heads_per_ngram {self.heads_per_ngram}"
                f" make {self.n_heads} heads; llama.cpp has at most {_MAX_HEADS}"
            )
        elif self.hidden_size % self.n_heads:
            yield (
                f"{where}: the embedding of {self.hidden_size} weights is not a multiple of"
                f" {self.n_heads} heads of n-grams"
            )
        elif self.n_rows > _MAX_ROWS:
            yield (
                f"{where}: ngram_vocab_size_base {self.ngram_vocab_size_base} makes a table of"
                f" {self.n_rows} rows; llama.cpp has at most {_MAX_ROWS}"
            )
        if self.ple_embed_dim not in (None, self.hidden_size):
            yield (
                f"{where}: ple_embed_dim is {self.ple_embed_dim}; llama.cpp computes this family"
                f" with hidden_size, {self.hidden_size}"
            )
        if self.layers and self.end is None:
            yield f"{where}: eos_token_id is missing, at which n-grams end"

    def rows(self, arch: str) -> tuple[Row, ...]:
        """Return the table, the constants (named as their keys), and the rows of the layer."""
        if not self.layers:
            return ()
        place = _EMBEDDING.replace("{}", str(self.layers[0]))
        table = f"{place}ngram_embedding"
        whole = Form(f"{table}.weight", "ngram_rows ngram_head")
        return (
            Row(
                f"{table}.shard_{{part}}.weight",
                "per_layer_token_embd.weight",
                whole.shape,
                parts=self.split_ngram_parts,
                forms=(whole,),
            ),
            *(
                Row(place + stored, f"{arch}.ple.{key}", count)
                for stored, (key, count) in _CONSTANTS.items()
            ),
            *on(self.layers, _OF_LAYER),
        )

    def integers(self, arch: str) -> dict[str, range]:
        """Return the keys of constants with their values: no product may exceed an int64."""
        if not self.layers:
            return {}
        n = self.n_rows
        limits = (range(2**63 // self.vocab_size), range(n), range(1, n + 1))
        return {
            f"{arch}.ple.{key}": limit
            for (key, _), limit in zip(_CONSTANTS.values(), limits, strict=True)
        }

    @property
    def sizes(self) -> dict[str, int]:
        """The dimensions that the rows name."""
        return {
            "streams": self.hc_count * self.hidden_size,
            "ngram": self.hidden_size,
            "ngram_rows": self.n_rows if self.layers else 0,
            "ngram_head": self.hidden_size // self.n_heads,
            "ngram_heads": self.n_heads,
            "ngram_tokens": self.ngram_size,
            "ngram_kernel": self.ple_conv_kernel_size,
        }

    def keys(self, arch: str) -> Keys:
        """Return the keys except those of stored constants; none without such layers."""
        if not self.layers:
            return {}
        counts = {
            "embedding_length_per_layer_input": self.hidden_size // self.n_heads,
            "ple.ngram_size": self.ngram_size,
            "ple.heads_per_ngram": self.heads_per_ngram,
            "ple.conv_kernel": self.ple_conv_kernel_size,
            "ple.eos_token_id": self.end or 0,
        }
        if self.image_token_id is not None:
            counts["ple.image_token_id"] = self.image_token_id
        return {f"{arch}.ple.layers": i32s(self.layers)} | {
            f"{arch}.{name}": u32(value) for name, value in counts.items()
        }


def _is_prime(number: int) -> bool:
    if number < 4 or number % 2 == 0:
        return number in (2, 3)
    return all(number % divisor for divisor in range(3, isqrt(number) + 1, 2))
