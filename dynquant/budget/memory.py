"""The memory that llama.cpp needs besides a model's weights: an estimate from keys and tensors.

    cache    keys and values of every token of the context, in F16, of each layer with attention,
             as if all saw the whole context; of latent attention, the compressed row alone; the
             keys of an indexer
    state    of recurrent layers, in F32
    buffers  the largest results of one batch of 512 tokens: the logits, masks, and the activations
             of a layer; not those of an indexer

A test compares them with the sizes that llama.cpp prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

from dynquant.arch.base import TensorName
from dynquant.keys import Keys
from dynquant.plan.plan import Plan

BATCH = 512
"""Tokens of a batch (n_ubatch), llama.cpp's default."""

_F16, _F32 = 2, 4


@dataclass(frozen=True)
class Memory:
    """Bytes besides the weights, for a context of some tokens."""

    context: int
    cache: int
    state: int
    buffers: int

    @property
    def total(self) -> int:
        """All bytes besides the weights."""
        return self.cache + self.state + self.buffers


def memory_of(plan: Plan, context: int) -> Memory:
    """Estimate what llama.cpp allocates for a plan's model and a context of some tokens."""
    layers: dict[int, set[str]] = {}
    for t in plan.tensors:
        parts = TensorName.parse(t.name)
        if parts.layer is not None:
            layers.setdefault(parts.layer, set()).add(parts.role)
    sizes = _Sizes(plan.keys, plan.architecture)
    with_cache = [n for n, roles in layers.items() if _has_cache(roles)]
    cache = context * _F16 * sum(sizes.cached(n) for n in with_cache)
    n_recurrent = sum(any(role.startswith("ssm_") for role in roles) for roles in layers.values())
    vocabulary = max((t.shape[0] for t in plan.tensors if t.name in _LOGITS), default=0)
    n_masks = (2 if sizes.has_windows else 1) if with_cache else 0
    wide = vocabulary + n_masks * context // 2 + 2 * sizes.feed_forward + 4 * sizes.hidden
    return Memory(context, cache, _F32 * n_recurrent * sizes.state, _F32 * BATCH * wide)


_LOGITS = ("token_embd.weight", "output.weight")


def _has_cache(roles: Iterable[str]) -> bool:
    """Whether a layer with these tensors caches keys and values."""
    roles = set(roles)
    is_recurrent = any(role.startswith("ssm_") for role in roles)
    is_fused = "attn_qkv" in roles and not is_recurrent
    return bool(roles & {"attn_k", "attn_kv_a_mqa"}) or is_fused


class _Sizes:
    """The sizes of a model, from its keys."""

    def __init__(self, keys: Keys, architecture: str) -> None:
        self._keys, self._architecture = keys, architecture

    def _number(self, name: str, default: int = 0, layer: int = 0) -> int:
        """Return a key of the architecture; of a list, the number of a layer."""
        key = self._keys.get(f"{self._architecture}.{name}")
        value = default if key is None else key.value
        if isinstance(value, (list, tuple)):
            numbers = cast("Sequence[int]", value)
            return int(numbers[layer]) if layer < len(numbers) else default
        return int(cast(int, value))

    @property
    def hidden(self) -> int:
        """Channels of the residual stream."""
        return self._number("embedding_length")

    @property
    def has_windows(self) -> bool:
        """Whether some layers see the last tokens only: they have another mask."""
        return bool(self._number("attention.sliding_window"))

    @property
    def feed_forward(self) -> int:
        """Channels inside the widest feed-forward layer, or inside the experts of a token."""
        experts = self._number("expert_feed_forward_length") * self._number("expert_used_count")
        return max(self._number("feed_forward_length"), experts)

    def cached(self, layer: int) -> int:
        """Return the numbers that a layer caches of a token."""
        index = self._number("attention.indexer.key_length")
        if not self._number("attention.indexer.types", 1, layer):
            index = 0
        latent = self._number("attention.kv_lora_rank")
        if latent and self._number("attention.key_length_mla"):
            return index + latent + self._number("rope.dimension_count")
        heads = self._number("attention.head_count", 1, layer)
        head = self.hidden // max(1, heads)
        keys = self._number("attention.key_length", head)
        values = self._number("attention.value_length", head)
        return index + self._number("attention.head_count_kv", heads, layer) * (keys + values)

    @property
    def state(self) -> int:
        """Numbers of a recurrent layer's state."""
        inner, size = self._number("ssm.inner_size"), self._number("ssm.state_size")
        steps = max(0, self._number("ssm.conv_kernel") - 1)
        return steps * (inner + 2 * self._number("ssm.group_count") * size) + inner * size
