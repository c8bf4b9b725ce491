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


OWN_EPSILON = 1e-6
"""The epsilon of norms for which some models' own code does not read rms_norm_eps."""


def other_epsilon(c: Config, norms: str, where: str) -> tuple[str, ...]:
    """Return a warning if llama.cpp has another epsilon in some norms than the model's own code.

    norms: those that have OWN_EPSILON in the model's own code, and rms_norm_eps in llama.cpp
    """
    if c.rms_norm_eps == OWN_EPSILON:
        return ()
    return (
        f"{where}: rms_norm_eps is {c.rms_norm_eps:g}, which llama.cpp uses in {norms} too; the"
        f" model's own code has {OWN_EPSILON:g} there, so results differ slightly",
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


def group_problems(groups: int, used: int, n_experts: int, where: str) -> Iterator[str]:
    """Yield a message if llama.cpp cannot choose experts from these groups; 1 for no groups."""
    if groups > 1 and (used > groups or n_experts % groups or n_experts < 2 * groups):
        yield (
            f"{where}: n_group {groups} and topk_group {used} do not fit {n_experts}"
            " experts; llama.cpp needs equal groups of at least two experts, and no more groups"
            " used than there are"
        )
