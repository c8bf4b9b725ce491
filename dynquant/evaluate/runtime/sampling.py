"""Llama.cpp's samplers, which choose the next token."""

from __future__ import annotations

from dynquant.evaluate.runtime.binding import ChainParams, library
from dynquant.evaluate.tasks import SamplerPart

_STREAM = 1_000_003
"""A prime: streams of neighbouring seeds do not meet before a million prompts."""


def sampler_chain(settings: SamplerPart, stream: int) -> int:
    """Return a new chain for one sequence, in llama.cpp's default order of its samplers.

    stream: number of the sequence, which its random numbers depend on
    """
    lib = library()
    chain: int = lib.llama_sampler_chain_init(ChainParams(True))
    links: list[int] = []
    if settings.temperature <= 0:
        links.append(lib.llama_sampler_init_greedy())
    else:
        if settings.top_k > 0:
            links.append(lib.llama_sampler_init_top_k(settings.top_k))
        if settings.top_p < 1:
            links.append(lib.llama_sampler_init_top_p(settings.top_p, 1))
        if settings.min_p > 0:
            links.append(lib.llama_sampler_init_min_p(settings.min_p, 1))
        links.append(lib.llama_sampler_init_temp(settings.temperature))
        links.append(lib.llama_sampler_init_dist((settings.seed * _STREAM + stream) % 2**32))
    for link in links:
        lib.llama_sampler_chain_add(chain, link)
    return chain
