"""Settings that llama.cpp's graphs assume: a config.json with other values is rejected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dynquant.arch.decoder import Config


def fixed(settings: object, expected: Mapping[str, object], where: str) -> Iterator[str]:
    """Yield a message for each setting that differs from the graph's constant.

    settings: an object with the names in `expected` as attributes
    expected: the graph's constants; the family has no GGUF keys for them
    """
    for key, value in expected.items():
        if getattr(settings, key) != value:
            yield (
                f"{where}: {key} is {getattr(settings, key)}; llama.cpp computes this family with"
                f" {value}"
            )


def heads_fill_hidden(c: Config, where: str) -> Iterator[str]:
    """Yield a message unless the heads of Q add up to hidden_size, as some graphs assume."""
    if c.num_attention_heads * c.n_per_head != c.hidden_size:
        yield (
            f"{where}: {c.num_attention_heads} heads of {c.n_per_head} weights do not add up to"
            f" hidden_size {c.hidden_size}, as llama.cpp assumes for this family"
        )


def output_apart(c: Config, where: str) -> Iterator[str]:
    """Yield a message for tied embeddings; for graphs that require output.weight."""
    if c.tie_word_embeddings:
        yield (
            f"{where}: tie_word_embeddings is true; llama.cpp's graph of this family requires a"
            " separate output matrix"
        )
