"""What llama.cpp's graphs take for granted: a config.json that says otherwise is refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from dynquant.arch.decoder import Config


def fixed(settings: object, expected: Mapping[str, object], where: str) -> Iterator[str]:
    """Yield a message for each setting that no key of the family carries and that differs.

    settings: has what `expected` names as attributes
    """
    for key, value in expected.items():
        if getattr(settings, key) != value:
            yield (
                f"{where}: {key} is {getattr(settings, key)}; llama.cpp computes this family with"
                f" {value}"
            )


def heads_fill_hidden(c: Config, where: str) -> Iterator[str]:
    """Yield a message unless the heads of Q share out hidden_size, which some graphs divide."""
    if c.num_attention_heads * c.n_per_head != c.hidden_size:
        yield (
            f"{where}: {c.num_attention_heads} heads of {c.n_per_head} are not hidden_size"
            f" {c.hidden_size}, which llama.cpp takes them to be in this family"
        )


def output_apart(c: Config, where: str) -> Iterator[str]:
    """Yield a message for tied embeddings, where a graph demands output.weight."""
    if c.tie_word_embeddings:
        yield (
            f"{where}: tie_word_embeddings is true; llama.cpp's graph of this family has no output"
            " matrix but its own"
        )
