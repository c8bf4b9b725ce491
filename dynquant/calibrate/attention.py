"""Latent attention (MLA) as llama.cpp computes it: the inputs of the two halves of `kv_b`.

Transformers expands the latent vector c of each token to keys and values by `kv_b`. llama.cpp
multiplies each head's query by the half for keys, and the head's weighted mean of c by the half for
values; the products are the same. An imatrix is about llama.cpp's inputs, so they are computed here
from the query and the attention weights.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dynquant.calibrate.sums import Sums

EXTENDED = "sdpa"
"""Name of transformers' function that reports besides what it does."""

LATENT = "kv_b_proj"
"""The module that an attention module of this kind has."""

QUERIES = ("q_b_proj", "q_proj")
"""The modules that give its queries: one of them."""

See = Callable[[Any, list[Sums], list[Sums]], None]
"""Called with the module, and the sums of each head's inputs of the halves for keys and values."""


@contextmanager
def reported(
    wanted: Callable[[Any], bool], latent: Callable[[], Any], queries: Callable[[], Any], see: See
) -> Generator[None]:
    """Let attention modules with a latent vector report the inputs of their two halves.

    wanted:  returns whether a module reports
    latent:  returns the latent vectors that the thread expanded last, [n_windows, n, n_latent]
    queries: returns the queries that it computed last, [n_windows, n, n_heads * n_per_head]; what
             attention is given may be scaled by position (Mistral 4)
    """

    def forward(
        module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **more: Any
    ) -> Any:
        if wanted(module):
            mask, scaling = attention_mask, more["scaling"]
            plain = queries().unflatten(-1, (query.shape[1], -1))[..., : module.qk_nope_head_dim]
            keys = [Sums.of(plain[:, :, head]) for head in range(query.shape[1])]
            see(module, keys, _means(query, key, latent(), mask, scaling))
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)

    # Under the name of the function that it extends: sparse attention asks for the name.
    ALL_ATTENTION_FUNCTIONS[EXTENDED] = forward
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[EXTENDED]


def _means(query: Any, key: Any, latent: Any, mask: Any, scaling: float) -> list[Sums]:
    """Return the sums of each head's weighted means of latent vectors, over all windows."""
    n_windows, n_heads, n, _ = query.shape
    values = [Sums.nothing(latent.shape[-1]) for _ in range(n_heads)]
    later = torch.ones(n, n, dtype=torch.bool, device=query.device).triu(1)
    for window in range(n_windows):
        scores = query[window] @ key[window].transpose(-1, -2) * scaling
        allowed = None if mask is None else mask[window if len(mask) > 1 else 0]
        if allowed is None:
            scores = scores.masked_fill(later, -torch.inf)
        elif allowed.dtype == torch.bool:
            scores = scores.masked_fill(~allowed, -torch.inf)
        else:
            scores = scores + allowed
        for head, mean in enumerate(scores.softmax(dim=-1) @ latent[window]):
            values[head] += Sums.of(mean)
    return values
